"""The recipe of a ladder: a small TOML file that names the stages, the share of the hours that each gets, and
its arguments.
"""

import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = (
    "autoencoder", "bidirectional", "causal", "teacher-forcing", "ode", "self-forcing", "distill", "refiner"
)  # fmt: skip
FIELDS = ("stage", "name", "share", "arguments")
FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Rung:
    """One stage of a recipe: the name of its run, its share of the hours (all shares sum to 1), and what
    follows `sana-wm train STAGE`.
    """

    stage: str
    name: str
    share: float
    arguments: list[str]


def read_recipe(path: Path, without_autoencoder: bool = False) -> list[Rung]:
    """The rungs of a recipe in order. Raises ValueError that names what is wrong in it, FileNotFoundError if
    there is none.

    without_autoencoder: leave its stage out, as it is taken from a world; the hours go to the others.
    """
    try:
        recipe = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"got {path}, which is no TOML: {error}") from None
    if unknown := set(recipe) - {"data", "stages"}:
        raise ValueError(
            f"got {', '.join(sorted(unknown))} in {path}; wanted [[stages]], and data for all of them"
        )
    data = shlex.split(recipe.get("data", ""))
    rungs = [_read_rung(path, number, row, data) for number, row in enumerate(recipe.get("stages", []), 1)]
    names = [rung.name for rung in rungs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"got two stages named {', '.join(sorted(twice))} in {path}; give one a name of "
            "its own: name = '...'"
        )
    kept = [rung for rung in rungs if not (without_autoencoder and rung.stage == "autoencoder")]
    if not any(rung.stage not in ("autoencoder", "refiner") for rung in kept):
        raise ValueError(
            f"got no stage of the transformer in {path}; wanted one of "
            f"{', '.join(STAGES[1:-1])} under [[stages]]"
        )
    total = sum(rung.share for rung in kept)
    return [Rung(rung.stage, rung.name, rung.share / total, rung.arguments) for rung in kept]


def _read_rung(path: Path, number: int, row: dict[str, Any], data: list[str]) -> Rung:
    where = f"stage {number} of {path}"
    if unknown := set(row) - set(FIELDS):
        raise ValueError(f"got {', '.join(sorted(unknown))} in {where}; wanted {', '.join(FIELDS)}")
    stage, share, arguments = row.get("stage"), row.get("share"), row.get("arguments", "")
    if stage not in STAGES:
        raise ValueError(f"got stage = {stage!r} in {where}; wanted one of {', '.join(STAGES)}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not share > 0:
        raise ValueError(f"got share = {share!r} in {where}; wanted a number above 0: its share of the hours")
    if not isinstance(arguments, str):
        raise ValueError(f"got arguments = {arguments!r} in {where}; wanted one text, such as '--batch 16'")
    return Rung(
        stage,
        row.get("name", stage),
        float(share),
        ([] if stage in ("autoencoder", "refiner") else data) + shlex.split(arguments),
    )
