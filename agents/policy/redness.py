"""A task whose reward is seen in the picture, so that a policy has to look: turn and walk towards what is
red.
"""

from dataclasses import dataclass

import numpy as np

from sana_wm_env.observations import Frames
from sana_wm_env.tasks import Goal, Moment, Opening, Task, Verdict


@dataclass(frozen=True)
class RednessTask(Task):
    """Make the picture redder: a step is worth `scale` times what the newest frame's redness has gained.

    Redness is red minus the mean of green and blue, averaged over the frame, from -1 to 1. An episode's
    return is `scale` times the redness of its last frame less that of its first, in the world that shows
    them: imagined frames in an imagined world, true ones in the exact rooms. Which way is red differs from
    room to room.
    """

    scale: float = 10.0

    uses_frames = True

    def begin(self, opening: Opening) -> Goal:
        """`redness` () of the newest frame, the first at the beginning."""
        return {"redness": np.array(redness(opening.frame))}

    def judge(self, goal: Goal, moment: Moment) -> Verdict:
        """Rewards the gain; never ends."""
        now = redness(moment.frames[-1])
        return Verdict(self.scale * (now - float(goal["redness"])), False, {"redness": np.array(now)})


def redness(frame: Frames) -> float:
    """Red minus the mean of green and blue of a frame uint8 (H, W, 3), -1 to 1."""
    red, green, blue = frame.reshape(-1, 3).mean(0, dtype=np.float64) / 255
    return float(red - (green + blue) / 2)
