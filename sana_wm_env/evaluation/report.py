"""Reports of measurements: a header that says what was measured with what, tables, plots, and one Markdown
page.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from sana_wm_env.model.world import WorldModel

from ..files import write_text, write_whole
from ..outputs import Output, check_outputs, name_beside
from ..progress import write_line
from . import metrics


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide the results."""
    libraries = ("sana-wm-env", "torch", "numpy", "gymnasium")
    return {name: version(name) for name in libraries} | {"python": platform.python_version()}


def provenance(world: WorldModel) -> dict:
    """Returns the weights and versions of a measurement. Holds no times, so that two runs agree."""
    return {
        "world": world.config.name,
        "weights_sha256": weights_digest(world),
        "versions": versions(),
        "image_size": list(world.config.image_size),
    } | ({"refiner": world.refiner.fingerprint} if world.refiner else {})


def weights_digest(world: WorldModel) -> str:
    """SHA-256 over names and values of all weights, so that a report names the very network it measured."""
    digest = hashlib.sha256()
    for part in (world.autoencoder, world.transformer):
        for name, value in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON, without the path of its own report."""
    return json.loads(
        json.dumps({key: value for key, value in asdict(config).items() if key != "json"}, default=str)
    )


def command_line() -> str:
    """The command that is running, as one would type it."""
    name = Path(sys.argv[0]).name
    command = ["python", sys.argv[0]] if name.endswith(".py") else [name]
    if name == "cli.py":  # by `python -m sana_wm_env.cli`
        command = ["sana-wm"]
    return shlex.join([*command, *sys.argv[1:]])


def cell(value: metrics.Estimate | float | None, digits: int = 2) -> str:
    """Mean and half width of the 95 % interval, or a plain number."""
    if isinstance(value, metrics.Estimate):
        if value.mean is None:
            return "-"
        return f"{value.mean:.{digits}f}" + (
            "" if value.high is None else f" ± {value.high - value.mean:.{digits}f}"
        )
    return "-" if value is None else f"{value:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown whose columns are as wide as their cells, so that it reads well as plain text,
    too.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join(
        [line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]
    )


def plot_over_time(
    panels: Mapping[str, Mapping[str, np.ndarray]], x_label: str, path: Path, x: np.ndarray | None = None
) -> bool:
    """Draws one panel per figure with a line per condition, the mean over episodes and its 95 % band.

    Args:
        panels: title -> label -> (N, K) values per episode and place on the x axis; NaN where nothing was
            measured.
        x_label: of all panels.
        path: the picture to write.
        x: (K,) places; 1 to K by default.

    Returns:
        True if it was drawn: without matplotlib (extra `train`) one line says so.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        write_line("matplotlib is not installed (pip install 'sana-wm-env[train]'): no plot is drawn")
        return False
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, values in lines.items():
            places = np.arange(1, values.shape[1] + 1) if x is None else x
            bands = [metrics.estimate_mean(column) for column in values.T]
            mean, low, high = (
                np.array([getattr(b, name) for b in bands], float) for name in ("mean", "low", "high")
            )
            (drawn,) = axis.plot(places, mean, label=label, linewidth=1.4)
            axis.fill_between(places, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x_label)
        axis.grid(alpha=0.25)
    # Panels may show different conditions, under colours of their own: a legend below each.
    for axis in axes[0]:
        axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format=path.suffix[1:]))
    plt.close(figure)
    return True


def write_page(
    path: Path, title: str, header: Mapping, sections: Sequence[tuple[str, str]], pictures: Sequence[Path]
) -> None:
    """Writes one Markdown page: the command line, versions and seeds, then sections, then pictures.

    Args:
        path: the .md file.
        title: its heading.
        header: what was measured with what; nested dicts are written as one line each.
        sections: heading and text of each.
        pictures: files to show; those that do not exist are left out.
    """
    lines = [f"# {title}", "", f"`{command_line()}`", ""]
    for key, value in header.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        lines.append(f"* {key}: {text}")
    for heading, text in sections:
        lines += ["", f"## {heading}", "", text]
    for picture in pictures:
        if picture.exists():
            lines += ["", f"![{picture.stem}]({os.path.relpath(picture, path.parent)})"]
    write_text(path, "\n".join(lines) + "\n")


def check_report(json: Path, beside: Iterable[Path] = (), page: bool = True) -> None:
    """ValueError if a report, its page or the pictures beside it could not be written."""
    named = [Output("the page beside --json", name_beside(json, ".md"))] if page else []
    check_outputs(
        Output("--json", json, (".json",)), *named, *(Output("a picture of --json", path) for path in beside)
    )


def save_picture(picture: Image, path: Path) -> None:
    """Writes a .png, whole or not at all."""
    write_whole(path, lambda part: picture.save(part, format="png"))


class Notebook:
    """Records that survive an interruption: one JSON line each, under a first line that says what is being
    measured.

    Args:
        path: of the report; records are kept beside it, at PATH.part. None to keep them in memory alone.
        header: what is measured; records of anything else are refused.

    Raises:
        ValueError: PATH.part belongs to another measurement.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]):
        self.part = None if path is None else path.with_name(path.name + ".part")
        self.records: dict[str, dict[str, Any]] = {}
        first = json.dumps(header, sort_keys=True)
        if self.part is None:
            return
        if self.part.exists():
            head, *lines = self.part.read_text().split("\n")
            if head != first:
                raise ValueError(
                    f"got {self.part}, left by another measurement; wanted one with the same "
                    "arguments: delete it"
                )
            complete = lines[:-1]  # what follows the last line end was cut off while it was written
            self.records = {entry["key"]: entry["record"] for entry in map(json.loads, complete)}
            write_text(self.part, "\n".join([head, *complete]) + "\n")
        else:
            write_text(self.part, first + "\n")

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Keeps a record at once."""
        self.records[key] = record
        if self.part is not None:
            with self.part.open("a") as file:
                file.write(json.dumps({"key": key, "record": record}) + "\n")

    def close(self) -> None:
        """Deletes the kept records, once the report is written."""
        if self.part is not None:
            self.part.unlink()
