"""Pose engines with an environment of their own: started as commands, read from the files they write.

ViPE (NVIDIA, Apache-2.0) and Pi3X with MoGe-2 want a GPU and libraries that do not go together with ours.
Neither could be installed where this was written: the checks and the reading of files are tested, the engines
themselves were not run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from sana_wm_env.arrays import read_npz
from sana_wm_env.camera import Array

from ..data.sidecars import ClipError
from .poses import Clip, Points, PoseEstimate
from .windows import join_windows, split_windows

VIPE_INSTALL = "see https://github.com/nv-tlabs/vipe (`vipe` on PyPI is another program)"
PI3X_INSTALL = (
    "pip install git+https://github.com/yyfz/Pi3.git git+https://github.com/microsoft/MoGe.git into an "
    "environment "
    "of its own, and set SANA_WM_PI3X_PYTHON to its python"
)
PI3X_PYTHON = "SANA_WM_PI3X_PYTHON"
RUNNER = Path(__file__).with_name("pi3x_runner.py")


class Vipe:
    """The backend `vipe`: `vipe infer VIDEO --output DIR`, whose poses are metric."""

    name = "vipe"

    def __init__(self, pipeline: str = "default"):
        self.pipeline = pipeline

    def check(self) -> None:
        """ValueError if there is no command `vipe`, or it is another program."""
        command = shutil.which("vipe")
        if command is None:
            raise ValueError(f"--backend vipe needs the command vipe, which is not installed: {VIPE_INSTALL}")
        said = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
        if "Video Pose Engine" not in said.stdout:
            raise ValueError(f"got {command}, which is not NVIDIA's ViPE: {VIPE_INSTALL}")

    def estimate(self, clip: Clip, work: Path) -> PoseEstimate:
        """Cameras of a clip, see `poses.PoseBackend`."""
        command = ["vipe", "infer", str(clip.video), "--output", str(work), "--pipeline", self.pipeline]
        _run(command)
        return read_vipe(work, clip.video.stem, clip.frames)


class Pi3XMoGe:
    """The backend `pi3x-moge`: Pi3X's cameras and depth in windows; its depth is made metric by MoGe-2's."""

    name = "pi3x-moge"

    def check(self) -> None:
        """ValueError if the libraries are not in the environment that is named."""
        python = os.environ.get(PI3X_PYTHON, sys.executable)
        find = "from importlib.util import find_spec; exit(not all(map(find_spec, ('pi3', 'moge'))))"
        try:
            missing = subprocess.run([python, "-c", find], capture_output=True, check=False).returncode
        except OSError as error:
            raise ValueError(f"got {PI3X_PYTHON}={python}: {error.strerror}; wanted a python") from None
        if missing:
            raise ValueError(f"--backend pi3x-moge needs Pi3X and MoGe, which {python} lacks: {PI3X_INSTALL}")

    def estimate(self, clip: Clip, work: Path) -> PoseEstimate:
        """Cameras of a clip, see `poses.PoseBackend`."""
        windows = split_windows(clip.frames)
        spans = [f"{window.start}:{window.stop}" for window in windows]
        _run([os.environ.get(PI3X_PYTHON, sys.executable), str(RUNNER), str(clip.video), str(work), *spans])
        parts = [read_pi3x(work / f"{window.start:06d}.npz", len(window), clip.size) for window in windows]
        return join_windows(clip.frames, windows, parts)


def read_vipe(folder: Path, name: str, frames: int) -> PoseEstimate:
    """What ViPE has written: pose/NAME.npz (`data` (N, 4, 4) camera-to-world, `inds` (N,)) and
    intrinsics/NAME.npz (`data` (N, 4), `inds`). Frames that are not among `inds` have no pose.

    Raises:
        ClipError: a file is missing, or is not what it should be.
    """
    c2w = _place(folder / "pose" / f"{name}.npz", (4, 4), frames)
    intrinsics = _place(folder / "intrinsics" / f"{name}.npz", (4,), frames)
    return PoseEstimate.without_points(c2w, intrinsics, True, "ViPE")


def read_pi3x(path: Path, frames: int, size: tuple[int, int]) -> PoseEstimate:
    """What `pi3x_runner.py` has written of one window: `c2w` (F, 4, 4), `intrinsics` (4,) as shares of the
    width and height, `frame`, `xy` (as shares) and `depth` of points.
    """
    fields = _read(path)
    try:
        c2w, intrinsics = fields["c2w"].astype(np.float64), fields["intrinsics"].astype(np.float64)
        height, width = size
        points = Points(fields["frame"], fields["xy"] * [width, height], fields["depth"].astype(np.float64))
    except (KeyError, ValueError) as error:
        raise ClipError("backend failed", f"got {path.name} without {error}") from None
    if c2w.shape != (frames, 4, 4):
        raise ClipError("backend failed", f"got poses of shape {c2w.shape}; wanted ({frames}, 4, 4)")
    unknown = np.full(frames, np.nan)
    pixels = np.tile(intrinsics * [width, height, width, height], (frames, 1))
    return PoseEstimate(c2w, pixels, False, points, unknown, unknown, unknown, (frames,), "Pi3X")


def _place(path: Path, shape: tuple[int, ...], frames: int) -> Array:
    """Rows of a file at the frames that they belong to, NaN elsewhere."""
    fields = _read(path)
    if "data" not in fields or "inds" not in fields:
        raise ClipError("backend failed", f"got {path.name} with {', '.join(fields)}; wanted data and inds")
    data, inds = fields["data"].astype(np.float64), fields["inds"].astype(np.int64)
    if data.shape != (len(inds), *shape) or len(inds) == 0 or inds.min() < 0 or inds.max() >= frames:
        raise ClipError(
            "backend failed",
            f"got {data.shape} of frames up to {inds.max(initial=-1)} in {path.name}; wanted ({frames}, "
            f"{', '.join(map(str, shape))}) or fewer",
        )
    placed = np.full((frames, *shape), np.nan)
    placed[inds] = data
    return placed


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(path)
    except (ValueError, OSError) as error:
        raise ClipError("backend failed", f"got no {path.name} that can be read ({error})") from None


def _run(command: list[str]) -> None:
    """Runs a command. ClipError with the end of what it said if it fails."""
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:]
        raise ClipError(
            "backend failed", f"{Path(command[0]).name} ended with {error.returncode}: {' '.join(last)[:300]}"
        ) from None
    except OSError as error:
        raise ClipError("backend failed", f"{command[0]}: {error.strerror}") from None
