"""Sequences of actions that are tried out: what they lead to, and how to find out by playing them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .camera import CHUNK_FRAMES, Array
from .episode import Episode, Rules
from .machine import check_fits
from .numbers import to_flag, to_number
from .observations import Frames
from .tasks import Task

if TYPE_CHECKING:
    from .base import CameraEnv

Decode = Literal["poses", "latents", "last", "frames"]
DECODES = ("poses", "latents", "last", "frames")
NOT_DECODED: Frames = np.empty((0, 0, 0, 3), np.uint8)
"""Frames of a chunk that was not decoded, for a task that does not look at them."""


class Imagined(NamedTuple):
    """The imagined outcome of N sequences of K actions.

    Attributes:
        latents: float32 (N, K, C, T, h, w), T latent frames per chunk; None where nothing was imagined
            ("poses").
        frames: uint8, (N, K, H, W, 3) the newest of every chunk ("last"), (N, K, 24, H, W, 3) all ("frames"),
            or None.
        c2w: float64 (N, K, 24, 4, 4), relative to the first frame of the episode.
        rewards: float64 (N, K), 0 after the end of the episode.
        terminated: bool (N, K), True from the chunk on that ends the episode.
    """

    latents: NDArray[np.float32] | None
    frames: Frames | None
    c2w: Array
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]


class Pictures(NamedTuple):
    """One chunk of n sequences: latents float32 (n, C, T, h, w) and frames uint8 (n, 24, H, W, 3), of which
    there are none where they were not asked for.
    """

    latents: NDArray[np.float32] | None
    frames: Frames | None


Play = Callable[[slice, Array, bool], Iterable[Pictures]]
"""Plays the rows of a batch along poses (n, K, 24, 4, 4), with frames or without, chunk after chunk."""


def check_decode(decode: str, task: Task) -> None:
    """Refuses an unknown `decode`, and "poses" for a task that looks at frames."""
    if decode not in DECODES:
        raise ValueError(f"got decode={decode!r}; wanted one of {', '.join(DECODES)}")
    if decode == "poses" and task.uses_frames:
        raise ValueError(
            f"got decode='poses' for {type(task).__name__}, which looks at frames; wanted another of "
            f"{', '.join(DECODES)}"
        )


def check_budget(memory_mib: Any, independent_noise: Any) -> float:
    """Returns how many MiB candidates may take. ValueError for no positive number, or noise that is neither
    True nor False.
    """
    to_flag(independent_noise, "independent_noise")
    memory = to_number(memory_mib, "memory_mib", "a positive number of MiB")
    if memory <= 0:
        raise ValueError(f"got memory_mib={memory_mib!r}; wanted a positive number of MiB")
    return memory


def check_candidates(
    rules: Rules, actions: Any, decode: Decode, memory_mib: Any, independent_noise: Any
) -> tuple[NDArray[Any], float]:
    """Returns sequences of actions (N, K, action size) and a number of MiB, as `imagine` takes them.
    ValueError for what it refuses.
    """
    check_decode(decode, rules.task)
    memory = check_budget(memory_mib, independent_noise)
    actions = rules.check_sequences(actions)
    check_room_for(actions, decode, rules.image_size)
    return actions, memory


def judge_candidates(
    rules: Rules, episode: Episode, actions: NDArray[Any], decode: Decode, play: Play, at_once: int
) -> Imagined:
    """Has sequences of actions played by somebody who shows them and knows no walls, and judges what comes of
    them.

    Args:
        rules: of the environment in which the actions would be taken.
        episode: the one that is running there.
        actions: (N, K, action size), checked.
        decode: as of `imagine`; for "poses" nothing is played.
        play: called with the rows of a batch, its poses (n, K, 24, 4, 4) and whether frames are wanted, it
            yields K pictures.
        at_once: rows of a batch; one at least.
    """
    size = max(1, at_once)
    batches = [slice(i, i + size) for i in range(0, len(actions), size)]
    parts = [_judge_batch(rules, episode, actions[batch], decode, partial(play, batch)) for batch in batches]
    columns: list[Any] = [
        None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)
    ]
    return Imagined(*columns)


def _judge_batch(
    rules: Rules,
    episode: Episode,
    actions: NDArray[Any],
    decode: Decode,
    play: Callable[[Array, bool], Iterable[Pictures]],
) -> tuple[Any, ...]:
    """One batch: latents, frames, poses, rewards and ends, (n, K, ...) each."""
    candidates, ended = [episode] * len(actions), np.zeros(len(actions), np.bool_)
    shows = decode in ("last", "frames")
    decodes = shows or rules.task.uses_frames
    paths = rules.wish_ahead(episode, actions)
    nothing = repeat(Pictures(None, None), actions.shape[1])
    columns: tuple[list[Any], ...] = ([], [], [], [], [])
    for k, (latents, shown) in enumerate(nothing if decode == "poses" else play(paths, decodes)):
        frames = shown if decodes else None
        rewards = np.zeros(len(actions))
        for i, candidate in enumerate(candidates):
            seen = NOT_DECODED if frames is None else frames[i]
            step = rules.judge(candidate, actions[i, k], seen, paths[i, k], None, imagined=True)
            candidates[i] = step.episode
            if not ended[i]:
                rewards[i], ended[i] = step.reward, step.terminated
        kept = frames if decode == "frames" else frames[:, -1] if frames is not None and shows else None
        for column, values in zip(columns, (latents, kept, paths[:, k], rewards, ended.copy()), strict=True):
            column.append(values)
    return tuple(None if column[0] is None else np.stack(column, 1) for column in columns)


def check_room_for(actions: NDArray[Any], decode: Decode, image_size: tuple[int, int]) -> None:
    """Refuses sequences (N, K, ...) whose outcome would not fit into memory."""
    chunks = actions.shape[0] * actions.shape[1]
    pictures = {"frames": CHUNK_FRAMES, "last": 1}.get(decode, 0) * 3 * image_size[0] * image_size[1]
    poses = CHUNK_FRAMES * 16 * 8
    each = 2 * (pictures + poses)  # in parts, and as a whole
    cure = "imagine fewer sequences at a time" + ("" if decode == "poses" else ", or decode less")
    check_fits(chunks * each, f"{chunks} chunks to imagine with decode={decode!r}", cure)


def play_candidates(env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
    """Plays every sequence in the environment itself, one after the other. It stays as it is, to the last
    bit.

    Args:
        env: with a running episode.
        actions: (N, K, action size), each as in `step`.
        decode: "last" or "frames"; "poses" shows nothing, and does without frames where the environment can.

    Raises:
        ValueError: a bad action; the message names its place. "latents", which no picture has.
    """
    check_decode(decode, env.task)
    if decode == "latents":
        raise ValueError("got decode='latents' where frames are exact; wanted 'last', 'frames' or 'poses'")
    actions = env.rules.check_sequences(actions)
    check_room_for(actions, decode, env.image_size)
    shows = decode != "poses"
    candidates, ended = [env.episode] * len(actions), np.zeros(len(actions), np.bool_)
    shown: list[list[Frames]] = [[] for _ in actions]
    poses = np.empty((*actions.shape[:2], 24, 4, 4))
    rewards, terminated = np.zeros(actions.shape[:2]), np.zeros(actions.shape[:2], np.bool_)
    for k in range(actions.shape[1]):
        paths = env.rules.wish_each(np.stack([candidate.c2w for candidate in candidates]), actions[:, k])
        for i, wish in enumerate(paths):
            advance = env.advance if shows else env.reach
            frames, path, state = advance(candidates[i], wish)
            step = env.rules.judge(candidates[i], actions[i, k], frames, path, state, imagined=True)
            candidates[i], poses[i, k] = step.episode, path
            if shows:
                shown[i].append(frames if decode == "frames" else frames[-1].copy())
            if not ended[i]:
                rewards[i, k], ended[i] = step.reward, step.terminated
        terminated[:, k] = ended
    pictures: NDArray[np.uint8] | None = np.stack([np.stack(row) for row in shown]) if shows else None
    return Imagined(None, pictures, poses, rewards, terminated)
