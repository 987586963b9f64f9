"""LeRobotDataset v3, written and read with pyarrow and PyAV: for training elsewhere, and back. Needs the
extra `lerobot`, and lerobot itself not at all. Minari stays the exact format: a video here is compressed.

    sana-wm dataset export recordings/ --out walks     # of mp4 + npz, or the name of a Minari dataset
    sana-wm dataset validate walks
    sana-wm dataset import walks --out again

A row is a frame, 16 of them a second: `timestamp == frame_index / 16`. The action of a row leads from its
frame to the next; rows of one chunk have the same, or the pieces of it. The last frame of an episode
leads nowhere: its action is zero and `has_action` False. `next.reward` stands where the chunk's last frame
comes next.

layout     names of files and columns
sources    episodes out of recordings and Minari datasets
writer     an episode is there as a whole or not at all, whenever the process dies
reader     episodes back, and what is wrong with a dataset
command    `sana-wm dataset`
"""

from ..extras import check_installed

check_installed("pyarrow", "sana_wm_env.lerobot")

from .reader import find_faults, read_episodes  # noqa: E402  # the line to install pyarrow comes first
from .writer import LeRobotWriter  # noqa: E402

__all__ = ["LeRobotWriter", "find_faults", "read_episodes"]
