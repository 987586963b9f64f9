"""`sana-wm generate`: a video along a camera path, by any of a world's variants; beside the truth if asked.

Streaming imagines chunk by chunk in constant memory; the two clip variants sample all latents first. Frames
are written as they are decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.model.camera_inputs import STRIDE
from sana_wm_env.model.clip import ClipModel
from sana_wm_env.model.config import Variant, WorldConfig
from sana_wm_env.model.kernels.formats import Precision
from sana_wm_env.model.sampler import CLIP_GUIDANCE, CLIP_SHIFT, CLIP_STEPS, STREAMING_SHIFT, shifted_sigmas
from sana_wm_env.model.storage.worlds import check_variant, label_world, load_config, resolve_world
from sana_wm_env.model.world import WorldModel, WorldState

from ..actions import PIECES, action_path
from ..arrays import read_array
from ..camera import CHUNK_FRAMES, Array, compose, intrinsics_matrix, relative_to_first
from ..contact_sheet import side_by_side
from ..env import check_offload
from ..evaluation.metrics import psnr
from ..extras import check_installed
from ..first_frame import FirstFrame
from ..keys import in_words, keys_to_path
from ..outputs import Output, check_outputs, name_beside
from ..progress import progress
from ..rooms.floor_plan import draw_floor_plan
from ..rooms.room import Room, choose_room, look, stands_clear
from ..settings import check_settings
from ..video import VideoWriter, enlarge

ROOMS_TRIED = 64
MOST = 100_000
"""Frames, and denoising steps."""
PANEL_HEIGHT = 320


@dataclass(frozen=True)
class GenerateConfig:
    """The camera's path, the first frame, the sampling, and the file of the video."""

    actions: str = "w-36,dw-24,w-24,d-12,aw-36,l-24,jw-24,none-12"
    """<keys>-<frames> joined by commas; or a .npy of actions as an environment of this world takes them, (K,
    6), (K, 18) or (K, 144), or the .npz beside a recording"""
    scheme: Literal["sana-v2", "sana-v1"] = "sana-v2"
    """what the keys mean; the two schemes disagree on a, d, j and l"""
    camera: Path | None = None
    """.npy of camera-to-world poses (F, 4, 4), OpenCV axes, metres, one per frame, in place of actions; or
    the .npz beside a video
    """
    frames: int | None = None
    """frames with the first: 24 k + 1 when streaming, 8 k + 1 otherwise (default: as many as the path has
    poses)
    """
    variant: Variant = "streaming"
    """streaming: few steps per chunk. bidirectional: the whole clip at once. chunk_causal: the clip, chunks
    one after the other
    """
    out: Path = Path("clip.mp4")
    """the video; poses and intrinsics are written beside it as .npz"""
    truth: bool = False
    """show the true rendering of the same path beside it, and print how close the imagined frames come"""
    plan: bool = False
    """show the room from above, with the way of the camera"""
    rooms: Literal["home", "held-out"] = "home"
    """start at home, in a room that the bundled world was trained in most; or in one that training never
    saw
    """
    world: str = "tiny-rooms"
    """name of a bundled world, folder of a trained one, or a downloaded repository"""
    seed: int = 0
    """the noise, and the room: the first from this number on in which the path meets no wall"""
    image: Path | None = None
    """start from this picture instead of a room"""
    intrinsics: tuple[float, float, float, float] | Literal["moge"] | None = None
    """fx fy cx cy in pixels of the picture, or moge to have them estimated"""
    fov_deg: float | None = None
    """the picture's horizontal field of view in degrees, in place of its intrinsics"""
    prompt: str | None = None
    """describes the scene (default: the room's own description)"""
    steps: int | None = None
    """denoising steps (default: the world's own when streaming, otherwise 60)"""
    shift: float | None = None
    """flow shift of the steps (default: 8 when streaming, otherwise 9.8)"""
    guidance: float | None = None
    """classifier-free guidance scale; 1 is none (default: 1 when streaming, otherwise 5)"""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None
    """of all weights (default: the world's own)"""
    precision: Precision | None = None
    """quantise the transformer (default: as the world is stored)"""
    refine: bool = False
    """have the second stage sharpen what is shown"""
    refiner: str = "auto"
    """with --refine: the world's own, or the folder of one"""
    offload: dict[str, str] | None = None
    """other devices for the world's parts, such as: autoencoder cuda:1 text cpu; text release frees its
    memory once the text is encoded
    """

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        counts = dict.fromkeys(("frames", "steps"), f"[1, {MOST}]")
        check_settings(
            self, seed="[0, inf)", fov_deg="(0, 180)", shift="(0, inf)", guidance="(-inf, inf)", **counts
        )


