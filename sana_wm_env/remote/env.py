"""`gym.make("SanaWM-v0", world="wss://...")`: the environment of a world that is imagined elsewhere.

Rules, task, reward and the end of an episode stay here; the server knows pictures and poses alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..base import CameraEnv
from ..base_vector import MOST_SLOTS, CameraVectorEnv
from ..camera import Array
from ..candidates import Decode, Imagined, Pictures, check_candidates, judge_candidates
from ..episode import Episode, Seeds
from ..first_frame import FirstFrame, check_first_frame_options
from ..numbers import to_flag, to_whole
from ..observations import Frames, Observation
from ..pictures import read_image
from ..tasks import Moment, Task
from . import wire
from .client import Held, RemoteState, RemoteWorld

OF_THE_SERVER = ("device", "dtype", "precision", "refiner", "offload")
"""Arguments of `SanaWMEnv` that the server decides; all but the last are flags of `sana-wm serve`."""


class RemoteEnv(CameraEnv):
    """`SanaWMEnv` without its model: the same spaces, rewards and infos, and frames to the last byte, from a
    server on the same kind of processor.

    Args:
        world: address of the server, "wss://host:port", with the token in the environment variable
            SANA_WM_TOKEN; or a `RemoteWorld`, which several environments may share.
        obs_mode, render_mode, max_translation_m, max_rotation_rad, action_mode, task, reward_fn: as of
            `SanaWMEnv`.
        **of_the_server: arguments that the server decides; None, or refused.

    Raises:
        ValueError: a bad argument.
        PermissionError, ConnectionError: the server lets nobody in, or does not answer.
    """

    reset_options = ("room", "image", "intrinsics", "fov_deg", "prompt", "look_around", "state")

    def __init__(
        self,
        world: str | RemoteWorld,
        obs_mode: str = "chunk",
        render_mode: str | None = None,
        max_translation_m: float | None = None,
        max_rotation_rad: float | None = None,
        action_mode: str = "chunk",
        task: str | Task = "free",
        reward_fn: Callable[[Moment], float] | None = None,
        **of_the_server: Any,
    ):
        for name, value in of_the_server.items():
            if name not in OF_THE_SERVER:
                raise TypeError(f"got an unexpected argument {name!r}")
            if value is not None:
                flag = f": sana-wm serve --{name}" if name != OF_THE_SERVER[-1] else ""
                raise ValueError(f"got {name}={value!r} for a world at a server, which decides it{flag}")
        self._owns = not isinstance(world, RemoteWorld)
        self.remote = RemoteWorld(world) if isinstance(world, str) else world
        info = self.remote.info
        try:
            super().__init__(
                world=info.world,
                image_size=info.image_size,
                obs_mode=obs_mode,
                render_mode=render_mode,
                max_translation_m=info.max_translation_m if max_translation_m is None else max_translation_m,
                max_rotation_rad=info.max_rotation_rad if max_rotation_rad is None else max_rotation_rad,
                action_mode=action_mode,
                task=task,
                reward_fn=reward_fn,
            )
        except BaseException:
            if self._owns:
                self.remote.close()
            raise

    def advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, RemoteState]:
        """Has frames (24, H, W, 3) imagined along c2w (24, 4, 4); returns them, the same poses, and the next
        state. Changes nothing.
        """
        return self.advance_each([episode], [c2w])[0]

    def advance_each(
        self, episodes: Sequence[Episode], c2w: Sequence[Array]
    ) -> list[tuple[Frames, Array, RemoteState]]:
        """`advance` for several episodes in one forward."""
        advanced = self.remote.step_each([episode.state for episode in episodes], np.stack(c2w))
        return [(frames, path, state) for path, (frames, state) in zip(c2w, advanced, strict=True)]

    # ---- sessions as values

    def save_state(self) -> RemoteState:
        """Returns the running session as a value, for `restore_state` and `RemoteState.save`."""
        return replace(self.episode.state, task=dict(self.episode.goal))

    def restore_state(self, state: Any) -> tuple[Observation, dict[str, Any]]:
        """Continues a saved session: a `RemoteState`, a `WorldState`, or the path of what either has saved.
        Returns what `reset` does.

        Raises:
            ValueError: more than one session, another world, another task, or what no session can be; the
                running episode stays.
        """
        if state is None:
            raise ValueError("got None for a state; wanted one that save_state gave, or the path of one")
        return self.reset(options={"state": state})

    def fork(
        self, n: int, *, independent_noise: bool = False, max_episode_steps: int | None = None
    ) -> RemoteVectorEnv:
        """Branches this environment, as `SanaWMEnv.fork`."""
        to_whole(n, "n", 1, MOST_SLOTS)
        episode = self.episode
        states = [episode.state] * n
        if to_flag(independent_noise, "independent_noise"):
            states = self.remote.branch(episode.state, n)
        vector = RemoteVectorEnv(
            n, template=self, max_episode_steps=max_episode_steps, autoreset_mode="Disabled"
        )
        vector.start_from([replace(episode, state=state) for state in states], self.np_random)
        return vector

    def imagine(
        self,
        actions: Any,
        *,
        decode: Decode = "latents",
        memory_mib: float = 1024,
        independent_noise: bool = False,
        refine: bool = False,
    ) -> Imagined:
        """Imagines where N sequences of K actions would lead from here, as `SanaWMEnv.imagine`; memory_mib is
        the server's. Frames and latents come over the network: "poses" needs none, "last" one in 24.
        """
        episode = self.episode
        actions, memory = check_candidates(self.rules, actions, decode, memory_mib, independent_noise)

        def play(batch: slice, paths: Array, decodes: bool) -> Iterator[Pictures]:
            poses = paths.reshape(len(paths), -1, 4, 4)
            looks = decode == "frames" or self.rules.task.uses_frames
            show = ("all" if looks else "last") if decodes else "nothing"
            chunks = self.remote.play(episode.state, poses, show, refine, independent_noise, batch.start)
            for latents, frames in chunks:
                yield Pictures(latents, frames)

        each = 1 if decode == "poses" else self.remote.measure(episode.state, refine)
        return judge_candidates(self.rules, episode, actions, decode, play, int(memory * 2**20 / each))

    def encode(self, image: Frames) -> NDArray[np.float32]:
        """Returns the latent (C, h, w) of a frame, uint8 (H, W, 3), as `SanaWMEnv.encode`."""
        return self.remote.encode(image[None, None])[0, :, 0]

    def close(self) -> None:
        """Ends the episode, and the session at the server if it is this environment's own."""
        super().close()
        if self._owns:
            self.remote.close()

    # ---- how an episode begins

    def newest_frame(self, episode: Episode) -> Frames:
        """Returns the newest frame (H, W, 3) of an episode."""
        return episode.state.frame

    def prepare(self, options: dict[str, Any]) -> Held | Episode:
        """Has the server check the options of a reset, or fetch a saved session."""
        if options.get("state") is not None:
            state = self.remote.accept(options["state"])
            goal = {name: np.array(value) for name, value in state.task.items()}
            episode = Episode(
                replace(state, task={}), state.c2w.copy(), state.intrinsics_px.copy(), state.chunk_index, goal
            )
            return self.check_session(episode)
        return self.remote.prepare(to_call(options, self.image_size))

    def start(self, prepared: Held, seeds: Seeds) -> tuple[Frames, Array, RemoteState]:
        """Has an episode opened."""
        state = self.remote.start(prepared, seeds)
        return state.frame, state.intrinsics_px, state

    def is_clear(self, prepared: Held, seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        """Checks whether the camera of a new episode may stand at poses (F, 4, 4): (F,)."""
        return self.remote.is_clear(prepared, seeds, c2w)


def to_call(options: dict[str, Any], size: tuple[int, int]) -> wire.Prepare:
    """Options of a reset as the server takes them; files are read, and pictures cut to the world's (height,
    width), here. ValueError for what cannot be one.
    """
    room, prompt = check_first_frame_options(options)
    looks = options.get("look_around")
    call = wire.Prepare(
        room=room if isinstance(room, str | None) else int(room),
        prompt=prompt,
        look_around=None if looks is None else bool(looks),
    )
    image, intrinsics, fov_deg = (options.get(name) for name in ("image", "intrinsics", "fov_deg"))
    if image is None:
        return call
    if isinstance(intrinsics, str) and fov_deg is None:  # the server estimates them
        call.image, call.intrinsics = wire.to_wire(read_image(image)), intrinsics
        return call
    first = FirstFrame.of_picture(image, size, intrinsics, fov_deg)
    call.image, call.intrinsics = wire.to_wire(first.image), wire.to_wire(first.intrinsics_px)
    return call


class RemoteVectorEnv(CameraVectorEnv):
    """`RemoteEnv` N times in one session at the server: the slots go through the network together, as those
    of `SanaWMVectorEnv`.

    Args:
        num_envs: slots.
        max_episode_steps: chunks after which a slot is truncated; None for never.
        autoreset_mode: as of `CameraVectorEnv`.
        template: an environment whose arguments and session every slot takes, in place of `kwargs`.
        **kwargs: of `RemoteEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        template: RemoteEnv | None = None,
        **kwargs: Any,
    ):
        own = RemoteEnv(**kwargs) if template is None else template
        self._remote = own.remote if template is None and own._owns else None
        super().__init__(
            num_envs, template=own, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
        for slot in self.slots:
            slot._owns = False  # the session is that of all of them

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the episodes, and the session if no other environment has it."""
        super().close_extras(**kwargs)
        if self._remote is not None:
            self._remote.close()
