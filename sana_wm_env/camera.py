"""Camera poses and intrinsics on the numpy side.

One convention in the whole project: OpenCV axes (+x right, +y down, +z forward), camera-to-world (`c2w`),
metres, radians, relative to the first frame; intrinsics in pixels, where pixel (x, y) covers [x, x + 1] x [y,
y + 1].

A **twist** is what a camera does during one chunk, in its own frame: (vx, vy, vz, wx, wy, wz), translation
first. scipy's `exp_coords` put rotation first; the order is turned round here and nowhere else.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import RigidTransform

from .numbers import to_array

Array = NDArray[np.float64]

CHUNK_FRAMES = 24
"""RGB frames of one chunk: three latent frames of eight."""

FPS = 16
"""Frames per second of every world."""

TOLERANCE = 1e-4
"""How far a given rotation may be from orthonormal: float32 poses pass, rounded decimals and scaled matrices
do not.
"""

FARTHEST = 1e9
"""The largest number in a translation that is taken for one: the Earth's own axes in centimetres still
pass.
"""

FOV_DEG = (1.0, 170.0)
"""Fields of view that a camera can have: from the longest lenses to the widest that are no fisheyes."""


def twist(
    v: ArrayLike = (0, 0, 0),
    w: ArrayLike = (0, 0, 0),
    *,
    degrees: bool = False,
    seconds: float = CHUNK_FRAMES / FPS,
) -> Array:
    """Returns the twist of constant velocities: `twist(v=(0, 0, 0.4), w=(0, 10, 0), degrees=True)` drives
    forward and turns right.

    Args:
        v: (3,) metres per second to the right, down and forward, in the frame of the camera.
        w: (3,) radians per second (degrees with `degrees`): looks up, turns right, rolls clockwise.
        degrees: `w` is in degrees per second.
        seconds: duration; one chunk by default.

    Returns:
        (6,) float64, metres and radians. `sana_wm_env.actions.twist_to_action` makes an action of it.

    Raises:
        ValueError: wrong shape, not numbers, NaN.
    """
    velocities = {"v": _numbers(v, "v"), "w": _numbers(w, "w")}
    for name, velocity in velocities.items():
        if velocity.shape != (3,):
            raise ValueError(
                f"got {name} of shape {velocity.shape}; wanted 3 numbers: x (right), y (down), z (forward)"
            )
    turn = np.radians(velocities["w"]) if degrees else velocities["w"]
    return np.concatenate([velocities["v"], turn]) * seconds


def twist_path(twist: ArrayLike, frames: int = CHUNK_FRAMES) -> Array:
    """Poses along a constant body twist: exp(i / frames * twist) for i = 1..frames.

    Args:
        twist: (..., 6) as (vx, vy, vz, wx, wy, wz) of the whole path; metres and radians, in the frame of
            the camera at its start.
        frames: how many poses.

    Returns:
        (..., frames, 4, 4) float64 relative to the camera at the start; a zero twist gives exact identities.
    """
    twist = np.asarray(twist, np.float64)
    share = np.arange(1, frames + 1)[:, None] / frames
    rotation_first = np.roll(twist, 3, axis=-1)[..., None, :] * share  # (..., frames, 6)
    # One flat list: for more axes scipy takes another path, which rounds differently, and a batch must equal
    # its members.
    return (
        RigidTransform.from_exp_coords(rotation_first.reshape(-1, 6))
        .as_matrix()
        .reshape(*rotation_first.shape[:-1], 4, 4)
    )


def path_twist(path: ArrayLike) -> Array:
    """The constant body twist that a path has: the inverse of `twist_path`.

    Args:
        path: (F, 4, 4) poses relative to the camera at the start, which is not among them, as `twist_path`
            returns them. A turn of more than half a circle is told from its rest by the frames between.

    Returns:
        (6,) float64 of the whole path, metres and radians.

    Raises:
        ValueError: as `check_poses`, or no constant twist leads along this path.
    """
    path = check_poses(path, name="path")
    total = step_twists(np.concatenate([np.eye(4)[None], path])).sum(axis=0)
    off = np.abs(twist_path(total, len(path)) - path).max(axis=(1, 2))
    if off.max() > TOLERANCE:
        raise ValueError(
            f"got a path whose velocity changes: the constant twist {total.round(4)} misses "
            f"path[{off.argmax()}] by {off.max():.2g}; "
            "wanted one constant twist. sana_wm_env.actions.actions_from_path follows any path"
        )
    return total


def step_twists(c2w: ArrayLike) -> Array:
    """Body twists from each pose (F + 1, 4, 4) to the next: (F, 6) float64, metres and radians, each turn at
    most half a circle.
    """
    poses = RigidTransform.from_matrix(check_poses(c2w))
    return np.roll((poses[:-1].inv() * poses[1:]).as_exp_coords(), 3, axis=-1)


def compose(c2w: ArrayLike, relative: ArrayLike) -> Array:
    """The poses `c2w @ relative` with rotations that stay orthonormal however often this is repeated.

    Args:
        c2w: (..., 4, 4) poses.
        relative: (..., 4, 4) poses in the frame of `c2w`; shapes broadcast.

    Returns:
        (..., 4, 4) float64, fresh. Where `relative` is exactly the identity the pose is exactly `c2w`.
    """
    c2w, relative = np.broadcast_arrays(np.asarray(c2w, np.float64), np.asarray(relative, np.float64))
    first, second = (RigidTransform.from_matrix(poses.reshape(-1, 4, 4)) for poses in (c2w, relative))
    moved = (first * second).as_matrix().reshape(c2w.shape)
    unmoved = (relative == np.eye(4)).all((-2, -1), keepdims=True)  # the way through quaternions rounds
    return np.where(unmoved, c2w, moved)


def relative_to_first(c2w: ArrayLike) -> Array:
    """Poses (F, 4, 4) seen from the first one, which becomes the exact identity. float64."""
    c2w = check_poses(c2w)
    relative = compose(RigidTransform.from_matrix(c2w[0]).inv().as_matrix(), c2w)
    relative[0] = np.eye(4)
    return relative


def from_w2c(w2c: ArrayLike) -> Array:
    """World-to-camera matrices (F, 4, 4) ("extrinsics", COLMAP) -> camera-to-world in the same axes, float64.

    This and the converters below refuse what `check_poses` refuses.
    """
    return RigidTransform.from_matrix(check_poses(w2c, name="w2c")).inv().as_matrix()


def to_w2c(c2w: ArrayLike) -> Array:
    """Camera-to-world (F, 4, 4) -> world-to-camera in the same axes, float64."""
    return RigidTransform.from_matrix(check_poses(c2w)).inv().as_matrix()


def from_opengl(c2w: ArrayLike) -> Array:
    """Camera-to-world (F, 4, 4) of a camera with +x right, +y up, +z backward (OpenGL, Blender, NeRF) ->
    OpenCV axes, float64.

    The axes of the world stay as they are: everything that follows is relative to the first pose.
    """
    return check_poses(c2w) @ np.diag([1.0, -1.0, -1.0, 1.0])


def to_opengl(c2w: ArrayLike) -> Array:
    """OpenCV axes -> the camera of `from_opengl`, (F, 4, 4) float64: turning two axes round is its own
    inverse.
    """
    return from_opengl(c2w)


_OPENCV_FROM_UNREAL = np.array([[0.0, 1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""Right, down, forward out of forward, right, up."""


