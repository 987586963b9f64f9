"""Where a planner tries out sequences of actions. An imagination plays them and leaves the environment as it
is.

| class                 | what imagines                                    | for which environment             |
|-----------------------|--------------------------------------------------|-----------------------------------|
| `OwnImagination`      | the world model that the environment itself is   | `SanaWM-*`: planning in the model |
| `SharedImagination`    | the same in the workers of a Ray cluster         | `SanaWM-*` and exact rooms        |
| `AnchoredImagination` | a world model that starts anew from true frames  | any: plan in the model, act in truth |
| `TrueImagination`     | a copy of the environment itself                 | any: the upper bound              |
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from sana_wm_env.base import CameraEnv
from sana_wm_env.camera import compose, step_twists, twist_path
from sana_wm_env.candidates import Decode, Imagined, play_candidates
from sana_wm_env.episode import Episode
from sana_wm_env.imagine import encode_image, imagine
from sana_wm_env.model.world import WorldModel, WorldState
from sana_wm_env.observations import Frames
from sana_wm_env.rooms.room import Room

from ..agent import newest_image


class Imagination(ABC):
    """Observes the episode once per chunk; answers any number of what-if questions in between."""

    def reset(self, seed: int | None = None) -> None:  # noqa: B027  # most keep nothing
        """Forgets the last episode; noise of the next one follows from `seed`."""

    def observe(self, observation: Any, env: CameraEnv) -> None:  # noqa: B027
        """Takes in the agent's observation, before the first chunk and after each."""

    @abstractmethod
    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """Imagines the outcome of sequences of actions (N, K, action size) from here, as
        `SanaWMEnv.imagine`.
        """

    def encode(self, env: CameraEnv, image: Frames) -> NDArray[np.float32]:
        """Returns the latent (C, h, w) of a frame (H, W, 3). ValueError where nothing has latents."""
        raise ValueError(
            "got a goal to compare by latents, and no model to encode its picture; wanted the objective "
            '"frames" or "reward"'
        )


class OwnImagination(Imagination):
    """The imagination of the environment itself: exactly what its steps will show."""

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """`env.imagine`. ValueError for an environment that has none."""
        return _dreamer(env).imagine(actions, decode=decode)

    def encode(self, env: CameraEnv, image: Frames) -> NDArray[np.float32]:
        """By the world model of the environment."""
        return _dreamer(env).encode(image)


class Dreamer(Protocol):
    """An environment that imagines: `SanaWMEnv`, here or at a server."""

    def imagine(self, actions: Any, *, decode: Decode) -> Imagined:
        """As `SanaWMEnv.imagine`."""
        ...

    def encode(self, image: Frames) -> NDArray[np.float32]:
        """As `SanaWMEnv.encode`."""
        ...


class ImaginesFrom(Protocol):
    """Whoever imagines from an episode that is handed over: `sana_wm_env.ray.RayVectorEnv`."""

    def imagine_from(self, episode: Episode, actions: Any, **options: Any) -> Imagined:
        """As `SanaWMEnv.imagine`, from this episode."""
        ...


class SharedImagination(OwnImagination):
    """The imagination of the environment itself, its candidates shared out among workers.

    The planner's environment is one in this process, or `RayVectorEnv.view(slot)`.

    Args:
        workers: with the same world and rules as the environment.
    """

    def __init__(self, workers: ImaginesFrom):
        self.workers = workers

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """`env.imagine`, by the workers."""
        return self.workers.imagine_from(env.episode, actions, decode=decode)


class AnchoredImagination(Imagination):
    """A world model beside an exact environment: it restarts from the true frame every few chunks.

    In between it imagines the actions that were done, so that it remembers what it has seen since its anchor.

    Args:
        world: what imagines.
        every: chunks between two anchors; 1 for every chunk from a true frame, without memory.
    """

    def __init__(self, world: WorldModel, every: int = 1):
        if every < 1:
            raise ValueError(f"got every={every!r}; wanted at least 1 chunk")
        self.world, self.every = world, every
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Forgets the anchor; `observe` sets the next one."""
        self._noise = torch.Generator().manual_seed(0 if seed is None else seed)
        self._state: WorldState | None = None

    def observe(self, observation: Any, env: CameraEnv) -> None:
        """Anchors in the true frame, or imagines the motion from the camera's last pose to the present one,
        at constant velocity.
        """
        if self._state is None or self._chunks == self.every:
            episode = env.episode
            image = torch.from_numpy(newest_image(observation))[None]
            intrinsics = torch.from_numpy(episode.intrinsics_px)[None]
            prompt = episode.state.caption if isinstance(episode.state, Room) else ""
            self._state = self.world.start(image, intrinsics, [prompt], [self._noise])
            self._noise.manual_seed(
                int(torch.randint(2**63 - 1, (), generator=self._noise))
            )  # `start` reads it and leaves it
            self._anchor, self._chunks = env.c2w, 0
        else:
            way = compose(self._newest, twist_path(step_twists(np.stack([self._newest, env.c2w]))[0]))
            from_anchor = compose(RigidTransform.from_matrix(self._anchor).inv().as_matrix(), way)
            _, self._state = self.world.step(self._state, torch.from_numpy(from_anchor)[None])
        self._newest, self._chunks = env.c2w, self._chunks + 1

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """Imagines with the model; it knows no walls, so poses and rewards by pose are those of free
        space.
        """
        if self._state is None:
            raise ValueError("got no true frame yet; call observe(observation, env) first")
        return imagine(
            env.rules, env.episode, self.world, self._state, actions, decode=decode, origin=self._anchor
        )

    def encode(self, env: CameraEnv, image: Frames) -> NDArray[np.float32]:
        """By the world model that was given."""
        return encode_image(self.world, image)


class TrueImagination(Imagination):
    """The true outcome, by playing every candidate in the environment: the upper bound, a perfect model.

    One candidate after the other; in rooms nothing is rendered unless frames are wanted.
    """

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """Plays the candidates in the environment's place. ValueError where latents are wanted."""
        if decode == "latents" and not env.task.uses_frames:
            raise ValueError(
                'got decode="latents"; the truth has frames only: wanted the objective "frames" or "reward"'
            )
        if decode in ("last", "frames"):
            return play_candidates(env, actions, decode)
        played = play_candidates(env, actions, "last" if env.task.uses_frames else "poses")
        return played._replace(frames=None)


def _dreamer(env: Any) -> Dreamer:
    if not hasattr(env, "encode"):
        raise ValueError(
            f"got {type(env).__name__}, which imagines nothing; wanted SanaWM-v0 or its tasks, or a planner "
            "with another imagination: "
            "AnchoredImagination(world) or TrueImagination()"
        )
    return env
