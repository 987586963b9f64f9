"""How far an estimated camera path is from the commanded one: RotErr, TransErr, CamMC, ATE and RPE under a
stated alignment.

Pure functions on (F, 4, 4) camera-to-world matrices, OpenCV axes, metres. A number of this kind means nothing
without its alignment, so every result carries it:

| alignment          | what is taken out of the estimate before it is compared                                             |
|--------------------|-----------------------------------------------------------------------------------------------------|
| `none`             | the pose of frame 0: both paths begin at the identity                                                |
| `scale`            | that, then one factor on the translations, least squares, at least 0                                 |
| `se3`              | a rigid motion: Umeyama's on the camera centres, without scale                                       |
| `sim3`             | a similarity: Umeyama's on the camera centres (what SANA-WM's paper states, section on evaluation)   |
| `rotation_product` | rotation from the mean of R_est R_ref^T, scale and shift from rotated translations (what the         |
|                    | released evaluation code does; PyTorch3D's `corresponding_cameras_alignment(mode="extrinsics")`)     |

`scale` and `sim3` never turn a path round by a negative factor; `rotation_product` may, as the released code
does. After `se3`, `sim3` and `rotation_product` frame 0 need not coincide. Centres that lie on one line, or
on one point, leave a rotation open to Umeyama's formula: it is the one that makes the orientations agree
best.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import tyro
from scipy.spatial.transform import Rotation

from ..arrays import read_array
from ..camera import FPS, Array, check_poses, relative_to_first
from ..files import write_json, write_whole
from ..outputs import Output, check_outputs
from ..settings import check_settings

Alignment = Literal["none", "scale", "se3", "sim3", "rotation_product"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
SCALED: tuple[Alignment, ...] = ("scale", "sim3", "rotation_product")
"""Alignments that find a scale, for which the reference has to move."""
STILL_M = 1e-6
TUM_FILES = ("estimated", "reference")
STILL = (
    "a reference that never moves: any path shrunk to a point would fit it, so no scale can be found and an "
    "error of 0 m would say nothing; wanted none or se3"
)
FIGURES = ("rot_err_deg", "trans_err_m", "cam_mc")
TIE_BREAK = 1e-9
"""Weight of orientations against centres in Umeyama's covariance: decides only what the centres leave
open.
"""


@dataclass(frozen=True)
class PoseErrors:
    """Errors of one path.

    Attributes:
        alignment: what was taken out first, one of `ALIGNMENTS`.
        scale: factor that it put on the estimated translations.
        rot_err_deg: (F,) angle between the orientations.
        trans_err_m: (F,) distance of the camera centres.
        cam_mc: (F,) Frobenius norm of the difference of the 3x4 matrices (CamMC; rotation entries and metres
            in one sum).
        rpe_trans_m: (F - delta,) translation part of the relative pose error over `delta` frames (Sturm et
            al. 2012).
        rpe_rot_deg: (F - delta,) its angle.
    """

    alignment: Alignment
    scale: float
    rot_err_deg: Array
    trans_err_m: Array
    cam_mc: Array
    rpe_trans_m: Array
    rpe_rot_deg: Array

    @property
    def ate_m(self) -> float:
        """Absolute trajectory error: root mean square of `trans_err_m`."""
        return _rms(self.trans_err_m)

    def summary(self) -> dict[str, float | str | None]:
        """Means over frames, and root mean squares where the name is known for them (ATE, RPE)."""
        means: dict[str, float | str | None] = {name: float(getattr(self, name).mean()) for name in FIGURES}
        moving = len(self.rpe_trans_m) > 0
        return {
            "alignment": self.alignment,
            "scale": self.scale,
            **means,
            "rot_err_last_deg": float(self.rot_err_deg[-1]),
            "trans_err_last_m": float(self.trans_err_m[-1]),
            "ate_rmse_m": self.ate_m,
            "rpe_trans_rmse_m": _rms(self.rpe_trans_m) if moving else None,
            "rpe_rot_rmse_deg": _rms(self.rpe_rot_deg) if moving else None,
        }


def pose_errors(
    estimated: Array, reference: Array, alignment: Alignment = "none", delta: int = 1
) -> PoseErrors:
    """Compares an estimated path with the reference, frame by frame.

    Args:
        estimated: (F, 4, 4) camera-to-world, OpenCV axes; metres, or any unit where the alignment finds the
            scale.
        reference: (F, 4, 4), metres.
        alignment: see the head of this module.
        delta: frames between the two poses of a relative pose error.

    Raises:
        ValueError: unknown alignment, unequal lengths, or what `camera.check_poses` refuses.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"got alignment={alignment!r}; wanted one of {', '.join(ALIGNMENTS)}")
    reference = relative_to_first(check_poses(reference, name="reference poses"))
    return compare_paths(
        relative_to_first(check_poses(estimated, len(reference), "estimated poses")),
        reference,
        alignment,
        delta,
    )