def from_unreal_cm(c2w: ArrayLike) -> Array:
    """Camera-to-world (F, 4, 4) of Unreal Engine -> OpenCV axes and metres, float64.

    Camera and world have +x forward, +y right, +z up (left-handed); the translation stands in the last
    column, in centimetres. Unreal's own matrices multiply rows and have to be transposed first, which is
    noticed.
    """
    moved = _OPENCV_FROM_UNREAL @ check_poses(c2w) @ _OPENCV_FROM_UNREAL.T
    moved[..., :3, 3] /= 100
    return moved


def to_unreal_cm(c2w: ArrayLike) -> Array:
    """OpenCV axes and metres -> Unreal Engine's axes and centimetres, (F, 4, 4) float64, the inverse of
    `from_unreal_cm`.
    """
    moved = _OPENCV_FROM_UNREAL.T @ check_poses(c2w) @ _OPENCV_FROM_UNREAL
    moved[..., :3, 3] *= 100
    return moved


def check_poses(c2w: ArrayLike, length: int | None = None, name: str = "poses") -> Array:
    """Returns `c2w` as fresh float64 (F, 4, 4), or says what is wrong with it.

    A valid camera-to-world and a valid world-to-camera matrix look alike: that mistake cannot be found here.

    Args:
        c2w: (F, 4, 4) camera-to-world.
        length: the F that is wanted, if only one is.
        name: what the caller calls them, for the message.

    Raises:
        ValueError: wrong shape or length, NaN, transposed, mirrored, scaled or otherwise not a rigid motion.
            Names the first bad pose and the likely cause.
    """
    poses = _numbers(c2w, name)
    if poses.ndim == 3 and poses.shape[1:] == (3, 4):
        raise ValueError(
            f"got {name} of shape {poses.shape}; wanted (F, 4, 4): append the row 0 0 0 1 to each"
        )
    if poses.shape == (4, 4):
        raise ValueError(
            f"got {name} of shape (4, 4), which is one pose; wanted (F, 4, 4): pass it with a first axis "
            f"of one, {name}[None]"
        )
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise ValueError(f"got {name} of shape {poses.shape}; wanted (F, 4, 4) camera-to-world matrices")
    if length is not None and len(poses) != length:
        raise ValueError(f"got {len(poses)} {name}; wanted {length}, one per frame")
    for index in np.flatnonzero(~_rigid(poses)):
        if fault := _fault(poses[index]):
            raise ValueError(f"got {name}[{index}] =\n{poses[index]}\nwhich {fault}")
    return poses