class Schedule(NamedTuple):
    """Noise levels from 1 to 0, and guidance."""

    sigmas: tuple[float, ...]
    guidance: float


def run(config: GenerateConfig) -> int:
    """Imagines the video, writes it and its sidecar, prints what was done. Returns 0."""
    check_flags(config)
    folder = resolve_world(config.world)
    settings = load_config(folder)
    check_variant(settings, config.variant)
    schedule = schedule_of(config, settings)
    path = clip_path(config, settings)
    first, room = first_frame(config, settings, path)
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    model = WorldModel if config.variant == "streaming" else ClipModel
    refiner = config.refiner if config.refine else None
    options = config.variant, config.precision, refiner
    world = model.load(folder, config.device, dtype, config.offload, *options)
    print(
        f"{len(path)} frames, {(len(path) - 1) / settings.fps:.1f} s, {config.variant}, "
        f"{len(schedule.sigmas) - 1} steps, ",
        end="",
    )
    print(
        f"guidance {schedule.guidance:g}"
        + (f": {in_words(config.actions, config.scheme)}" if plays_keys(config) else "")
    )
    began, scores, done = time.monotonic(), [], 1
    state = world.start(
        torch.from_numpy(first.image)[None],
        torch.from_numpy(first.intrinsics_px)[None],
        [first.prompt],
        [torch.Generator().manual_seed(config.seed)],
    )
    shows = Panels(config, room, first, path, settings.image_size)
    with VideoWriter(config.out, settings.fps, min_height=0 if shows.several else 256) as video:
        video.write(shows.compose(first.image[None], 0))
        for new in imagined(world, state, torch.from_numpy(path)[None], schedule):
            frames = new[0].cpu().numpy()
            video.write(shows.compose(frames, done))
            if config.truth:
                scores.append(
                    psnr(new[0].cpu(), torch.from_numpy(shows.truth(done, len(frames)))).mean().item()
                )
            done += len(frames)
        seconds = time.monotonic() - began
        played = {"keys": config.actions, "scheme": config.scheme} if plays_keys(config) else {}
        sidecar = {
            "c2w": path,
            "intrinsics_px": intrinsics_matrix(first.intrinsics_px),
            "image_size": settings.image_size,
            "world": label_world(folder, settings),
            "seed": config.seed,
            "caption": first.prompt,
            "variant": config.variant,
            "sigmas": schedule.sigmas,
            "guidance": schedule.guidance,
            "refiner": world.refiner.fingerprint if world.refiner else "",
        }
        video.close(sidecar | played)
    if scores:
        print("PSNR to the truth per chunk, dB: " + " ".join(f"{score:.1f}" for score in scores))
    print(f"{seconds:.1f} s, {(len(path) - 1) / seconds:.1f} frames per second")
    print(f"wrote {config.out} ({video.n_frames} frames) and {config.out.with_suffix('.npz')}")
    return 0


