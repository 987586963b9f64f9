"""Paths that no camera took: jumps, rows in the wrong places, stretches in other axes. Every check names the
frame and the likely cause.

Where the limits come from: a walk through a room moves 0.025 m and turns 0.7 degrees a frame at most, the
fastest keys 0.05 m; a hand that turns a phone as fast as it can makes 200 degrees a second, 25 in a frame
at 8 frames per second. A camera that speeds up does so over several frames, so a step is held against the
steps around it as well as against the whole clip.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import Array

JUMP = 2.5
"""How many times longer than usual a step may be: than the median of the moving frames, and than those
around.
"""

JUMP_M = 0.1
"""Metres: shorter steps are no jumps, whatever the rest of the clip does."""

RESTLESS_M = 0.05
"""Metres that no hand shakes to and fro from frame to frame."""

RESTLESS_SHARE = 0.05
"""The same as a share of the whole path's extent, where there is no unit."""

TURN_DEG = 25.0
"""Degrees from one frame to the next."""

AROUND = 11
"""Frames before and after a step whose median it is held against."""

MOVING = 1e-4
"""Metres: a camera that makes less in a frame stands."""

SUSPECTS = 16
"""Rows that are tried as swapped ones: those that lie farthest off the line between their neighbours."""


def describe_fault(c2w: Array, metric: bool = True) -> str | None:
    """What is wrong with a path (F, 4, 4) as one sentence, None if a camera can have taken it.

    metric: translations are metres; otherwise only their proportions count.
    """
    if len(c2w) < 3:
        return None
    if pair := swapped_rows(c2w):
        return (
            f"got poses whose rows {pair[0]} and {pair[1]} are swapped: the path is smooth when they change "
            "places; wanted a row per frame, in the order of the frames"
        )
    steps = _steps(c2w)
    if np.median(steps) > (
        RESTLESS_M if metric else RESTLESS_SHARE * np.ptp(c2w[:, :3, 3], axis=0).max()
    ) and np.median(_bends(c2w)) > 0.75 * np.median(steps):
        return (
            f"got poses that go back and forth by {np.median(steps):.2f} m at every frame, first at frame 1; "
            "wanted a row per frame, in the order of the frames"
        )
    jumps = find_jumps(c2w, metric)
    if len(jumps) > 1 and _is_sorted_as_text(c2w, metric):
        return (
            f"got poses that jump {len(jumps)} times, first at frame {jumps[0] + 1}, because their rows are "
            "sorted as text (0, 1, 10, 11, ...); wanted them in the order of the frames"
        )
    if len(jumps):
        return _tell(c2w, jumps)
    return None


def find_jumps(c2w: Array, metric: bool = True) -> NDArray[np.int64]:
    """The frames after which a path (F, 4, 4) jumps, rising."""
    steps = _steps(c2w)
    moving = steps[steps > (MOVING if metric else 0)]
    usual = np.median(moving) if len(moving) else 0.0
    least = JUMP_M if metric else 2 * JUMP * usual
    suspects = np.flatnonzero((steps > JUMP * usual) & (steps > least)).tolist()
    far = [index for index in suspects if steps[index] > JUMP * _around(steps, index)]
    return np.union1d(far, np.flatnonzero(_turns(c2w) > TURN_DEG)).astype(np.int64)


def swapped_rows(c2w: Array) -> tuple[int, int] | None:
    """Two rows of a path (F, 4, 4) that have changed places, if it is smooth once they change back."""
    rows = _rows(c2w)
    off = _off(rows, np.arange(len(rows)))
    suspects = np.argsort(-off, kind="stable")[:SUSPECTS]
    suspects = np.sort(suspects[off[suspects] > max(0.01, 4 * np.median(off))])
    best, found = 0.2, None
    for one, other in combinations(suspects.tolist(), 2):
        near = np.unique(np.clip([k + d for k in (one, other) for d in (-1, 0, 1)], 0, len(rows) - 1))
        before = off[near].sum()
        rows[[one, other]] = rows[[other, one]]
        share = _off(rows, near).sum() / before
        rows[[one, other]] = rows[[other, one]]
        if share < best:
            best, found = share, (one, other)
    return found


def _tell(c2w: Array, jumps: NDArray[np.int64]) -> str:
    """The sentence about jumps: one is a cut, two are a stretch that lies or looks elsewhere."""
    steps, turns, first = _steps(c2w), _turns(c2w), int(jumps[0])
    turned = turns[first] > TURN_DEG
    size = f"turns {turns[first]:.0f} degrees" if turned else f"jumps {steps[first]:.2f} m"
    usual = np.median(turns) if turned else np.median(steps)
    given = f"got a camera that {size} from frame {first} to frame {first + 1}"
    given += f" (usual: {usual:.2f} {'degrees' if turned else 'm'})"
    more = f"; {len(jumps)} such places" if len(jumps) > 2 else ""
    if len(jumps) == 1:
        return (
            f"{given}; wanted one shot: a cut in the video, or a track that was lost and found again? Cut "
            f"the video at frame {first + 1}"
        )
    second = int(jumps[1])
    stretch = f"frame {first + 1} is" if second == first + 1 else f"frames {first + 1} to {second} are"
    if turned and abs(turns[first] - turns[second]) < 15:
        cause = f"{stretch} turned by {turns[first]:.0f} degrees against the rest, as if in other axes"
    else:
        cause = f"{stretch} elsewhere: a row of another clip, or a lost track?"
    return f"{given}; wanted a path that a camera can take: {cause}{more}"


def _is_sorted_as_text(c2w: Array, metric: bool) -> bool:
    for start in (0, 1):
        shown = sorted(range(len(c2w)), key=lambda index, start=start: str(index + start))
        if len(c2w) > 10 and not len(find_jumps(c2w[np.argsort(shown)], metric)):
            return True
    return False


def _steps(c2w: Array) -> Array:
    """Metres from each frame to the next: (F - 1,)."""
    return np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1)


def _turns(c2w: Array) -> Array:
    """Degrees from each frame to the next: (F - 1,)."""
    rotation = Rotation.from_matrix(c2w[:, :3, :3])
    return np.degrees((rotation[:-1].inv() * rotation[1:]).magnitude())


def _bends(c2w: Array) -> Array:
    """Metres by which each step differs from the one before: (F - 2,)."""
    return np.linalg.norm(np.diff(c2w[:, :3, 3], 2, axis=0), axis=1)


def _around(steps: Array, index: int) -> float:
    """The larger of the medians of the steps before and after one."""
    sides = steps[max(0, index - AROUND) : index], steps[index + 1 : index + 1 + AROUND]
    return max(float(np.median(side)) if len(side) else 0.0 for side in sides)


def _rows(c2w: Array) -> Array:
    """Position and axes as one row per frame, (F, 12): a metre counts as much as a radian."""
    return np.concatenate([c2w[:, :3, 3], c2w[:, :3, :3].reshape(-1, 9)], 1)


def _off(rows: Array, which: NDArray[np.int64]) -> Array:
    """How far some rows lie from the middle of their neighbours; at the ends, from the line of the next
    two.
    """
    middle = np.clip(which, 1, len(rows) - 2)
    bend = rows[middle - 1] - 2 * rows[middle] + rows[middle + 1]
    return np.linalg.norm(bend, axis=1) / 2