def compare_paths(
    estimated: Array, reference: Array, alignment: Alignment = "none", delta: int = 1
) -> PoseErrors:
    """Computes `pose_errors` without checks, of paths that are sound and relative to their first frame."""
    aligned, scale = align(estimated, reference, alignment)
    relative = np.linalg.inv(_between(reference, delta)) @ _between(aligned, delta)
    difference = aligned[:, :3] - reference[:, :3]
    return PoseErrors(
        alignment,
        scale,
        rot_err_deg=_angles_deg(reference[:, :3, :3].swapaxes(1, 2) @ aligned[:, :3, :3]),
        trans_err_m=np.linalg.norm(difference[..., 3], axis=-1),
        cam_mc=np.linalg.norm(difference, axis=(-2, -1)),
        rpe_trans_m=np.linalg.norm(relative[:, :3, 3], axis=-1),
        rpe_rot_deg=_angles_deg(relative[:, :3, :3]),
    )


compare = compare_paths  # the former name


def stands_still(path: Array) -> bool:
    """Whether a path (F, 4, 4) keeps its camera in one place, turned or not."""
    return bool(np.ptp(path[:, :3, 3], axis=0).max() < STILL_M)


def align(estimated: Array, reference: Array, alignment: Alignment) -> tuple[Array, float]:
    """The estimate (F, 4, 4) brought towards the reference (F, 4, 4), both relative to their first frame, and
    the scale it took.
    """
    turn, scale, shift = np.eye(3), 1.0, np.zeros(3)
    centres, targets = estimated[:, :3, 3], reference[:, :3, 3]
    if alignment == "scale":
        scale = max(0.0, _ratio((centres * targets).sum(), (centres**2).sum()))
    elif alignment in ("se3", "sim3"):
        turn, scale = _umeyama(estimated, reference, with_scale=alignment == "sim3")
        shift = targets.mean(0) - scale * turn @ centres.mean(0)
    elif alignment == "rotation_product":
        products = reference[:, :3, :3] @ estimated[:, :3, :3].swapaxes(1, 2)
        u, _, vt = np.linalg.svd(products.mean(0))
        turn = u @ vt
        brought = (products.swapaxes(1, 2) @ targets[..., None])[
            ..., 0
        ]  # where each frame's rotation would have the target
        scale = _ratio(*(((a - a.mean(0)) * (centres - centres.mean(0))).sum() for a in (brought, centres)))
        shift = turn @ (brought.mean(0) - scale * centres.mean(0))
    aligned = estimated.copy()
    aligned[:, :3, :3] = turn @ estimated[:, :3, :3]
    aligned[:, :3, 3] = scale * centres @ turn.T + shift
    return aligned, float(scale)


def _umeyama(estimated: Array, reference: Array, with_scale: bool) -> tuple[Array, float]:
    """Rotation and scale of least squares between camera centres (Umeyama 1991, equations 40 to 42)."""
    source, target = (path[:, :3, 3] - path[:, :3, 3].mean(0) for path in (estimated, reference))
    covariance = target.T @ source / len(source)
    orientations = (reference[:, :3, :3] @ estimated[:, :3, :3].swapaxes(1, 2)).mean(0)
    weight = TIE_BREAK * max(np.linalg.norm(covariance), np.finfo(float).tiny ** 0.5)
    u, _, vt = np.linalg.svd(covariance + weight * orientations)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    turn = u @ flip @ vt
    scale = max(0.0, _ratio(np.trace(turn.T @ covariance), (source**2).sum() / len(source)))
    return turn, scale if with_scale else 1.0


def _ratio(a: float, b: float) -> float:
    """Quotient, or 1 where b is 0 (the estimate stands still, so that no scale can be told)."""
    return float(a / b) if b > 1e-18 else 1.0


def _between(c2w: Array, delta: int) -> Array:
    return np.linalg.inv(c2w[:-delta]) @ c2w[delta:]


