"""How good are poses that `sana-wm annotate` finds: rooms with rich surfaces at 256 x 256, of which it gets
the mp4 alone and depth maps that err, against the true poses.

    python tests/benchmarks/annotation.py --clips 30 --out out/annotation

Every depth map errs by 10 % at each pixel and, on top, by a factor of its own of 10 % (normal). Goes on
where it was stopped. Prints two tables in Markdown; docs/results/annotation.md has them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from sana_wm_env.camera import FPS
from sana_wm_env.evaluation.poses import pose_errors
from sana_wm_env.evaluation.report import markdown_table
from sana_wm_env.files import replacing
from sana_wm_env.progress import progress
from sana_wm_env.rooms import FOCAL, HELD_OUT
from sana_wm_env.rooms.paths import sample_starts, sample_twists, twist_paths
from sana_wm_env.rooms.scene import sample_scenes
from sana_wm_env.rooms.texture import render_textured
from sana_wm_env.train.annotate.command import AnnotateConfig, annotate
from sana_wm_env.video import VideoWriter


def write_walk(folder: Path, seed: int, chunks: int, side: int, noise: float) -> None:
    """Renders one walk through one room: its video, its truth, and depth maps that err."""
    name = f"room{seed - HELD_OUT:04d}"
    video, truth, depth = (folder / part / name for part in ("videos", "truth", "depth"))
    if video.with_suffix(".mp4").exists():
        return
    scenes = sample_scenes([seed])
    start = sample_starts(scenes, [seed])
    c2w = twist_paths(start, sample_twists(scenes, start, [seed], chunks))
    rng = np.random.default_rng([seed, 4])
    focal = FOCAL * side * rng.uniform(0.9, 1.1)
    intrinsics = (focal, focal, side / 2, side / 2)
    seen = render_textured(scenes, c2w, intrinsics, (side, side), seed)
    metres = seen.depth_m[0, :, ::2, ::2].numpy()
    errs = (1 + noise * rng.standard_normal(metres.shape)) * (
        1 + noise * rng.standard_normal((len(metres), 1, 1))
    )
    relative = (torch.linalg.inv(c2w[:, :1]) @ c2w)[0].numpy()
    for path, arrays in (
        (truth, {"c2w": relative, "intrinsics_px": np.array(intrinsics)}),
        (depth, {"depth_m": (metres * errs).clip(0.01).astype(np.float16)}),
    ):
        with replacing(path.with_suffix(".npz")) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    with VideoWriter(video.with_suffix(".mp4"), FPS, min_height=0, crf=12) as writer:
        writer.write(seen.rgb[0].numpy())


def compare(folder: Path) -> tuple[list[dict[str, float]], list[tuple[str, str, float]]]:
    """Errors of every clip that came through; name, reason and true length of path of the others."""
    found, lost = [], []
    rows = [json.loads(line) for line in (folder / "annotated/manifest.jsonl").read_text().splitlines()]
    last = {row["clip"]: row for row in rows}
    for name, row in last.items():
        truth = np.load(folder / "truth" / f"{name}.npz")
        length = float(np.linalg.norm(np.diff(truth["c2w"][:, :3, 3], axis=0), axis=1).sum())
        if row["status"] == "rejected":
            lost.append((name, f"{row['stage']}: {row['reason']}", length))
            continue
        estimate = np.load(folder / "annotated/clips" / f"{name}.npz")
        errors = pose_errors(estimate["c2w"], truth["c2w"], "none")
        scale = pose_errors(estimate["c2w"], truth["c2w"], "scale").scale
        shape = pose_errors(estimate["c2w"], truth["c2w"], "scale").trans_err_m.mean()
        found.append(
            {
                "RotErr °": float(errors.rot_err_deg.mean()),
                "TransErr m": float(errors.trans_err_m.mean()),
                "TransErr, % of path": 100 * float(errors.trans_err_m.mean()) / length,
                "TransErr m, scale fitted": float(shape),
                "scale error %": 100 * abs(1 / scale - 1),
                "focal error %": 100
                * abs(float(np.median(estimate["intrinsics_px"][:, 0])) / truth["intrinsics_px"][0] - 1),
            }
        )
    return found, lost


def write_true(folder: Path) -> None:
    """The clips that came through, with the true poses in place of the estimated ones, to train on either."""
    (folder / "true").mkdir(exist_ok=True)
    for clip in sorted((folder / "annotated/clips").glob("*.mp4")):
        truth = np.load(folder / "truth" / f"{clip.stem}.npz")
        shutil.copyfile(clip, folder / "true" / clip.name)
        size = np.load(clip.with_suffix(".npz"))["image_size"]
        np.savez(folder / "true" / clip.stem, **truth, image_size=size, convention="opencv")


def main() -> None:
    """Renders, annotates, compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--chunks", type=int, default=4, help="of 24 frames")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out room")
    parser.add_argument("--out", type=Path, default=Path("out/annotation"))
    args = parser.parse_args()
    seeds = range(HELD_OUT + args.first, HELD_OUT + args.first + args.clips)
    for seed in progress(seeds, desc="rendering", unit="clip"):
        write_walk(args.out, seed, args.chunks, args.side, args.noise)
    annotate(AnnotateConfig(args.out / "videos", args.out / "annotated", "pycolmap", str(args.out / "depth")))
    found, lost = compare(args.out)
    write_true(args.out)
    print(f"\n{len(found)} of {len(found) + len(lost)} clips came through\n")
    titles = list(found[0])
    table = [
        [title, *(f"{f([row[title] for row in found]):.3g}" for f in (np.median, np.mean, np.max))]
        for title in titles
    ]
    print(markdown_table(("error", "median", "mean", "worst"), table))
    if lost:
        print(
            "\n"
            + markdown_table(
                ("clip", "rejected", "true path m"), [[n, why, f"{m:.2f}"] for n, why, m in lost]
            )
        )
    summary = json.loads((args.out / "annotated/report.json").read_text())
    print(f"\n{summary['clips_per_hour']} clips per hour; seconds {summary['seconds']}")


if __name__ == "__main__":
    main()
