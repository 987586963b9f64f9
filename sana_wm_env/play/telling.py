"""What a page is told of a session, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import worlds
from .pilot import inline

if TYPE_CHECKING:
    from ..episode import Step
    from .session import Session
    from .timeline import Moment


def snapshot(session: Session) -> dict[str, Any]:
    """All that a page needs to show a session."""
    timeline, opening, rules = session.timeline, session.opening, session.env.rules
    goal = session.env.episode.goal.get("goal_image")
    return {
        "session": session.id,
        "epoch": session.epoch,
        "world": rules.world,
        "task": rules.task.name.removesuffix("Task").lower(),
        "goal": None if goal is None else inline(goal),
        "size": list(rules.image_size),
        "moments": [describe_moment(moment) for moment in timeline.moments.values()],
        "present": timeline.present,
        "seq": session.controls.seq,
        "caption": "" if opening is None else opening.caption,
        "room": None if opening is None else opening.options.get("room"),
        "seed": None if opening is None else opening.seed,
        "map": worlds.map_of(None if opening is None else opening.room),
        "knowsTruth": session.room is not None,
        "truth": session.shows_truth,
        "flow": session.flow,
        "walls": session.stops_at_walls,
        "agent": None if session.pilot is None else session.pilot.name,
        "recording": session.recording is not None,
        "bytes": timeline.nbytes,
        "cap": timeline.cap,
    }


def describe_moment(moment: Moment) -> dict[str, Any]:
    """A moment as the page keeps it."""
    return {
        "id": moment.id,
        "parent": moment.parent,
        "chunk": moment.chunk,
        "pose": moment.c2w[:3].ravel().round(5).tolist(),
        "reward": moment.reward,
        "kept": moment.is_kept,
    }


def describe_step(session: Session, moment: Moment, step: Step) -> dict[str, Any]:
    """A step, its moment, and what the task says of it."""
    info = session.env.rules.info(step.episode, step.c2w, len(step.frames))
    plain = {
        name: round(float(value), 3)
        for name, value in info.items()
        if isinstance(value, bool | float | np.floating | np.bool_)
    }
    room = None if session.opening is None else session.opening.room
    return {
        "epoch": session.epoch,
        "chunk": step.episode.chunk_index,
        "moment": describe_moment(moment),
        "task": plain,
        "terminated": step.terminated,
        "inside": not worlds.stands_in_the_open(room, step.c2w[-1]),
    }
