"""Which estimates are not believed, with the numbers of SANA-WM's authors.

Their pipeline refuses clips by pose jumps of 2.5 times the usual step or 25 degrees, more than a fifth of
outliers or five in a row, more than a tenth of missing frames, a residual above 0.005, less than five percent
of the picture at rest; their paper, by fields of view outside 25 to 120 degrees, focal lengths that differ by
a fifth, and a scale that varies by twice its mean. Jumps and axes are those of `train/data/motion.py`,
cameras those of `train/data/filters.py`. The residual is taken as a share of the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.camera import Array

from ..data.filters import Ranges, bad_camera, rejected
from ..data.motion import TURN_DEG, describe_fault, find_jumps
from ..data.sidecars import ClipError
from .poses import Clip, PoseEstimate

MISSING_SHARE, MISSING_RUN = 0.10, 5
OUTLIER_SHARE, OUTLIER_RUN = 0.20, 5
RESIDUAL = 0.005
VALID_SHARE = 0.05
SCALE_VARIATION = 2.0
SECOND_MODEL_SHARE = 0.10
STRAY_SHARE = 0.35
"""Of corners, in the median pair: more do not move as the poses say. Ours; the others are the authors'."""


@dataclass(frozen=True)
class Evidence:
    """What the guards look at.

    estimate: as the backend gave it. c2w: (F, 4, 4) without gaps, scaled. intrinsics_px: (F, 4). metric: its
    unit is the metre. scale_variation: 0 where nothing is known. strays: share of corners that move
    otherwise than the poses say.
    """

    clip: Clip
    estimate: PoseEstimate
    c2w: Array
    intrinsics_px: Array
    metric: bool
    scale_variation: float
    strays: float


def check_masks(valid: NDArray[np.bool_]) -> None:
    """ClipError if moving things leave too little of the pictures (F, H, W)."""
    share = float(np.median(valid.mean((1, 2))))
    if share < VALID_SHARE:
        raise ClipError(
            "moving things",
            f"got moving things that cover {1 - share:.0%} of the picture; wanted at least {VALID_SHARE:.0%} "
            "at rest",
        )


def check_registration(estimate: PoseEstimate) -> None:
    """ClipError if too many frames have no pose, or the clip falls into several models."""
    frames, there = len(estimate.c2w), estimate.registered
    missing = 1 - float(there.mean())
    second = estimate.models[1] if len(estimate.models) > 1 and estimate.models[0] < frames else 0
    if missing > MISSING_SHARE and second > SECOND_MODEL_SHARE * frames:
        raise ClipError(
            "several models",
            f"got {len(estimate.models)} models of {', '.join(map(str, estimate.models))} frames, which "
            "nothing "
            f"joins, out of {frames} frames; wanted one scene at rest: cut the video between two scenes, "
            "or mask "
            "what moves through the picture",
        )
    if missing > MISSING_SHARE:
        raise ClipError(
            "missing poses",
            f"got no pose for {frames - int(there.sum())} of {frames} frames; wanted them for "
            f"{1 - MISSING_SHARE:.0%}",
        )
    if (run := _longest_run(~there)) > MISSING_RUN:
        raise ClipError(
            "missing poses", f"got no pose for {run} frames in a row; wanted {MISSING_RUN} at most"
        )


def check_estimate(evidence: Evidence) -> None:
    """ClipError that names the first guard that an estimate does not pass."""
    _check_residual(evidence)
    _check_outliers(evidence)
    if fault := describe_fault(evidence.c2w, evidence.metric):
        raise ClipError("pose jump", fault)
    for row in np.unique(evidence.intrinsics_px, axis=0):
        if fault := bad_camera(tuple(row), evidence.clip.size):
            raise ClipError("camera", f"got fx, fy, cx, cy = {np.round(row, 1).tolist()}: {fault}")
    if evidence.scale_variation > SCALE_VARIATION:
        raise ClipError(
            "scale",
            f"got a scale whose deviation is {evidence.scale_variation:.2f} times its mean; wanted "
            f"{SCALE_VARIATION:g} at most",
        )
    if evidence.strays > STRAY_SHARE:
        raise ClipError(
            "moving things",
            f"got {evidence.strays:.0%} of the picture moving otherwise than the camera explains; wanted a "
            f"scene at rest ({STRAY_SHARE:.0%} at most), or masks of what moves",
        )


def check_scores(scores: dict[str, float | None], ranges: Ranges) -> None:
    """ClipError for a clip that the paper's filters drop."""
    if why := rejected(scores, ranges):
        raise ClipError("filter", f"got {why}; wanted a clip that the filter keeps")


def _check_residual(evidence: Evidence) -> None:
    known = evidence.estimate.residual_px[np.isfinite(evidence.estimate.residual_px)]
    if len(known) and (share := float(np.median(known)) / evidence.clip.size[1]) > RESIDUAL:
        raise ClipError(
            "residual",
            f"got points that are seen {share:.2%} of the width from where they should be; wanted "
            f"{RESIDUAL:.1%} at most",
        )


def _check_outliers(evidence: Evidence) -> None:
    """Frames after a jump, and frames whose points lie off."""
    outliers = np.zeros(len(evidence.c2w), bool)
    outliers[find_jumps(evidence.c2w, evidence.metric) + 1] = True
    with np.errstate(invalid="ignore"):
        outliers |= evidence.estimate.residual_px > RESIDUAL * evidence.clip.size[1]
    share, run = float(outliers.mean()), _longest_run(outliers)
    if share > OUTLIER_SHARE or run > OUTLIER_RUN:
        raise ClipError(
            "outliers",
            f"got {share:.0%} of the frames after jumps (2.5 times the usual step, {TURN_DEG:g} degrees) "
            "or with "
            f"points that lie off, {run} in a row; wanted {OUTLIER_SHARE:.0%} and {OUTLIER_RUN} at most",
        )


def _longest_run(flags: NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0
