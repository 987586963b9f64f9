"""Sessions of an imagined world as values: to and from a `WorldState`, many in one forward, and what-ifs."""

import itertools
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from sana_wm_env.model.world import Chunk, WorldModel, WorldState

from .actions import action_path
from .base import CameraEnv, Episode
from .camera import CHUNK_FRAMES, Array, compose
from .observations import Frames, Observation

if TYPE_CHECKING:
    from .vector import SanaWMVectorEnv

Decode = Literal["poses", "latents", "last", "frames"]
DECODES = ("poses", "latents", "last", "frames")
NOT_DECODED: Frames = np.empty((0, 0, 0, 3), np.uint8)
"""What a task that does not look at frames is shown of a chunk that was not decoded."""


class Imagined(NamedTuple):
    """What N sequences of K actions would lead to.

    Attributes:
        latents: float32 (N, K, C, T, h, w), T latent frames per chunk; None where nothing was imagined ("poses").
        frames: uint8, (N, K, H, W, 3) the newest of every chunk ("last"), (N, K, 24, H, W, 3) all ("frames"), or None.
        c2w: float64 (N, K, 24, 4, 4), relative to the first frame of the episode.
        rewards: float64 (N, K), 0 after the end of the episode.
        terminated: bool (N, K), True from the chunk on that ends the episode.
    """

    latents: NDArray[np.float32] | None
    frames: Frames | None
    c2w: Array
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]


def restore(env: gym.Env[Any, Any], state: WorldState) -> tuple[Any, dict[str, Any]]:
    """Goes on from a saved session through all wrappers: `env.reset(options={"state": state})` with the step counter set.

    That counter belongs to `TimeLimit`, which `gymnasium.make` adds, and not to the session: a reset alone sets it to 0, and
    `env.unwrapped.restore_state` leaves it. Here it becomes `info["chunk_index"]`.
    """
    obs, info = env.reset(options={"state": state})
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, TimeLimit):
            layer._elapsed_steps = info["chunk_index"]
        layer = layer.env
    return obs, info


def state_of(episode: Episode) -> WorldState:
    """The one session of an episode, its goal included."""
    return replace(episode.state, task={key: torch.from_numpy(np.array(value)[None]) for key, value in episode.goal.items()})


def episode_of(state: WorldState, model: WorldModel) -> Episode:
    """The inverse of `state_of`. ValueError for a batch, and for a state of another world."""
    if not isinstance(state, WorldState):
        raise ValueError(f"got a {type(state).__name__}; wanted a WorldState, from save_state or WorldState.load")
    if len(state) != 1:
        raise ValueError(f"got a state of {len(state)} sessions; wanted one: state[i]")
    state = model.accept(state)
    goal = {key: value[0].cpu().numpy().copy() for key, value in state.task.items()}
    c2w, intrinsics = state.c2w[0].cpu().numpy().copy(), state.intrinsics_px[0].cpu().numpy().copy()
    return Episode(replace(state, task={}), c2w, intrinsics, int(state.chunk_index[0]), goal)


def newest_frame(episode: Episode) -> tuple[Frames, Array]:
    """What an observation shows of a restored session: its newest frame and pose, 24 times."""
    frame = episode.state.frame[0].cpu().numpy()
    return np.repeat(frame[None], CHUNK_FRAMES, axis=0), np.tile(episode.c2w, (CHUNK_FRAMES, 1, 1))


def with_own_noise(state: WorldState) -> WorldState:
    """Rows whose noise differs from here on, seeded from what each row's generator would draw next and its place."""
    rows, generator = [], torch.Generator()
    for place, row in enumerate(state.generators):
        generator.set_state(row.clone())
        seeds = torch.randint(2**63 - 1, (place + 1,), generator=generator)
        rows.append(generator.manual_seed(int(seeds[-1])).get_state())
    return replace(state, generators=torch.stack(rows))


