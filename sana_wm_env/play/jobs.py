"""What a visitor asks for beside walking. Each job is run between two chunks; what fails, fails before
anything changes, and the page is told why.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import controls as control
from . import worlds
from .archive import open_archive, save_archive
from .messages import encode_thumbnail
from .pilot import make_pilot
from .pool import places_of_state
from .telling import snapshot
from .timeline import Moment

if TYPE_CHECKING:
    from ..base import CameraEnv
    from ..episode import Step
    from .session import Session
    from .worlds import Opening, WorldChoice

FUTURE_CHUNKS = 2
"""How far futures look ahead."""
FUTURE_WISHES = {
    "ahead": (0.0, 1.0, 0.0, 0.0),
    "left": (0.0, 0.4, -1.0, 0.0),
    "right": (0.0, 0.4, 1.0, 0.0),
    "back": (0.0, -1.0, 0.0, 0.0),
}
"""Futures by actions: right, forward, turn right, look up of each."""


async def start(session: Session, seed: int | None, options: dict[str, Any]) -> None:
    """Begins anew: options as of the environment's reset; `room` of exact rooms too."""
    seed = secrets.randbelow(2**31) if seed is None else seed
    given = {name: value for name, value in options.items() if value is not None}
    if worlds.shows_truth_itself(session.env):
        given.pop("prompt", None)
    opening = await asyncio.to_thread(worlds.begin, session.env, seed, given)
    await stop_recording(session)
    session.timeline.clear()
    await _arrive_at_start(session, opening, fresh=True)


async def begin_from_picture(session: Session, picture: Any, fov_deg: float, prompt: str) -> None:
    """Begins anew from a visitor's picture, uint8 (H, W, 3)."""
    if worlds.shows_truth_itself(session.env):
        raise ValueError("got a picture; this world renders rooms and imagines nothing")
    await start(session, None, {"image": picture, "fov_deg": fov_deg, "prompt": prompt})


async def _arrive_at_start(session: Session, opening: Opening, fresh: bool) -> None:
    """The first moment of a beginning, or of an opened file."""
    env = session.env
    session.opening = opening
    session.futures = session.pilot = None
    session.controls = control.release(session.controls)
    episode = env.episode
    session.timeline.present = None
    session.timeline.add(
        chunk=episode.chunk_index,
        c2w=episode.c2w.copy(),
        thumbnail=encode_thumbnail(env.newest_frame(episode)),
        episode=episode,
        fresh=fresh,
    )
    session.jump()
    await session.tell({"kind": "welcome", **snapshot(session)})
    await session.show_still()


async def go(session: Session, moment: int) -> None:
    """Goes to a moment, or to the last one before it whose state is kept."""
    try:
        target = session.timeline.nearest_kept(moment)
    except KeyError:
        raise ValueError(f"got the moment {moment}, which is not there any more") from None
    await stop_recording(session)
    await resume(session, target)
    session.futures = session.pilot = None
    session.jump()
    await session.tell(
        {
            "kind": "jumped",
            "epoch": session.epoch,
            "present": target.id,
            "chunk": target.chunk,
            "asked": moment,
        }
    )
    await session.show_still()


async def resume(session: Session, target: Moment) -> None:
    """Makes a moment the present, reading its state back if it lies in a file."""
    from ..base import Start

    if target.episode is None:
        target.episode = await asyncio.to_thread(worlds.load_episode, session.env, target.file)
    session.env.begin(Start(target.episode), None)
    session.timeline.present = target.id


async def show_futures(session: Session, by: str) -> None:
    """Branches the present into four: by what is done, or by what is imagined for the same."""
    session.pilot = None
    session.controls = control.release(session.controls)
    futures = await asyncio.to_thread(_futures, session.env, by)
    session.futures = futures
    names = list(FUTURE_WISHES) if by == "actions" else [f"noise {i + 1}" for i in range(len(futures))]
    session.jump()
    await session.tell(
        {
            "kind": "futures",
            "epoch": session.epoch,
            "names": names,
            "frames": sum(len(step.frames) for step in futures[0]),
            "ends": [branch[-1].c2w[-1][:3].ravel().round(5).tolist() for branch in futures],
        }
    )
    await session.show_futures(
        [np.concatenate([step.frames for step in branch]) for branch in futures],
        [np.concatenate([step.c2w for step in branch]) for branch in futures],
    )


def _futures(env: CameraEnv, by: str) -> list[list[Step]]:
    """Four branches of the present, of `FUTURE_CHUNKS` chunks each, in one forward per chunk."""
    apart = by == "noises"
    if apart and worlds.shows_truth_itself(env):
        raise ValueError("got futures by noise; this world renders rooms, so there is only one")
    fork: Any = env.fork(len(FUTURE_WISHES), independent_noise=apart)  # type: ignore[attr-defined]
    episodes = [slot.episode for slot in fork.slots]
    wishes = list(FUTURE_WISHES.values())
    if apart:
        wishes = [FUTURE_WISHES["ahead"]] * len(wishes)
    branches: list[list[Step]] = [[] for _ in episodes]
    for _ in range(FUTURE_CHUNKS):
        actions = [
            control.drive(control.Wish(wish, (0.0, 0.0)), episode.c2w[:3, :3], env.rules.limits)
            for wish, episode in zip(wishes, episodes, strict=True)
        ]
        paths = [env.rules.wish(episode, action) for episode, action in zip(episodes, actions, strict=True)]
        advanced = env.advance_each(episodes, paths)
        for i, (frames, c2w, state) in enumerate(advanced):
            state = state.detached() if hasattr(state, "detached") else state
            step = env.rules.judge(episodes[i], actions[i], frames, c2w, state)
            branches[i].append(step)
            episodes[i] = step.episode
    return branches


