"""Sessions as values: to and from an episode; and imagination: where N sequences of K actions would lead."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from sana_wm_env.model.world import WorldModel, WorldState

from .camera import Array, compose
from .candidates import Decode, Imagined, Pictures, check_candidates, judge_candidates
from .episode import Episode, Rules
from .observations import Frames


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
    refine: bool = False,
    origin: Array | None = None,
    first: int = 0,
) -> Imagined:
    """Imagines the outcome of sequences of actions. Uses the rules' task and the episode's pose; the model
    knows only the walls it has seen.

    Args:
        rules: of the environment in which the actions would be taken.
        episode: the one that is running there.
        world: what imagines.
        state: one session of the world, as far as the episode has come.
        actions: (N, K, action size), each as in `env.step`.
        decode: what to decode: "latents" nothing, "last" the newest frame of every chunk, "frames" all. A
            task that judges frames has them decoded in any case. "poses" does not even run the network, for a
            task that does not look at frames.
        memory_mib: how much memory candidates may take beside what is returned; they are played in batches
            that fit, of one at least.
        independent_noise: whether candidates have noise of their own.
        refine: whether frames go through the refiner, where there is one. Latents are stage 1's in any case.
        origin: (4, 4) where the session's raw frame 0 lies in the episode; None for the same first frame.
        first: place of the first sequence among all candidates, where others imagine the rest; noise of their
            own follows from their places.

    Raises:
        ValueError: a bad action; the message names its place. "poses" for a task that looks at frames.
    """
    actions, memory_mib = check_candidates(rules, actions, decode, memory_mib, independent_noise)
    rows = state.expand(len(actions))
    if independent_noise:
        rows = with_own_noise(rows, first)
    to_session = None if origin is None else RigidTransform.from_matrix(origin).inv().as_matrix()
    each = 2 * state.nbytes + max(
        world.needed.forward, world.needed.decode, refine * world.needed.refine
    )  # the state before and after, and what makes it

    def play(batch: slice, paths: Array, decodes: bool) -> Iterator[Pictures]:
        poses = torch.from_numpy(paths if to_session is None else compose(to_session, paths))
        for chunk in world.play(rows[batch], poses.flatten(1, 2), decode=decodes, refine=refine):
            yield Pictures(chunk.latents.float().cpu().numpy(), chunk.frames.cpu().numpy())

    return judge_candidates(rules, episode, actions, decode, play, int(memory_mib * 2**20 / each))


def encode_image(world: WorldModel, image: Frames) -> NDArray[np.float32]:
    """The latent (C, h, w) of a frame, uint8 (H, W, 3)."""
    return world.encode(torch.from_numpy(image)[None, None])[0, :, 0].float().cpu().numpy()


def state_of(episode: Episode) -> WorldState:
    """Returns the session of an episode, its goal included."""
    return replace(
        episode.state,
        task={key: torch.from_numpy(np.array(value)[None]) for key, value in episode.goal.items()},
    )


def episode_of(state: WorldState, model: WorldModel) -> Episode:
    """Returns the episode of a session: the inverse of `state_of`. ValueError for a batch, for a state of
    another world, and for what no session can be.
    """
    state = model.accept(check_is_state(state))
    if len(state) != 1:
        raise ValueError(f"got a state of {len(state)} sessions; wanted one: state[i]")
    return to_episode(state)


def check_is_state(state: Any) -> WorldState:
    """`state`; ValueError if it is none."""
    if not isinstance(state, WorldState):
        raise ValueError(
            f"got a {type(state).__name__}; wanted a WorldState, from save_state or WorldState.load"
        )
    return state


def to_episode(state: WorldState) -> Episode:
    """`episode_of` for a session that needs no check."""
    goal = {key: value[0].cpu().numpy().copy() for key, value in state.task.items()}
    c2w, intrinsics = state.c2w[0].cpu().numpy().copy(), state.intrinsics_px[0].cpu().numpy().copy()
    return Episode(replace(state, task={}), c2w, intrinsics, int(state.chunk_index[0]), goal)


def with_own_noise(state: WorldState, first: int = 0) -> WorldState:
    """Rows whose noise differs from here on, seeded from what each row's generator would draw next and its
    place, counted from `first`.
    """
    rows, generator = [], torch.Generator()
    for place, row in enumerate(state.generators, first):
        generator.set_state(row.clone())
        seeds = torch.randint(2**63 - 1, (place + 1,), generator=generator)
        rows.append(generator.manual_seed(int(seeds[-1])).get_state())
    return replace(state, generators=torch.stack(rows))