def _rigid(poses: Array) -> NDArray[np.bool_]:
    """Which of many poses (F, 4, 4) are surely rigid motions: (F,). `_fault` says of the others what is
    wrong.
    """
    with np.errstate(all="ignore"):  # numbers that overflow are found by what they give
        rotation = poses[:, :3, :3]
        off = np.abs(rotation.mT @ rotation - np.eye(3)).max((1, 2))
        last = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1)
        near = np.abs(poses[:, :3, 3]).max(1) <= FARTHEST
        return (off <= TOLERANCE) & (last <= TOLERANCE) & near & (np.linalg.det(rotation) > 0)


def _fault(pose: Array) -> str | None:
    """Describes why a finite (4, 4) matrix is not a rigid motion, and the likely cause."""
    rotation, last_row = pose[:3, :3], np.array([0, 0, 0, 1])
    if not np.allclose(pose[3], last_row, rtol=0, atol=TOLERANCE):
        if np.allclose(pose[:, 3], last_row, rtol=0, atol=TOLERANCE):
            return (
                "is transposed: the translation stands in the last row. Pass pose.T, "
                "so that it stands in the last column"
            )
        return (
            "has a last row other than 0 0 0 1: this is not a camera-to-world matrix (a projection matrix?)"
        )
    if np.abs(pose).max() > FARTHEST:
        return f"holds the number {np.abs(pose).max():.3g}: wanted metres, and no camera is so far away"
    gram = rotation.T @ rotation
    if not np.allclose(gram, np.eye(3), rtol=0, atol=TOLERANCE):
        if (
            np.allclose(gram, gram[0, 0] * np.eye(3), rtol=0, atol=TOLERANCE * max(1.0, gram[0, 0]))
            and gram[0, 0] > 0
        ):
            return f"has a rotation scaled by {np.sqrt(gram[0, 0]):.4g}: scale only the translation"
        return (
            "has a rotation that is not orthonormal: rounded, interpolated entry by entry, or multiplied "
            "by the intrinsics?"
        )
    if np.linalg.det(rotation) < 0:
        return (
            "is mirrored (determinant -1): one axis was flipped. From OpenGL flip two: pose "
            "@ diag(1, -1, -1, 1)"
        )
    return None