async def pick(session: Session, future: int | None) -> None:
    """Goes on in one of the futures; None stays in the present."""
    futures, session.futures = session.futures, None
    if futures is None:
        raise ValueError("got a choice; there are no futures to choose from")
    if future is not None:
        await stop_recording(session)
        for step in futures[future]:
            session.env.arrive(step)
            session.timeline.add(
                chunk=step.episode.chunk_index,
                c2w=step.c2w[-1].copy(),
                thumbnail=await asyncio.to_thread(encode_thumbnail, step.frames[-1]),
                reward=step.reward,
                episode=step.episode,
                fresh=True,
                places=places_of_state(step.episode),
            )
        session.timeline.thin()
    session.jump()
    await session.tell({"kind": "welcome", **snapshot(session)})
    await session.show_still()


async def set_pilot(session: Session, name: str | None, policy: Path | None) -> None:
    """Gives an agent the controls, or takes them back."""
    pilot = None
    if name is not None:
        seed = 0 if session.opening is None else session.opening.seed
        pilot = await asyncio.to_thread(make_pilot, name, session.env, policy, seed)
    session.pilot = pilot
    await session.tell({"kind": "agent", "name": name})


# ---- files


async def record(session: Session, on: bool) -> None:
    """Begins a recording with the present picture, or ends it."""
    if not on:
        await stop_recording(session)
        return
    if session.recording is not None:
        raise ValueError("got the wish to record; it is recorded already")
    from ..camera import FPS
    from ..recorder import Recording
    from ..video import VideoWriter

    await session.record_seen()
    seed = None if session.opening is None else session.opening.seed
    recording = Recording(VideoWriter(session.folder / f"{session.id}.mp4", FPS), seed)
    episode = session.env.episode
    frame = session.env.newest_frame(episode)[None]
    info = session.env.rules.info(episode, episode.c2w[None], 1)
    await asyncio.to_thread(recording.add, frame, info)
    session.recording = recording
    await session.tell({"kind": "recording", "on": True})


async def stop_recording(session: Session) -> None:
    """Finishes the video and its poses, where one is recorded."""
    await session.record_seen()
    recording, session.recording = session.recording, None
    if recording is not None:
        frames = recording.video.n_frames
        await asyncio.to_thread(recording.close)
        await session.tell({"kind": "recording", "on": False, "frames": frames})


async def save(session: Session, path: Path) -> None:
    """Writes the present as a file that `open_file` takes."""
    if session.opening is None:
        raise ValueError("got the wish to save; no episode is running")
    await asyncio.to_thread(save_archive, path, session.env, session.env.episode, session.opening)


async def open_file(session: Session, path: Path) -> None:
    """Goes on from a file that `save` wrote, or from a saved state alone; checked as a stranger's."""
    episode, opening = await asyncio.to_thread(open_archive, path, session.env)
    from ..base import Start

    session.env.begin(Start(episode), None)
    await stop_recording(session)
    session.timeline.clear()
    await _arrive_at_start(session, opening, fresh=True)


async def export(session: Session, choice: WorldChoice) -> None:
    """Writes the way to the present as an episode of a Minari dataset: imagined once more from its last
    start, so that `sana_wm_env.minari.replay` finds it exact.
    """
    line = session.timeline.line()
    first = max(i for i, moment in enumerate(line) if moment.fresh or moment.action is None)
    actions = [moment.action for moment in line[first + 1 :] if moment.action is not None]
    if not actions:
        raise ValueError("got no chunk to export; walk first, for one chunk at least")
    if choice.env == worlds.DUMMY:
        raise ValueError("got the wish to export; the dummy world is in no dataset")
    options: dict[str, Any] = {}
    if session.opening is not None and first == 0 and "file" not in session.opening.options:
        options = dict(session.opening.options)
    else:
        options = {"moment": line[first]}
    name = await asyncio.to_thread(_export, session, choice, options, actions)
    await session.tell({"kind": "exported", "dataset": name, "steps": len(actions)})


def _export(session: Session, choice: WorldChoice, options: dict[str, Any], actions: list[Any]) -> str:
    """Plays actions again under Minari's recorder. Returns the name of the dataset."""
    from ..extras import check_installed

    check_installed("minari", "the export of a session")
    import gymnasium as gym

    from ..base import Start
    from ..minari import RecordMinari

    if "moment" in options:
        moment = options["moment"]
        if not moment.is_kept:
            raise ValueError("got a start whose state was thinned out; export the way while it is younger")
        other: Any = session.env.twin()
        episode = moment.episode or worlds.load_episode(session.env, moment.file)
        other.begin(Start(episode), None)
        options = {"state": other.save_state()}
    env: Any = gym.make(choice.env, disable_env_checker=True, max_episode_steps=10**6, **choice.arguments())
    if hasattr(session.env, "model"):
        env.unwrapped.model = session.env.model  # type: ignore[attr-defined]
    name = f"sana-wm/play-{secrets.token_hex(4)}-v0"
    seed = 0 if session.opening is None else session.opening.seed
    with RecordMinari(env, name, description="a walk in sana-wm play") as recorded:
        recorded.reset(seed=seed, options=options or None)
        for action in actions:
            recorded.step(action)
    return name


async def park(session: Session) -> None:
    """Moves all states to disk. They come back one by one, when they are gone to."""
    for moment in session.timeline.moments.values():
        if moment.episode is not None:
            path = session.folder / f"{session.id}-{moment.id}.state"
            await asyncio.to_thread(worlds.save_episode, session.env, moment.episode, path)
            moment.file, moment.episode = path, None
    session.futures = None
    session.env = session.env.twin()  # without an episode


async def unpark(session: Session) -> None:
    """Reads the present back."""
    if session.timeline.moments:
        await resume(session, session.timeline.now)