def imagined(
    world: WorldModel | ClipModel, state: WorldState, path: Tensor, schedule: Schedule
) -> Iterator[Tensor]:
    """Imagines the frames after the first of new sessions, with a bar of progress.

    Args:
        world: which one.
        state: B sessions as `world.start` opened them.
        path: (B, F, 4, 4) poses of all frames; the first is that of the first frame.
        schedule: noise levels, and the guidance of a clip.

    Yields:
        a chunk at a time: uint8 (B, up to 24, H, W, 3).
    """
    poses = path[:, 1:]
    if isinstance(world, ClipModel):
        with progress(
            desc="imagining", unit="step", total=world.clip_steps(poses.shape[1], schedule.sigmas)
        ) as bar:
            for chunk in world.play(state, poses, schedule.sigmas, schedule.guidance, bar.update):
                yield chunk.frames
        return
    chunks = world.play(state, poses, schedule.sigmas)
    for chunk in progress(chunks, desc="imagining", unit="chunk", total=poses.shape[1] // CHUNK_FRAMES):
        yield chunk.frames


# ---- the path


def plays_keys(config: GenerateConfig) -> bool:
    """Returns True if the path is given by keys: no file's name goes without a dot or a slash."""
    return config.camera is None and not set("./\\") & set(config.actions)


def clip_path(config: GenerateConfig, settings: WorldConfig) -> Array:
    """Returns the poses (F, 4, 4) of all frames relative to the first. ValueError if the path is shorter than
    --frames, or the count is not allowed.
    """
    if config.camera is not None:
        path = relative_to_first(read_array(config.camera, "c2w", "--camera"))
    elif plays_keys(config):
        path = keys_to_path(config.actions, config.scheme)
    else:
        path = path_of_actions(read_array(Path(config.actions), "actions", "--actions"), settings)
    frames = len(path) if config.frames is None else config.frames
    check_frames(frames, config.variant)
    if frames > len(path):
        raise ValueError(
            f"got a path of {len(path)} poses, the first of them that of the first frame; --frames {frames} "
            f"wants {frames}"
        )
    return path[:frames]


def check_frames(frames: int, variant: Variant) -> None:
    """Raises ValueError that names the two nearest legal counts, if a variant cannot make this many frames,
    the first included.
    """
    piece = CHUNK_FRAMES if variant == "streaming" else STRIDE
    if frames > 1 and frames % piece == 1:
        return
    below = max(1, (frames - 1) // piece) * piece + 1
    raise ValueError(
        f"got {frames} frames; {variant} makes {piece} k + 1, the first of which is given: the nearest are "
        f"{below} and {below + piece}"
    )


def path_of_actions(actions: Array, settings: WorldConfig) -> Array:
    """Returns the poses (24 K + 1, 4, 4) along actions (K, 6 * pieces), as an environment of this world takes
    them, at the world's own limits.
    """
    modes = {6 * pieces: mode for mode, pieces in PIECES.items()}
    if actions.ndim != 2 or not len(actions) or actions.shape[1] not in modes:
        raise ValueError(
            f"got actions of shape {actions.shape}; wanted {' or '.join(f'(K, {width})' for width in modes)}"
        )
    path = [np.eye(4)[None]]
    limits = settings.max_translation_m, settings.max_rotation_rad
    for action in actions:
        path.append(compose(path[-1][-1], action_path(action, modes[actions.shape[1]], limits, batch=())))
    return np.concatenate(path)


# ---- the sampling


def schedule_of(config: GenerateConfig, settings: WorldConfig) -> Schedule:
    """Returns the noise levels and the guidance that the flags ask for; ValueError if they are not
    allowed.
    """
    if config.variant == "streaming":
        if config.guidance not in (None, 1.0):
            raise ValueError(
                f"got --guidance {config.guidance:g}; streaming was distilled with guidance "
                "built in: leave it out"
            )
        if config.steps is None and config.shift is None:
            return Schedule(settings.sigmas, 1.0)
        steps = len(settings.sigmas) - 1 if config.steps is None else config.steps
        return Schedule(shifted_sigmas(steps, STREAMING_SHIFT if config.shift is None else config.shift), 1.0)
    guidance = CLIP_GUIDANCE if config.guidance is None else config.guidance
    steps = CLIP_STEPS if config.steps is None else config.steps
    shift = CLIP_SHIFT if config.shift is None else config.shift
    return Schedule(shifted_sigmas(steps, shift), guidance)


# ---- the first frame


def first_frame(config: GenerateConfig, settings: WorldConfig, path: Array) -> tuple[FirstFrame, Room | None]:
    """Returns the user's picture, or a room in which the path is clear; ValueError if the world has
    neither.
    """
    if config.image is not None:
        given = config.image, settings.image_size, config.intrinsics, config.fov_deg
        return FirstFrame.of_picture(*given, config.prompt, config.device), None
    if settings.first_frames != "rooms":
        raise ValueError(
            f"got no --image; the world {settings.name!r} has no first frames of its own: wanted --image "
            "with --intrinsics"
        )
    room = find_room(config.seed, path, config.rooms)
    return FirstFrame.of_room(room, settings.image_size, config.prompt), room


def find_room(seed: int, path: Array, rooms: Literal["home", "held-out"] = "home") -> Room:
    """Finds the first room from number `seed` on in which a path (F, 4, 4) is clear; prints its number if it
    is later.
    """
    wish = None if rooms == "home" else rooms
    for number in range(seed, seed + ROOMS_TRIED):
        room = choose_room(number, wish)
        if stands_clear(room, path).all():
            if number != seed:
                print(f"in room {seed} the path would run into something; taking room {number}")
            return room
    print(
        f"the path runs into something in each of the rooms {seed} to {seed + ROOMS_TRIED - 1}: room {seed} "
        "is shown from inside its walls"
    )
    return choose_room(seed, wish)


class Panels:
    """Panels beside the imagined frames: the truth, and the room from above, as the flags ask."""

    def __init__(
        self, config: GenerateConfig, room: Room | None, first: FirstFrame, path: Array, size: tuple[int, int]
    ):
        self.room, self.path, self.intrinsics_px, self.size = room, path, first.intrinsics_px, size
        self.shows_truth, self.several = config.truth, room is not None and (config.truth or config.plan)
        height = len(enlarge(first.image, PANEL_HEIGHT))
        self.plan = None if room is None or not config.plan else draw_floor_plan(room, path, height)

    def truth(self, begin: int, count: int) -> np.ndarray:
        """`count` true frames from frame `begin` on, uint8 (F, H, W, 3)."""
        if self.room is None:
            raise ValueError("nobody knows the truth behind a picture")
        return look(self.room, self.path[begin : begin + count], self.intrinsics_px, self.size)

    def compose(self, frames: np.ndarray, begin: int) -> np.ndarray:
        """Puts the panels beside imagined frames from frame `begin` on, uint8 (F, H, W, 3)."""
        panels = {f"imagined ({frames.shape[1]} px, enlarged)": frames}
        if self.shows_truth:
            panels["truth"] = self.truth(begin, len(frames))
        if self.plan is not None:
            panels["where the camera is"] = self.plan[begin : begin + len(frames)]
        return side_by_side(list(panels.values()), list(panels), PANEL_HEIGHT) if self.several else frames


def check_flags(config: GenerateConfig) -> None:
    """ValueError for flags that make no sense, together or alone, and for outputs that cannot be."""
    camera = (config.intrinsics is not None) + (config.fov_deg is not None)
    actions = None if plays_keys(config) else Path(config.actions)
    check_outputs(
        Output("--out", config.out, (".mp4",)),
        Output("the sidecar of --out", name_beside(config.out, ".npz")),
        inputs=(config.image, config.camera or actions),
    )
    if config.image is None and camera:
        raise ValueError(
            "got --intrinsics or --fov-deg without --image; they are those of the picture that you give"
        )
    if config.image is not None and camera != 1:
        raise ValueError(
            f"got --image with {'both' if camera else 'neither'} of --intrinsics and --fov-deg; wanted one "
            "of them, such as "
            "--intrinsics 800 800 640 360 in the picture's pixels or --fov-deg 65 across its width; "
            "--intrinsics moge has them estimated"
        )
    check_offload(config.offload)
    if config.intrinsics == "moge":
        check_installed("moge", "--intrinsics moge")
    if config.image is not None and (config.truth or config.plan):
        flag = "--truth" if config.truth else "--plan"
        raise ValueError(
            f"got {flag} with --image; nobody knows the truth behind a picture: leave one of them out"
        )
