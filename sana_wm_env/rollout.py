"""`sana-wm rollout`: plays a path of keys in a world and writes what it imagines, beside the truth if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from sana_wm_env.model.image import fit_image, read_image
from sana_wm_env.model.world import WorldModel

from .actions import check_whole_chunks
from .camera import CHUNK_FRAMES, Array, check_intrinsics, intrinsics_matrix
from .env import FirstFrame
from .evaluation.contact_sheet import side_by_side
from .evaluation.metrics import psnr
from .keys import in_words, keys_to_path
from .recorder import VideoWriter, write_sidecar
from .rooms import default_intrinsics
from .rooms.env import Room, held_out_room, look, open_room
from .rooms.paths import clear

ROOMS_TRIED = 64


@dataclass(frozen=True)
class RolloutConfig:
    """What is played, where it starts and where the video goes."""

    actions: str = "w-36,dw-24,w-24,d-12,aw-36,l-24,jw-24,none-12"
    """<keys>-<frames> joined by commas; the frames must add up to a multiple of 24"""
    scheme: Literal["sana-v2", "sana-v1"] = "sana-v2"
    """what the keys mean; the two schemes disagree on a, d, j and l"""
    out: Path = Path("rollout.mp4")
    """the video; poses and intrinsics are written beside it as .npz"""
    truth: bool = False
    """show the true rendering of the same path on the right, and print how close the imagined frames come"""
    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    seed: int = 0
    """the noise, and the room: the first from this number on in which the path meets no wall"""
    image: Path | None = None
    """start from this picture instead of a room"""
    intrinsics: str | None = None
    """fx,fy,cx,cy in pixels of the picture"""
    prompt: str | None = None
    """describes the scene (default: the room's own description)"""
    device: str = "cpu"


def run(config: RolloutConfig) -> int:
    """Plays the path, writes video and sidecar, prints what was done. Returns 0."""
    path = keys_to_path(config.actions, config.scheme)
    chunks = check_whole_chunks(len(path) - 1)
    _check_start(config)
    world = WorldModel.load(config.world, config.device)
    size = world.config.image_size
    room = None if config.image else find_room(config.seed, path)
    first = picture(config, size) if room is None else view(room, config.prompt, size)
    print(f"{len(path) - 1} frames, {(len(path) - 1) / world.config.fps:.1f} s: {in_words(config.actions, config.scheme)}")
    state = world.start(
        torch.from_numpy(first.image)[None],
        torch.from_numpy(first.intrinsics_px)[None],
        [first.prompt],
        [torch.Generator().manual_seed(config.seed)],
    )
    scores = []
    with VideoWriter(config.out, world.config.fps, min_height=0 if config.truth else 256) as video:
        video.write(compose(first.image[None], first.image[None] if config.truth else None))
        for k in tqdm(range(chunks), desc="imagining", unit="chunk"):
            poses = path[1 + k * CHUNK_FRAMES : 1 + (k + 1) * CHUNK_FRAMES]
            frames, state = world.step(state, torch.from_numpy(poses)[None])
            frames, true = frames[0].cpu(), None
            if room is not None and config.truth:
                true = look(room, poses, first.intrinsics_px, size)
                scores.append(psnr(frames, torch.from_numpy(true)).mean().item())
            video.write(compose(frames.numpy(), true))
    sidecar = write_sidecar(
        config.out,
        c2w=path,
        intrinsics_px=intrinsics_matrix(first.intrinsics_px),
        image_size=size,
        keys=config.actions,
        scheme=config.scheme,
        prompt=first.prompt,
        world=world.config.name,
        seed=config.seed,
    )
    if scores:
        print("PSNR to the truth per chunk, dB: " + " ".join(f"{score:.1f}" for score in scores))
    print(f"wrote {config.out} ({video.n_frames} frames) and {sidecar}")
    return 0


def find_room(seed: int, path: Array) -> Room:
    """The first held-out room from number `seed` on that a path (F, 4, 4) crosses without meeting anything; says so if it is later."""
    for number in range(seed, seed + ROOMS_TRIED):
        room = open_room(held_out_room(number))
        if clear(room.scenes, torch.from_numpy(room.start @ path)[None, :, :3, 3]).all():
            if number != seed:
                print(f"in room {seed} the path would run into something; taking room {number}")
            return room
    print(
        f"the path runs into something in each of the rooms {seed} to {seed + ROOMS_TRIED - 1}: room {seed} is shown from inside its walls"
    )
    return open_room(held_out_room(seed))


def view(room: Room, prompt: str | None, size: tuple[int, int]) -> FirstFrame:
    """The room as the camera first sees it, at (height, width) pixels."""
    intrinsics = np.array(default_intrinsics(size), np.float64)
    return FirstFrame(look(room, np.eye(4)[None], intrinsics, size)[0], intrinsics, room.caption if prompt is None else prompt)


def picture(config: RolloutConfig, size: tuple[int, int]) -> FirstFrame:
    """The user's own picture, fitted to (height, width) pixels."""
    image = read_image(config.image)
    intrinsics = check_intrinsics((config.intrinsics or "").split(","), (image.shape[0], image.shape[1]), name="--intrinsics")
    fitted, intrinsics = fit_image(image, intrinsics, size)
    return FirstFrame(fitted, intrinsics, config.prompt or "")


def compose(imagined: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """The frames of the video: imagined alone, or beside the truth. uint8 (F, H, W, 3)."""
    return imagined if truth is None else side_by_side(imagined, truth, ("imagined", "truth"))


def _check_start(config: RolloutConfig) -> None:
    if config.seed < 0:
        raise ValueError(f"got --seed {config.seed}; wanted 0 or more")
    if config.image is None and config.intrinsics is not None:
        raise ValueError("got --intrinsics without --image; they are those of the picture that you give")
    if config.image is not None and config.intrinsics is None:
        raise ValueError("got --image without --intrinsics; wanted fx,fy,cx,cy in its pixels, such as --intrinsics 800,800,640,360")
    if config.image is not None and config.truth:
        raise ValueError("got --truth with --image; nobody knows the truth behind a picture: leave one of them out")
