"""Sessions as values: to and from an episode, and what-ifs, where N sequences of K actions would lead. Nothing is touched."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from sana_wm_env.model.world import Chunk, WorldModel, WorldState

from .camera import Array, compose
from .episode import Episode, Rules
from .observations import Frames

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


def imagine(
    rules: Rules,
    episode: Episode,
    world: WorldModel,
    state: WorldState,
    actions: Any,
    *,
    decode: Decode = "latents",
    memory_mib: float = 1024,
    independent_noise: bool = False,
    origin: Array | None = None,
) -> Imagined:
    """What a world expects of sequences of actions. Uses the rules' task and the episode's pose; knows only the walls it has seen.

    Args:
        rules: of the environment in which the actions would be taken.
        episode: the one that is running there.
        world: what imagines.
        state: one session of the world, as far as the episode has come.
        actions: (N, K, action size), each as in `env.step`.
        decode: what to decode: "latents" nothing, "last" the newest frame of every chunk, "frames" all. A task that judges frames has
            them decoded in any case. "poses" does not even run the network, for a task that does not look at frames.
        memory_mib: how much memory candidates may take beside what is returned; they are played in batches that fit, of one at least.
        independent_noise: whether candidates have noise of their own.
        origin: (4, 4) where the session's raw frame 0 lies in the episode; None for the same first frame.

    Raises:
        ValueError: a bad action; the message names its place. "poses" for a task that looks at frames.
    """
    if decode not in DECODES:
        raise ValueError(f"got decode={decode!r}; wanted one of {', '.join(DECODES)}")
    if decode == "poses" and rules.task.uses_frames:
        name = type(rules.task).__name__
        raise ValueError(f"got decode='poses' for {name}, which looks at frames; wanted another of {', '.join(DECODES)}")
    if not memory_mib > 0:
        raise ValueError(f"got memory_mib={memory_mib!r}; wanted a positive number")
    actions = rules.check_sequences(actions)
    rows = state.expand(len(actions))
    if independent_noise:
        rows = with_own_noise(rows)
    to_session = None if origin is None else RigidTransform.from_matrix(origin).inv().as_matrix()
    each = 2 * state.nbytes + max(world.needed.forward, world.needed.decode)  # the state before and after, and what makes it
    size = max(1, int(memory_mib * 2**20 / each))
    batches = [slice(i, i + size) for i in range(0, len(actions), size)]
    parts = [_play(rules, episode, world, rows[batch], actions[batch], decode, to_session) for batch in batches]
    columns: list[Any] = [None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)]
    return Imagined(*columns)


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


def with_own_noise(state: WorldState) -> WorldState:
    """Rows whose noise differs from here on, seeded from what each row's generator would draw next and its place."""
    rows, generator = [], torch.Generator()
    for place, row in enumerate(state.generators):
        generator.set_state(row.clone())
        seeds = torch.randint(2**63 - 1, (place + 1,), generator=generator)
        rows.append(generator.manual_seed(int(seeds[-1])).get_state())
    return replace(state, generators=torch.stack(rows))


def _play(
    rules: Rules, episode: Episode, world: WorldModel, state: WorldState, actions: NDArray[Any], decode: Decode, to_session: Array | None
) -> tuple[Any, ...]:
    """One batch: latents, frames, poses, rewards and ends, (n, K, ...) each."""
    candidates, ended = [episode] * len(actions), np.zeros(len(actions), np.bool_)
    shows = decode in ("last", "frames")
    decodes = shows or rules.task.uses_frames
    paths = rules.wish_ahead(episode, actions)
    chunks: Iterable[Chunk | None] = itertools.repeat(None, actions.shape[1])
    if decode != "poses":
        poses = torch.from_numpy(paths if to_session is None else compose(to_session, paths))
        chunks = world.play(state, poses.flatten(1, 2), decode=decodes)
    columns: tuple[list[Any], ...] = ([], [], [], [], [])
    for k, chunk in enumerate(chunks):
        latents = None if chunk is None else chunk.latents.float().cpu().numpy()
        frames = chunk.frames.cpu().numpy() if chunk is not None and decodes else None
        rewards = np.zeros(len(actions))
        for i, candidate in enumerate(candidates):
            step = rules.judge(candidate, actions[i, k], NOT_DECODED if frames is None else frames[i], paths[i, k], None)
            candidates[i] = step.episode
            if not ended[i]:
                rewards[i], ended[i] = step.reward, step.terminated
        kept = frames if decode == "frames" else frames[:, -1] if frames is not None and shows else None
        for column, values in zip(columns, (latents, kept, paths[:, k], rewards, ended.copy()), strict=True):
            column.append(values)
    return tuple(None if column[0] is None else np.stack(column, 1) for column in columns)
