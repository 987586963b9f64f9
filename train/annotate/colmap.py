"""Poses by COLMAP's incremental structure from motion, in this process and on a CPU (pycolmap, BSD-3).

Made for videos: neighbours are matched in sequence, cameras that move along their own axis may begin a model,
and a model may begin with small angles. One thread and fixed seeds, so that a clip always gets the same
poses. Poses have no unit.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sana_wm_env.camera import Array
from sana_wm_env.extras import check_installed

from ..data.sidecars import ClipError
from .frames import read_frames, write_png
from .poses import Clip, Points, PoseEstimate
from .windows import estimate_windows

INIT_ANGLE_DEG = 4.0
"""Between the rays of the first two frames of a model: COLMAP's own 16 is for photographs."""

MATCH_ERROR_PX = 2.0
FOCAL_GUESS = 0.9
"""In widths, where nobody says: a field of view of 58 degrees."""


def load_pycolmap() -> Any:
    """Pycolmap. Its log would answer SIGTERM with a trace of its own and no word of ours: whoever heard that
    signal before hears it again, once the call that runs has returned.
    """
    before = signal.getsignal(signal.SIGTERM)
    import pycolmap

    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
    return pycolmap


@dataclass(frozen=True)
class ColmapOptions:
    """Settings.

    Attributes:
        intrinsics: one focal length for all frames, or one per frame (zooms).
        fov_deg: horizontal field of view to begin with; None for 58 degrees.
        features: per frame at most.
        overlap: neighbours that a frame is matched with; those at distances 1, 2, 4, ... come on top.
        threads: 1 gives the same poses every time.
    """

    intrinsics: Literal["shared", "per-frame"] = "shared"
    fov_deg: float | None = None
    features: int = 1500
    overlap: int = 8
    threads: int = 1


class Colmap:
    """The backend `pycolmap`."""

    name = "pycolmap"

    def __init__(self, options: ColmapOptions | None = None):
        self.options = options or ColmapOptions()

    def check(self) -> None:
        """ValueError if pycolmap is not installed."""
        check_installed("pycolmap", "--backend pycolmap")

    def estimate(self, clip: Clip, work: Path) -> PoseEstimate:
        """Cameras of a clip, see `poses.PoseBackend`."""

        def one(window: range) -> PoseEstimate:
            folder = work / f"{window.start:06d}"
            folder.mkdir()
            return self._reconstruct(clip, window, folder)

        return estimate_windows(clip.frames, one)

    def _reconstruct(self, clip: Clip, window: range, folder: Path) -> PoseEstimate:
        pycolmap = load_pycolmap()
        images, masks, database = folder / "images", folder / "masks", folder / "database.db"
        _write_images(clip, window, images, masks)
        with _quiet(pycolmap):
            pycolmap.set_random_seed(0)
            self._match(pycolmap, database, images, masks if masks.exists() else None, clip.size[1])
            models = pycolmap.incremental_mapping(
                database, images, folder / "models", options=self._mapping(pycolmap)
            )
        if not models:
            raise ClipError(
                "no model",
                "got no two frames from which a model could begin (too little texture, or a camera that only "
                "turns); wanted a camera that moves through a scene with something to hold on to",
            )
        ranked = sorted(models.values(), key=lambda model: -model.num_reg_images())
        sizes = tuple(model.num_reg_images() for model in ranked)
        return _read_model(pycolmap, ranked[0], len(window), sizes)

    def _match(self, pycolmap: Any, database: Path, images: Path, masks: Path | None, width: int) -> None:
        """Features of every frame, and their matches among neighbours."""
        options = self.options
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = "SIMPLE_PINHOLE"
        focal = FOCAL_GUESS if options.fov_deg is None else 0.5 / np.tan(np.radians(options.fov_deg) / 2)
        size = pycolmap.Bitmap.read(str(next(iter(sorted(images.iterdir())))), True)
        longest = max(size.width, size.height)
        reader.default_focal_length_factor = float(focal * width / longest)
        if masks is not None:
            reader.mask_path = masks
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.num_threads = options.threads
        extraction.sift.max_num_features = options.features
        extraction.sift.peak_threshold = 0.004
        single = options.intrinsics == "shared"
        pycolmap.extract_features(
            database,
            images,
            camera_mode=pycolmap.CameraMode.SINGLE if single else pycolmap.CameraMode.PER_IMAGE,
            reader_options=reader,
            extraction_options=extraction,
        )
        matching = pycolmap.FeatureMatchingOptions()
        pairing = pycolmap.SequentialPairingOptions()
        matching.num_threads = pairing.num_threads = options.threads
        pairing.overlap = options.overlap
        verification = pycolmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = 0
        verification.ransac.max_error = MATCH_ERROR_PX
        verification.detect_watermark = False
        pycolmap.match_sequential(
            database,
            matching_options=matching,
            pairing_options=pairing,
            verification_options=verification,
        )

    def _mapping(self, pycolmap: Any) -> Any:
        mapping = pycolmap.IncrementalPipelineOptions()
        mapping.num_threads = mapping.mapper.num_threads = self.options.threads
        mapping.random_seed = mapping.mapper.random_seed = mapping.triangulation.random_seed = 0
        mapping.extract_colors = False
        mapping.mapper.init_min_tri_angle = INIT_ANGLE_DEG
        mapping.mapper.init_max_forward_motion = 1.0
        # frames of a video add little each: all are adjusted together less often than for photographs
        mapping.ba_global_frames_ratio = mapping.ba_global_points_ratio = 1.3
        return mapping


