"""Where a planner tries out what it might do. An imagination plays sequences of actions and leaves the environment as it is.

| class                 | who foresees                                     | for which environment             |
|-----------------------|--------------------------------------------------|-----------------------------------|
| `OwnImagination`      | the world model that the environment itself is   | `SanaWM-*`: planning in the model |
| `AnchoredImagination` | a world model that starts anew from true frames  | any: plan in the model, act in truth |
| `TrueImagination`     | a copy of the environment itself                 | any: the upper bound              |
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from sana_wm_env.base import CameraEnv
from sana_wm_env.camera import compose, step_twists, twist_path
from sana_wm_env.env import SanaWMEnv
from sana_wm_env.imagine import NOT_DECODED, Decode, Imagined, imagine
from sana_wm_env.model.world import WorldModel, WorldState
from sana_wm_env.observations import Frames
from sana_wm_env.rooms.env import RoomsEnv
from sana_wm_env.rooms.room import Room, stop_at_walls

from .agent import newest_image


class Imagination(ABC):
    """Observes the episode once per chunk; answers any number of what-if questions in between."""

    def reset(self, seed: int | None = None) -> None:  # noqa: B027  # most keep nothing
        """Forgets the last episode; noise of the next one follows from `seed`."""

    def follow(self, observation: Any, env: CameraEnv) -> None:  # noqa: B027
        """Takes in what an agent is shown, before the first chunk and after each."""

    @abstractmethod
    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """What comes of sequences of actions (N, K, action size) from here, as `SanaWMEnv.imagine` says it."""

    def model(self, env: CameraEnv) -> WorldModel | None:
        """The world model, or None where there is none."""
        return None


class OwnImagination(Imagination):
    """The environment's own: exact, because that is how it will go on."""

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """`env.imagine`. ValueError for an environment that has none."""
        return _session(env).imagine(actions, decode=decode)

    def model(self, env: CameraEnv) -> WorldModel:
        """That of the environment."""
        return _session(env).model


class AnchoredImagination(Imagination):
    """A world model beside an environment that is something else: it starts from the true frame, and anew every few chunks.

    In between it imagines what was done, so that it remembers what it has seen since its anchor.

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
        """Without an anchor until `follow`."""
        self._noise = torch.Generator().manual_seed(0 if seed is None else seed)
        self._state: WorldState | None = None

    def follow(self, observation: Any, env: CameraEnv) -> None:
        """Anchors in the true frame, or imagines the way from where the camera was to where it is, at constant velocity."""
        if self._state is None or self._chunks == self.every:
            episode = env.episode
            image = torch.from_numpy(newest_image(observation))[None]
            intrinsics = torch.from_numpy(episode.intrinsics_px)[None]
            prompt = episode.state.caption if isinstance(episode.state, Room) else ""
            self._state = self.world.start(image, intrinsics, [prompt], [self._noise])
            self._noise.manual_seed(int(torch.randint(2**63 - 1, (), generator=self._noise)))  # `start` reads it and leaves it
            self._anchor, self._chunks = env.c2w, 0
        else:
            way = compose(self._newest, twist_path(step_twists(np.stack([self._newest, env.c2w]))[0]))
            from_anchor = compose(RigidTransform.from_matrix(self._anchor).inv().as_matrix(), way)
            _, self._state = self.world.step(self._state, torch.from_numpy(from_anchor)[None])
        self._newest, self._chunks = env.c2w, self._chunks + 1

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """What the model expects; it does not know of walls, so poses and rewards by pose are those of free space."""
        if self._state is None:
            raise ValueError("got no true frame yet; call follow(observation, env) first")
        return imagine(env.rules, env.episode, self.world, self._state, actions, decode=decode, origin=self._anchor)

    def model(self, env: CameraEnv) -> WorldModel:
        """The one that was given."""
        return self.world


class TrueImagination(Imagination):
    """What will really happen, by playing every candidate in the environment: what a perfect model would be worth.

    One candidate after the other; in rooms nothing is rendered unless frames are wanted.
    """

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """As the environment would go on. ValueError where latents are wanted."""
        if decode == "latents" and not env.task.uses_frames:
            raise ValueError('got a wish for latents; the truth has frames: wanted the objective "frames" or "reward"')
        actions = env.rules.check_sequences(actions)
        rendered = decode in ("last", "frames") or env.task.uses_frames
        candidates, ended = [env.episode] * len(actions), np.zeros(len(actions), np.bool_)
        shown: list[list[Frames]] = [[] for _ in actions]
        poses = np.empty((*actions.shape[:2], 24, 4, 4))
        rewards, terminated = np.zeros(actions.shape[:2]), np.zeros(actions.shape[:2], np.bool_)
        for k in range(actions.shape[1]):
            for i, wish in enumerate(env.rules.wish_each(np.stack([one.c2w for one in candidates]), actions[:, k])):
                if rendered or not isinstance(env, RoomsEnv):
                    frames, path, state = env.advance(candidates[i], wish)
                else:
                    state = candidates[i].state
                    frames, path = NOT_DECODED, stop_at_walls(state, candidates[i].c2w, wish)
                step = env.rules.judge(candidates[i], actions[i, k], frames, path, state)
                candidates[i], poses[i, k] = step.episode, path
                if rendered:
                    shown[i].append(frames if decode == "frames" else frames[-1].copy())
                if not ended[i]:
                    rewards[i, k], ended[i] = step.reward, step.terminated
            terminated[:, k] = ended
        pictures: NDArray[np.uint8] | None = np.stack([np.stack(row) for row in shown]) if rendered else None
        return Imagined(None, pictures if decode in ("last", "frames") else None, poses, rewards, terminated)


def _session(env: CameraEnv) -> SanaWMEnv:
    if not isinstance(env, SanaWMEnv):
        raise ValueError(
            f"got {type(env).__name__}, which imagines nothing; wanted SanaWM-v0 or its tasks, or a planner with an imagination beside it: "
            "AnchoredImagination(world) or TrueImagination()"
        )
    return env
