"""From a folder of your own videos, of whose cameras nothing is known, to a world that you can walk through.

python examples/annotate_your_own.py [FOLDER] [--depth FOLDER] [--out FOLDER] [--steps N]

FOLDER holds videos (docs/guides/annotate.md says which are good); without one, two walks through rooms with
rich surfaces are filmed first, and their depth is written as an estimator of metric depth would. The poses
are estimated on a CPU: half a minute for a few seconds of small pictures, minutes for larger ones. The steps
of training are far too few to learn a new place: they show the way. Needs
pip install 'sana-wm-env[annotate,train]'.
"""

import argparse
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import sana_wm_env
from sana_wm_env import cli
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.paths import twist_paths
from sana_wm_env.rooms.room import open_room
from sana_wm_env.rooms.texture import render_textured
from sana_wm_env.train.data.packed import packed_tars, read_packed
from sana_wm_env.video import VideoWriter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, help="your videos; filmed in rooms if not given")
parser.add_argument("--depth", type=Path, help="their metric depth: NAME.npz with depth_m, or none")
parser.add_argument("--out", type=Path, default=Path("out/annotate_your_own"))
parser.add_argument("--steps", type=int, default=4, help="per stage (default: 4)")
parser.add_argument("--batch", type=int, default=2)
args = parser.parse_args()


def run(command: str) -> None:
    """Does what this line would do in a shell."""
    print(f"\n$ sana-wm {command}", flush=True)
    if code := cli.main(shlex.split(command)):
        raise SystemExit(code)


def film(folder: Path, depth: Path, frames: int = 49, size: tuple[int, int] = (128, 128)) -> None:
    """Walks sideways through two rooms. Only the pictures are kept, and how far away things were."""
    depth.mkdir(parents=True, exist_ok=True)
    for seed in (5, 9):
        room = open_room(seed)
        twists = torch.tensor([[[0.45, 0.0, 0.15, 0.0, -0.12, 0.0]] * 2]).double()
        c2w = twist_paths(torch.from_numpy(room.start)[None], twists)[:, :frames]
        seen = render_textured(room.scenes, c2w, default_intrinsics(size), size, seed)
        with VideoWriter(folder / f"walk{seed}.mp4", fps=16, min_height=0, crf=4) as video:
            video.write(seen.rgb[0].numpy())
        np.savez(depth / f"walk{seed}.npz", depth_m=seen.depth_m[0].numpy().astype(np.float16))


videos, depth = args.folder, args.depth
if videos is None:
    videos, depth = args.out / "videos", args.out / "depth"
    film(videos, depth)
annotated, runs, packed, world = (
    shlex.quote(str(args.out / name)) for name in ("annotated", "runs", "packed", "world")
)

# A pose for every frame, in metres where depth says how far away things are. What no pose can be had for is
# named, with the cause, in manifest.jsonl and report.md; the same command goes on where it was stopped.
metres = f" --depth {shlex.quote(str(depth))}" if depth else ""
run(f"annotate {shlex.quote(str(videos))} --out {annotated} --backend pycolmap{metres}")

# From here on the way is that of videos with poses (examples/train_your_own.py, train/README.md).
consent = "" if depth else " --any-scale"
common = f"--runs {runs} --data {packed} --steps {args.steps} --batch {args.batch}"
run(f"data pack {annotated}/clips --out {packed}{consent}")
run(f"train autoencoder {common} --start-from tiny-rooms")
run(f"data latents {packed} --runs {runs}")
run(f"train bidirectional {common} --init-from tiny-rooms")
run(f"train causal {common}")
run(f"train distill {common}")
run(f"train export --runs {runs} --data {packed} --name my-world --out {world}")

clip = next(read_packed(packed_tars(args.out / "packed")[0]))
env = sana_wm_env.RecordChunks(
    gym.make("SanaWM-v0", world=str(args.out / "world")), args.out / "imagined.mp4"
)
env.reset(seed=0, options={"image": clip.frames[0], "intrinsics": clip.intrinsics_px[0]})
for _ in range(2):
    env.step(np.array([0.5, 0, 0, 0, 0, 0], np.float32))  # half speed to the right
env.close()
print(
    f"\nwrote {args.out}/imagined.mp4 (49 frames), a walk through the world that gym.make('SanaWM-v0', "
    f"world='{args.out}/world') opens"
)