def imagine_from(
    env: CameraEnv,
    model: WorldModel,
    state: WorldState,
    actions: Any,
    *,
    decode: Decode = "latents",
    memory_mib: float = 1024,
    independent_noise: bool = False,
    origin: Array | None = None,
) -> Imagined:
    """`SessionEnv.imagine` for any environment: what a model expects of sequences of actions there. Nothing changes.

    The task is the environment's, and so is the place from which the actions begin; that the model knows of walls only what it has seen.

    Args:
        env: the environment in which the actions would be taken.
        model: what imagines.
        state: one session of the model, as far as the environment has come.
        actions: (N, K, action size), each as in `env.step`.
        decode: as in `SessionEnv.imagine`, and so are `memory_mib` and `independent_noise`.
        memory_mib: MiB.
        independent_noise: whether candidates have noise of their own.
        origin: (4, 4) where the session's raw frame 0 lies in the environment's episode; None for the same first frame.

    Raises:
        ValueError: as `SessionEnv.imagine`.
    """
    episode = env._running()
    if decode not in DECODES:
        raise ValueError(f"got decode={decode!r}; wanted one of {', '.join(DECODES)}")
    if decode == "poses" and env.task.uses_frames:
        raise ValueError(f"got decode='poses' for {type(env.task).__name__}, which looks at frames; wanted another of {', '.join(DECODES)}")
    if not memory_mib > 0:
        raise ValueError(f"got memory_mib={memory_mib!r}; wanted a positive number")
    actions = check_sequences(env, actions)
    rows = state.expand(len(actions))
    if independent_noise:
        rows = with_own_noise(rows)
    to_session = None if origin is None else RigidTransform.from_matrix(origin).inv().as_matrix()
    each = 2 * state.nbytes + max(model.needed.forward, model.needed.decode)  # the state before and after, and what makes it
    size = max(1, int(memory_mib * 2**20 / each))
    parts = [
        _play(env, model, episode, rows[i : i + size], actions[i : i + size], decode, to_session) for i in range(0, len(actions), size)
    ]
    columns: list[Any] = [None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)]
    return Imagined(*columns)


def check_sequences(env: CameraEnv, actions: Any) -> NDArray[Any]:
    """Sequences of actions (N, K, action size) as an array. ValueError for a bad one; the message names its place."""
    actions, wanted = np.asarray(actions), f"(N, K, {env.action_space.shape[0]})"
    if actions.ndim != 3 or 0 in actions.shape:
        raise ValueError(f"got actions of shape {actions.shape}; wanted {wanted}: N sequences of K actions")
    try:
        action_path(actions, env.action_mode, env.limits)
    except ValueError:
        for i, sequence in enumerate(actions):
            for k, action in enumerate(sequence):
                try:
                    action_path(action, env.action_mode, env.limits, batch=())
                except ValueError as error:
                    raise ValueError(f"sequence {i}, action {k}: {error}") from None
        raise
    return actions


def wished_paths(env: CameraEnv, candidates: Sequence[Episode], actions: NDArray[Any]) -> Array:
    """Poses (N, 24, 4, 4) that one action each (N, action size) asks for, relative to the first frame of the episode."""
    before = np.stack([candidate.c2w for candidate in candidates])
    return compose(before[:, None], action_path(actions, env.action_mode, env.limits))


def asked_paths(env: CameraEnv, episode: Episode, actions: NDArray[Any]) -> Array:
    """Poses (N, K, 24, 4, 4) that sequences of actions (N, K, action size) ask for, relative to the first frame of the episode."""
    paths, before = [], np.broadcast_to(episode.c2w, (len(actions), 4, 4))
    for chosen in actions.swapaxes(0, 1):  # (K, N, action)
        paths.append(compose(before[:, None], action_path(chosen, env.action_mode, env.limits)))
        before = paths[-1][:, -1]
    return np.stack(paths, 1)


def _play(
    env: CameraEnv, model: WorldModel, episode: Episode, state: WorldState, actions: NDArray[Any], decode: Decode, to_session: Array | None
) -> tuple[Any, ...]:
    """One batch: latents, frames, poses, rewards and ends, (n, K, ...) each."""
    candidates, ended = [episode] * len(actions), np.zeros(len(actions), np.bool_)
    shows = decode in ("last", "frames")
    paths = asked_paths(env, episode, actions)
    poses = paths if to_session is None else compose(to_session, paths)
    chunks: Iterable[Chunk | None] = itertools.repeat(None)
    if decode != "poses":
        chunks = model.play(state, torch.from_numpy(poses).flatten(1, 2), decode=shows or env.task.uses_frames)
    columns: tuple[list[Any], ...] = ([], [], [], [], [])
    for k, chunk in zip(range(actions.shape[1]), chunks):  # noqa: B905  # the chunks of poses alone have no end
        latents = None if chunk is None else chunk.latents.float().cpu().numpy()
        frames = None if chunk is None or not chunk.frames.numel() else chunk.frames.cpu().numpy()
        rewards = np.zeros(len(actions))
        for i, candidate in enumerate(candidates):
            step = env._judge(candidate, actions[i, k], NOT_DECODED if frames is None else frames[i], paths[i, k], None)
            candidates[i] = step.episode
            if not ended[i]:
                rewards[i], ended[i] = step.reward, step.terminated
        kept = frames if decode == "frames" else frames[:, -1] if frames is not None and shows else None
        for column, values in zip(columns, (latents, kept, paths[:, k], rewards, ended.copy()), strict=True):
            column.append(values)
    return tuple(None if column[0] is None else np.stack(column, 1) for column in columns)