def check_intrinsics(intrinsics: ArrayLike, size: tuple[int, int], name: str = "intrinsics") -> Array:
    """Returns pinhole intrinsics as fresh float64 (fx, fy, cx, cy), or says what is wrong with them.

    Args:
        intrinsics: (4,) as fx, fy, cx, cy, or the (3, 3) matrix, in pixels of the image they belong to.
        size: (height, width) of that image.
        name: what the caller calls them, for the message.

    Raises:
        ValueError: wrong shape, NaN, skew, a focal length that is zero, negative (mirrored) or not in pixels,
            a centre outside the image.
    """
    given = _numbers(intrinsics, name)
    if given.shape == (3, 3):
        if not np.allclose(given[2], [0, 0, 1], rtol=0, atol=TOLERANCE):
            cause = "; it is transposed: pass its transpose" if np.all(given[:, 2] == [0, 0, 1]) else ""
            raise ValueError(f"got {name} with last row {given[2]}; wanted 0 0 1{cause}")
        skew = given[0, 1] or given[1, 0]
        if max(abs(given[0, 1]), abs(given[1, 0])) > TOLERANCE * max(abs(given[0, 0]), abs(given[1, 1])):
            raise ValueError(f"got {name} with skew {skew}; wanted none: rectify the image first")
        given = given[[0, 1, 0, 1], [0, 1, 2, 2]]
    if given.shape != (4,):
        raise ValueError(
            f"got {name} of shape {given.shape}; wanted (4,) as fx, fy, cx, cy in pixels, or a (3, 3) matrix"
        )
    (height, width), (fx, fy, cx, cy) = size, given
    if fx <= 0 or fy <= 0:
        raise ValueError(
            f"got {name} with focal lengths fx={fx:g}, fy={fy:g}; wanted positive ones: negative ones "
            "mirror the image (OpenGL's y?)"
        )
    seen = f"got {name} with focal lengths fx={fx:g}, fy={fy:g} for an image of {width} x {height} pixels"
    shortest, longest = (0.5 / np.tan(np.radians(fov) / 2) for fov in reversed(FOV_DEG))  # in image widths
    if fx < width * shortest or fy < height * shortest:
        raise ValueError(
            f"{seen}; wanted pixels: these look normalised, multiply fx and cx by the width, fy and cy by "
            "the height"
        )
    if max(fx, fy) > longest * max(width, height):
        raise ValueError(
            f"{seen}, a field of view below {FOV_DEG[0]:g} degree, which no camera has; wanted pixels: "
            "divide by what they were multiplied with, or are they those of a larger image?"
        )
    if not (0 <= cx <= width and 0 <= cy <= height):
        raise ValueError(
            f"got {name} with the principal point ({cx:g}, {cy:g}); wanted one inside the image of {width} x "
            f"{height} pixels (x first)"
        )
    return given


def intrinsics_matrix(intrinsics: ArrayLike) -> Array:
    """(fx, fy, cx, cy) -> (3, 3) float64."""
    fx, fy, cx, cy = np.asarray(intrinsics, np.float64)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def intrinsics_from_fov(size: tuple[int, int], fov_deg: float) -> Array:
    """Centred intrinsics (fx, fy, cx, cy) with square pixels.

    Args:
        size: (height, width) of the image in pixels.
        fov_deg: horizontal field of view in degrees; phones have about 65 to 75, webcams 60 to 80.

    Raises:
        ValueError: not a number, or a field of view outside `FOV_DEG`.
    """
    if isinstance(fov_deg, bool) or not isinstance(fov_deg, int | float | np.integer | np.floating):
        raise ValueError(f"got fov_deg of type {type(fov_deg).__name__}; wanted degrees")
    if not FOV_DEG[0] <= fov_deg < FOV_DEG[1]:
        given = str(fov_deg) if abs(fov_deg) < 10**9 else "more than 10^9"
        raise ValueError(
            f"got a field of view of {given} degrees; wanted {FOV_DEG[0]:g} or more and less than "
            f"{FOV_DEG[1]:g}"
        )
    height, width = size
    focal = width / 2 / np.tan(np.radians(fov_deg) / 2)
    return np.array([focal, focal, width / 2, height / 2])


def _numbers(values: Any, name: str) -> Array:
    """Finite real numbers as fresh float64; ValueError that names what else was given, and where."""
    numbers = to_array(values, name, "an array of real numbers")
    if not np.isfinite(numbers).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise ValueError(f"got {name} with NaN or infinity" + (f" at index {place}" if place else ""))
    return numbers
