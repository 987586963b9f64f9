"""From a folder of your own videos with poses to a world that you can walk through. A few minutes on a CPU in
this small setting.

python examples/train_your_own.py [FOLDER] [--out FOLDER] [--steps N] [--start WORLD]

FOLDER holds mp4 files, each with its poses beside it (train/README.md, "Your own data"). Without one, a few
clips are recorded first. The steps are far too few to learn a new place: they show the way, whose commands
are printed one by one, so that you can repeat them with more.
"""

import argparse
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np

import sana_wm_env
from sana_wm_env import cli
from sana_wm_env.train.data.packed import packed_tars, read_packed

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "folder", nargs="?", type=Path, help="your videos; recorded from SanaWM-Rooms-v0 if not given"
)
parser.add_argument("--out", type=Path, default=Path("out/train_your_own"))
parser.add_argument(
    "--steps", type=int, default=12, help="per stage; a thousand is a beginning (default: 12)"
)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument(
    "--start",
    default="tiny-rooms",
    help='world whose weights all stages begin with; "" for none (default: the bundled one)',
)
args = parser.parse_args()


def run(command: str) -> None:
    """Does what this line would do in a shell."""
    print(f"\n$ sana-wm {command}", flush=True)
    if code := cli.main(shlex.split(command)):
        raise SystemExit(code)


def record(folder: Path, clips: int = 4, chunks: int = 4) -> Path:
    """Walks at random through a few rooms. RecordChunks leaves what training needs: every frame, its pose,
    the intrinsics.
    """
    env = sana_wm_env.RecordChunks(gym.make("SanaWM-Rooms-v0"), folder)
    for seed in range(clips - len(list(folder.glob("*.mp4")))):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(chunks):
            env.step(env.action_space.sample())
    env.close()
    return folder


videos = args.folder or record(args.out / "videos")
clips, runs, packed, world = (
    shlex.quote(str(path)) for path in (videos, *(args.out / name for name in ("runs", "packed", "world")))
)
common = f"--runs {runs} --data {packed} --steps {args.steps} --batch {args.batch}"
start = f" --init-from {args.start}" if args.start else ""

# What is wrong with a clip is said here, with its fix; `pack` leaves such clips out and counts them.
cli.main(["data", "validate", str(videos)])
run(f"data pack {clips} --out {packed} --on-error skip")

# The stages of the ladder (train/README.md). The same commands go on where they were stopped; for more steps
# give a new --out.
run(f"train autoencoder {common}" + (f" --start-from {args.start}" if args.start else ""))
run(f"data latents {packed} --runs {runs}")
run(f"train bidirectional {common}{start}")
run(f"train causal {common}")
run(f"train distill {common}")
run(f"train export --runs {runs} --data {packed} --name my-world --out {world}")

# It is an environment like any other. The first frame is yours: here that of the first clip.
clip = next(read_packed(packed_tars(args.out / "packed")[0]))
env = sana_wm_env.RecordChunks(
    gym.make("SanaWM-v0", world=str(args.out / "world")), args.out / "imagined.mp4"
)
env.reset(
    seed=0, options={"image": clip.frames[0], "intrinsics": clip.intrinsics_px[0], "prompt": clip.caption}
)
for _ in range(2):
    frames, *_ = env.step(
        np.array([0, 0, 0.5, 0, 0.2, 0], np.float32)
    )  # half speed ahead, a little to the right
env.close()
print(
    f"\nwrote {args.out}/imagined.mp4 (49 frames), a walk through the world that gym.make('SanaWM-v0', "
    f"world='{args.out}/world') opens"
)
