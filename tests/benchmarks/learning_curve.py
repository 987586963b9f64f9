"""How the bundled world grew: python tests/benchmarks/learning_curve.py.

Measures its earlier versions and the present one in the same rooms, ten chunks each, with the present code:
`train/running/worlds.csv` names the commits that hold them, with the hours of two cores and the chunks
learned until then. Writes docs/results/training.md with the curve, and with what its slope says of the scores
that are wanted. The clone has to have the history (`git fetch --unshallow`).
"""

import argparse
import csv
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sana_wm_env.evaluation.report import markdown_table
from sana_wm_env.files import write_text
from sana_wm_env.model.storage.worlds import resolve_world
from sana_wm_env.model.world import WorldModel
from sana_wm_env.train.milestones import CHUNKS, measure_in_rooms, write_progress

ROOT = Path(__file__).parents[2]
WORLDS, PAGE = ROOT / "train" / "running" / "worlds.csv", ROOT / "docs" / "results" / "training.md"
FOLDER = "sana_wm_env/worlds/rooms"
FILES = ("config.json", "autoencoder.safetensors", "transformer.safetensors")
WANTED = {"home": (78, 60, 45), "held-out": (70, 48, 33)}
"""Per cent of the distance closed at `CHUNKS` that a world worth showing should reach."""
LATE = 3
"""Versions, counted from the last, that the slope is taken from."""
INTRODUCTION = (
    "Samples are chunks of a second and a half, hours those of two cores. A line through the last "
    f"{LATE} versions against the logarithm of the hours, and the hours at which it reaches what is wanted; "
    "the stages differ, so it is no more than a guess at what training alone would bring."
)


@dataclass(frozen=True)
class Version:
    """A version of the world: commit ("" for the working tree), file of the transformer if it was not
    bundled, name, hours and chunks of training.
    """

    revision: str
    weights: str
    stage: str
    hours: float
    chunks: int


def read_versions() -> list[Version]:
    with WORLDS.open() as file:
        return [
            Version(row["revision"], row["weights"], row["stage"], float(row["hours"]), int(row["chunks"]))
            for row in csv.DictReader(file)
        ]


def open_version(version: Version, folder: Path) -> WorldModel:
    if not version.revision:
        return WorldModel.load(resolve_world("rooms"))
    for name in FILES:
        path = version.weights if version.weights and name == FILES[-1] else f"{FOLDER}/{name}"
        content = subprocess.run(
            ["git", "show", f"{version.revision}:{path}"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        (folder / name).write_bytes(content)
    return WorldModel.load(folder)


def extrapolate(rows: list[dict]) -> str:
    """What the last versions gained per doubling of the hours, and the hours at which this reaches what is
    wanted.
    """
    doublings = np.log2([row["hours"] for row in rows[-LATE:]])
    table = []
    for rooms, wanted in WANTED.items():
        for i, goal in enumerate(wanted):
            shares = [100 * row["closed"][rooms][i] for row in rows[-LATE:]]
            slope = float(np.polyfit(doublings, shares, 1)[0])
            missing = goal - shares[-1]
            hours = "reached" if missing <= 0 else "never, by this slope"
            if missing > 0 and slope > 0:
                hours = f"{rows[-1]['hours'] * 2 ** (missing / slope):,.0f}"
            table.append(
                [f"{rooms}, chunk {CHUNKS[i]}", f"{shares[-1]:.0f} %", f"{slope:+.1f}", f"{goal} %", hours]
            )
    return markdown_table(["", "now", "points per doubling of the hours", "wanted", "at hours"], table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=16, help="rooms of each kind (default: %(default)s)")
    episodes, rows, measured = parser.parse_args().episodes, [], None
    for version in read_versions():
        with tempfile.TemporaryDirectory() as folder:
            measured = measure_in_rooms(open_version(version, Path(folder)), episodes, CHUNKS[-1])
        numbers = {"stage": version.stage, "step": 0, "samples": version.chunks, "hours": version.hours}
        scores = {name: getattr(measured, name) for name in ("closed", "contrast", "rot_err_deg", "mean")}
        rows.append({**numbers, **scores, "kept": not version.revision})
        print(version.stage, scores, flush=True)
    write_progress(PAGE, "How the bundled world grew", rows, measured)
    write_text(PAGE, f"{PAGE.read_text()}\n## The slope\n\n{INTRODUCTION}\n\n{extrapolate(rows)}\n")


if __name__ == "__main__":
    main()