def _angles_deg(rotations: Array) -> Array:
    """Angles of rotations (N, 3, 3); by quaternions, so that a small one is not lost in an arc cosine."""
    return np.degrees(Rotation.from_matrix(rotations).magnitude()) if len(rotations) else np.zeros(0)


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def write_tum(path: Path, c2w: Array, times_s: Array) -> None:
    """Writes poses (F, 4, 4) in the text format of the TUM RGB-D benchmark, `time x y z qx qy qz qw`, for
    tools such as evo.
    """
    rows = np.column_stack([times_s, c2w[:, :3, 3], Rotation.from_matrix(c2w[:, :3, :3]).as_quat()])
    write_whole(path, lambda part: np.savetxt(part, rows, fmt="%.12g"))


def read_poses(path: Path) -> Array:
    """Poses (F, 4, 4) of a .npy file, or of the array `c2w` in a .npz (what `RecordChunks` and the minute
    benchmark write).

    Raises:
        ValueError: another kind of file, no such array, or what `camera.check_poses` refuses.
    """
    return check_poses(read_array(path, "c2w", "the poses"), name=str(path))


@dataclass(frozen=True)
class PosesConfig:
    """Paths to compare, and how."""

    estimated: Annotated[Path, tyro.conf.Positional]
    """camera-to-world poses (F, 4, 4) from any estimator: .npy, or .npz with an array c2w"""
    reference: Annotated[Path, tyro.conf.Positional]
    """the commanded or true poses, likewise"""
    align: Alignment | Literal["all"] = "all"
    """what the alignment removes from the estimate first"""
    every: int = 1
    """take every n-th frame of the reference; the estimate has as many frames as that gives (Pi3 as the
    authors ran it: 4)
    """
    delta: int = 1
    """frames, of those taken, between the poses of a relative pose error"""
    estimator: str = "not stated"
    """what the estimate comes from, for the report"""
    json: Path | None = None
    """report with the errors of every frame"""
    tum: Path | None = None
    """folder for both paths as TUM text files (estimated.txt, reference.txt)"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, every="[1, inf)", delta="[1, inf)")


def run(config: PosesConfig) -> None:
    """Prints a row per alignment; two runs write equal bytes."""
    tum = [config.tum / f"{name}.txt" for name in TUM_FILES] if config.tum else []
    check_outputs(
        Output("--json", config.json, (".json",)),
        Output("--tum", config.tum, folder=True),
        *(Output("a file of --tum", path) for path in tum),
        inputs=(config.estimated, config.reference),
    )
    estimated, reference = read_poses(config.estimated), read_poses(config.reference)[:: config.every]
    still = stands_still(reference)
    if still and config.align in SCALED:
        raise ValueError(f"got --align {config.align} and {STILL}")
    asked: tuple[Alignment, ...] = ALIGNMENTS if config.align == "all" else (config.align,)
    wanted: list[Alignment] = [alignment for alignment in asked if not (still and alignment in SCALED)]
    errors = [pose_errors(estimated, reference, alignment, config.delta) for alignment in wanted]
    print(f"{len(reference)} frames, estimator: {config.estimator}")
    columns = (
        "rot_err_deg",
        "trans_err_m",
        "cam_mc",
        "ate_rmse_m",
        "rpe_trans_rmse_m",
        "rpe_rot_rmse_deg",
        "scale",
    )
    titles = ("RotErr °", "TransErr m", "CamMC", "ATE m", "RPE m", "RPE °", "scale")
    print(f"{'alignment':<18}" + "".join(f"{title:>12}" for title in titles))
    for path_errors in errors:
        row = path_errors.summary()
        print(
            f"{path_errors.alignment:<18}"
            + "".join(f"{'-' if row[c] is None else format(row[c], '.4f'):>12}" for c in columns)
        )
    if still:
        print(f"{', '.join(SCALED)}: left out, as the files have {STILL}")
    if config.json:
        frames = [
            {name: getattr(path_errors, name).tolist() for name in (*FIGURES, "rpe_trans_m", "rpe_rot_deg")}
            for path_errors in errors
        ]
        report = {
            "estimator": config.estimator,
            "frame_indices": list(range(0, len(reference) * config.every, config.every)),
            "delta": config.delta,
            "results": [
                path_errors.summary() | {"frames": each}
                for path_errors, each in zip(errors, frames, strict=True)
            ],
        }
        if still:
            report["left_out"] = dict.fromkeys(SCALED, STILL)
        write_json(config.json, report)
    times = np.arange(len(reference)) * config.every / FPS
    for file, path in zip(tum, (estimated, reference), strict=False):
        write_tum(file, relative_to_first(path), times)
