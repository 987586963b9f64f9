"""Poses that somebody has already: the sidecar beside the video. Only scale and guards are left to do."""

from __future__ import annotations

from pathlib import Path

from ..data.sidecars import read_cameras
from ..data.videos import survey
from .poses import Clip, PoseEstimate


class GivenPoses:
    """The backend `poses`."""

    name = "poses"

    def check(self) -> None:
        """Needs nothing."""

    def estimate(self, clip: Clip, work: Path) -> PoseEstimate:
        """The rows of the sidecar that belong to the clip. ClipError if it cannot be used."""
        times, size, turn = survey(clip.source)
        cameras = read_cameras(clip.source, len(times), size, turn)
        return PoseEstimate.without_points(
            cameras.c2w[clip.chosen], cameras.intrinsics_px[clip.chosen], cameras.metric, "given poses"
        )