def _write_images(clip: Clip, window: range, images: Path, masks: Path) -> None:
    """Frames of a window as pictures, whose names sort in their order, and masks of what stands still."""
    images.mkdir()
    for index, frame in enumerate(read_frames(clip.video)):
        if index in window:
            write_png(images / f"{index - window.start:06d}.png", frame)
            if clip.valid is not None:
                masks.mkdir(exist_ok=True)
                seen = clip.valid[index].astype(np.uint8) * 255
                write_png(masks / f"{index - window.start:06d}.png.png", seen)
        if index + 1 == window.stop:
            return


def _read_model(pycolmap: Any, model: Any, frames: int, sizes: tuple[int, ...]) -> PoseEstimate:
    c2w, intrinsics = np.full((frames, 4, 4), np.nan), np.full((frames, 4), np.nan)
    residual = np.full(frames, np.nan)
    columns: list[tuple[Array, Array, Array]] = []
    for image_id in sorted(model.reg_image_ids()):
        image = model.image(image_id)
        index = int(Path(image.name).stem)
        w2c = np.eye(4)
        w2c[:3] = image.cam_from_world().matrix()
        c2w[index] = np.linalg.inv(w2c)
        focal, cx, cy = model.cameras[image.camera_id].params
        intrinsics[index] = focal, focal, cx, cy
        seen = image.get_observation_points2D()
        places = np.array([model.point3D(point.point3D_id).xyz for point in seen]).reshape(-1, 3)
        pixels = np.array([point.xy for point in seen]).reshape(-1, 2)
        local = places @ w2c[:3, :3].T + w2c[:3, 3]
        shown = local[:, :2] / local[:, 2:] * focal + [cx, cy]
        residual[index] = np.linalg.norm(shown - pixels, axis=1).mean() if len(seen) else np.nan
        ahead = local[:, 2] > 0
        columns.append((np.full(ahead.sum(), index), pixels[ahead], local[ahead, 2]))
    points = Points(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    rot_sigma, trans_sigma = _uncertainty(pycolmap, model, frames)
    notes = () if len(sizes) == 1 else (f"{len(sizes)} models of {', '.join(map(str, sizes))} frames",)
    return PoseEstimate(
        c2w,
        intrinsics,
        False,
        points,
        residual,
        rot_sigma,
        trans_sigma,
        sizes,
        f"pycolmap {pycolmap.__version__}",
        notes,
    )


def _uncertainty(pycolmap: Any, model: Any, frames: int) -> tuple[Array, Array]:
    """Standard deviations (F,) of orientations in degrees and of positions, from the covariance of the
    bundle adjustment, pixels taken to err by the size of their residuals. NaN where it cannot be had.
    """
    rot, trans = np.full(frames, np.nan), np.full(frames, np.nan)
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BACovarianceOptions()
    options.params = pycolmap.BACovarianceOptionsParams.POSES
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(
        pycolmap.BundleAdjustmentOptions(), config, model
    )
    covariance = pycolmap.estimate_ba_covariance(options, model, adjuster)
    if covariance is None:
        return rot, trans
    pixel = max(model.compute_mean_reprojection_error(), 1e-3)
    for image_id in model.reg_image_ids():
        of_pose = covariance.get_cam_cov_from_world(image_id)
        index = int(Path(model.image(image_id).name).stem)
        if of_pose is None:  # a camera that was held fixed
            rot[index] = trans[index] = 0.0
            continue
        spread = np.sqrt(np.maximum(np.diag(np.asarray(of_pose)), 0)) * pixel
        rot[index] = np.degrees(np.linalg.norm(spread[:3]))
        trans[index] = np.linalg.norm(spread[3:])
    return rot, trans


@contextmanager
def _quiet(pycolmap: Any):
    """COLMAP's account of every step goes nowhere; errors come through."""
    level, pycolmap.logging.minloglevel = pycolmap.logging.minloglevel, 2
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level