class SessionEnv(CameraEnv):
    """A camera in a world that a `WorldModel` imagines: its sessions can be saved, restored, branched and tried out.

    A subclass supplies `model` and opens sessions.
    """

    model: WorldModel

    def _advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, WorldState]:
        frames, state = self.model.step(episode.state, torch.from_numpy(c2w)[None])
        return frames[0].cpu().numpy(), c2w, state

    def save_state(self) -> WorldState:
        """The running session as a value: go on from it with `restore_state`, keep it with `WorldState.save`.

        It holds no random generator for later resets, no unread frames of `render`, and no step counter: `TimeLimit`, which
        `gymnasium.make` adds, keeps that one; `sana_wm_env.restore(env, state)` sets it.
        """
        return state_of(self._running())

    def restore_state(self, state: WorldState) -> tuple[Observation, dict[str, Any]]:
        """Goes on from a saved session. Returns what `reset` does: its newest frame fills the chunk, `n_new_frames` is 1.

        Raises:
            ValueError: more than one session, another world, or another task; the running episode stays.
        """
        return self._begin(self._checked({"state": state}), None)

    def fork(self, n: int, *, independent_noise: bool = False, max_episode_steps: int | None = None) -> "SanaWMVectorEnv":
        """Environments that go on from the present of this one, which stays as it is. Nothing is copied until they move.

        Args:
            n: branches.
            independent_noise: by default every branch imagines with the noise that this environment would, so that they differ by their
                actions alone; True gives each its own.
            max_episode_steps: chunks since the reset after which a branch is truncated; None for never.

        Returns:
            A vector environment in the autoreset mode "Disabled", already running.
        """
        from .vector import SanaWMVectorEnv

        state = state_of(self._running()).expand(n)
        state = with_own_noise(state) if independent_noise else state
        vector = SanaWMVectorEnv(n, template=self, max_episode_steps=max_episode_steps, autoreset_mode="Disabled")
        for slot, generator in zip(vector.slots, deepcopy(self.np_random).spawn(n), strict=True):
            slot.np_random = generator
        vector.restore_state([state[i] for i in range(n)])  # views of one session
        return vector

    def imagine(self, actions: Any, *, decode: Decode = "latents", memory_mib: float = 1024, independent_noise: bool = False) -> Imagined:
        """What N sequences of K actions would lead to from here. This environment stays as it is, to the last bit.

        Args:
            actions: (N, K, action size), each as in `step`.
            decode: what to decode: "latents" nothing, "last" the newest frame of every chunk, "frames" all. A task that judges frames has
                them decoded in any case. "poses" does not even run the network, for a task that does not look at frames: poses and rewards
                are the same.
            memory_mib: how much memory candidates may take beside what is returned; they are played in batches that fit, of one at least.
            independent_noise: as in `fork`.

        Raises:
            ValueError: a bad action; the message names its place. "poses" for a task that looks at frames.
        """
        options: dict[str, Any] = {"decode": decode, "memory_mib": memory_mib, "independent_noise": independent_noise}
        return imagine_from(self, self.model, self._running().state, actions, **options)

    def _checked(self, options: dict[str, Any] | None) -> Any:
        given = self._known(options)
        if given.get("state") is None:
            return super()._checked(options)
        self._require_open()
        if others := sorted(given.keys() - {"state"}):
            raise ValueError(f"got the option {others[0]!r} beside a state, which has its own; wanted one or the other")
        return episode_of(given["state"], self.model)

    def _begin(self, prepared: Any, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        if not isinstance(prepared, Episode):
            return super()._begin(prepared, seed)
        if seed is not None:
            gym.Env.reset(self, seed=seed)
        return self._resume(prepared, *newest_frame(prepared))
