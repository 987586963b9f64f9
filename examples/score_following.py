"""Does the imagined camera go where it is told? Some seconds on a CPU; `sana-wm evaluate follow` does the
same at length.

python examples/score_following.py [WORLD]
"""

import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from sana_wm_env.contact_sheet import contact_sheet
from sana_wm_env.evaluation.episodes import draw_episodes
from sana_wm_env.evaluation.follow import score, watch
from sana_wm_env.evaluation.poses import compare_paths
from sana_wm_env.model.world import WorldModel

world = WorldModel.load(
    sys.argv[1] if len(sys.argv) > 1 else "tiny-rooms"
)  # a bundled world's name, or the folder of one you trained
CHUNKS = 2

# Three rooms that training has never seen, with a path through each. The world imagines the paths from the
# first frames alone.
episodes = draw_episodes(count=3, chunks=CHUNKS, seed=7)
with tqdm(total=3 * CHUNKS, unit="chunk") as bar:
    followed = watch(world, episodes, batch=3, bar=bar)

# Where was the camera? Poses are estimated from the frames, without a look at the commands, and compared with
# them.
print(f"{'estimated path':<18}{'RotErr °':>10}{'TransErr m':>12}{'CamMC':>8}")
for condition, figures in score(followed, CHUNKS, alignment="none").items():
    print(
        f"{condition:<18}"
        + "".join(f"{values.mean():>{w}.2f}" for values, w in zip(figures.values(), (10, 12, 8), strict=True))
    )
print(
    "world: the imagined frames. truth: the exact frames, so the estimator's own error. The rest: controls, "
    "which have to be worse."
)

# Two rows with different alignments cannot be compared: an alignment takes part of the error out before it is
# measured.
for alignment in ("none", "scale", "sim3", "rotation_product"):
    errors = compare_paths(followed.estimated["world"][0], followed.commanded[0], alignment)
    print(
        f"room 7, alignment {alignment}: {errors.rot_err_deg.mean():.2f}°, {errors.trans_err_m.mean():.2f} "
        f"m, scale {errors.scale:.2f}"
    )

Path("out").mkdir(exist_ok=True)
columns = [f"{k + 1}: {name}" for k in range(CHUNKS) for name in ("truth", "world")]
sheet: Image.Image = contact_sheet(followed.tiles, ["room 7", "room 8", "room 9"], columns)
sheet.save("out/score_following.png")
print("wrote out/score_following.png")
