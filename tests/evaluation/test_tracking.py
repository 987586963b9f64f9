"""Paths that are known, read back from exact renderings, sharp and as worlds leave them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sana_wm_env.camera import relative_to_first
from sana_wm_env.evaluation.episodes import Episodes, draw_episodes
from sana_wm_env.evaluation.poses import pose_errors
from sana_wm_env.evaluation.tracking import GAP, track
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.render import render

SIZE = (64, 64)
INTRINSICS = torch.tensor(default_intrinsics(SIZE)).expand(3, 4)


@pytest.fixture(scope="module")
def drive() -> tuple[Episodes, torch.Tensor, np.ndarray]:
    """Three held-out rooms, two chunks: plan, true frames (3, 7, 64, 64, 3), true paths relative to the first
    frame.
    """
    plan = draw_episodes(count=3, chunks=2, seed=40)
    frames = render(plan.scenes, plan.path[:, ::GAP], INTRINSICS, SIZE).rgb
    return plan, frames, np.stack([relative_to_first(path) for path in plan.path[:, ::GAP].numpy()])


def errors(drive, frames: torch.Tensor, with_room: bool = True) -> tuple[float, float]:
    """Largest of the last frame's errors, degrees and metres."""
    plan, _, true = drive
    paths = track(frames, plan.scenes, plan.path[:, 0], INTRINSICS, with_room)
    each = [pose_errors(path, wanted) for path, wanted in zip(paths, true, strict=True)]
    return max(e.rot_err_deg[-1] for e in each), max(e.trans_err_m[-1] for e in each)


def moved(drive) -> tuple[float, float]:
    still = np.tile(np.eye(4), (7, 1, 1))
    each = [pose_errors(still, wanted) for wanted in drive[2]]
    return max(e.rot_err_deg[-1] for e in each), max(e.trans_err_m[-1] for e in each)


def test_a_true_video_gives_its_path(drive):
    degrees, metres = moved(drive)
    assert degrees > 5 and metres > 0.3  # or there would be nothing to read
    by_room, by_frames = errors(drive, drive[1]), errors(drive, drive[1], with_room=False)
    assert by_room[0] < 0.8 and by_room[1] < 0.06
    assert by_frames[0] < 3 and by_frames[1] < 0.2


def test_a_blurred_and_faded_video_still_does(drive):
    flat = drive[1].flatten(0, 1).movedim(-1, 1).float()
    faded = 128 + 0.6 * (F.avg_pool2d(flat, 5, 1, 2, count_include_pad=False) - 128)
    worse = faded.movedim(1, -1).round().to(torch.uint8).unflatten(0, drive[1].shape[:2])
    degrees, metres = errors(drive, worse)
    assert degrees < 3 and metres < 0.2


def test_a_video_that_stands_still_gives_no_motion(drive):
    plan, frames, _ = drive
    still = frames[:, :1].expand(-1, 4, -1, -1, -1)
    for with_room in (True, False):
        paths = track(still, plan.scenes, plan.path[:, 0], INTRINSICS, with_room)
        np.testing.assert_allclose(paths, np.broadcast_to(np.eye(4), paths.shape), atol=1e-6)


def test_each_video_is_read_by_itself(drive):
    plan, frames, _ = drive
    together = track(frames[:, :3], plan.scenes, plan.path[:, 0], INTRINSICS)
    alone = track(frames[1:2, :3], plan.scenes[1:2], plan.path[1:2, 0], INTRINSICS[1:2])
    np.testing.assert_allclose(
        together[1:2], alone, atol=2e-3
    )  # the neighbours decide how often all are refined


def test_frames_that_cannot_be_read_are_refused(drive):
    plan, frames, _ = drive
    for wrong in (frames.float(), frames[:, 0], frames[:, :, :16]):
        with pytest.raises(ValueError, match="wanted uint8"):
            track(wrong, plan.scenes, plan.path[:, 0], INTRINSICS)
