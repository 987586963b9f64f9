"""What every measurement leaves behind: a header that says what was measured with what, tables, plots, and one Markdown page."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sana_wm_env.model.world import WorldModel

from . import metrics


def provenance(world: WorldModel) -> dict:
    """Which weights were measured, and with which versions. Holds no times, so that two runs agree."""
    from .fidelity import weights_digest

    return {
        "world": world.config.name,
        "weights_sha256": weights_digest(world),
        "versions": {
            "sana-wm-env": version("sana-wm-env"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "image_size": list(world.config.image_size),
    }


def command_line() -> str:
    """The command that is running, as one would type it."""
    name = Path(sys.argv[0]).name
    return shlex.join(["sana-wm" if name == "cli.py" else name, *sys.argv[1:]])  # cli.py: by `python -m sana_wm_env.cli`


def cell(value: metrics.Estimate | float | None, digits: int = 2) -> str:
    """Mean and half width of the 95 % interval, or a plain number."""
    if isinstance(value, metrics.Estimate):
        if value.mean is None:
            return "-"
        return f"{value.mean:.{digits}f}" + ("" if value.high is None else f" ± {value.high - value.mean:.{digits}f}")
    return "-" if value is None else f"{value:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown whose columns are as wide as their cells, so that it reads well as plain text, too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def plot_over_time(panels: Mapping[str, Mapping[str, np.ndarray]], x_label: str, path: Path, x: np.ndarray | None = None) -> bool:
    """Draws one panel per figure with a line per condition, the mean over episodes and its 95 % band.

    Args:
        panels: title -> label -> (N, K) values per episode and place on the x axis; NaN where nothing was measured.
        x_label: of all panels.
        path: the picture to write.
        x: (K,) places; 1 to K by default.

    Returns:
        Whether it was drawn: without matplotlib (extra `train`) one line says so.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        tqdm.write("matplotlib is not installed (pip install 'sana-wm-env[train]'): no plot is drawn")
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, values in lines.items():
            places = np.arange(1, values.shape[1] + 1) if x is None else x
            bands = [metrics.estimate(column) for column in values.T]
            mean, low, high = (np.array([getattr(b, name) for b in bands], float) for name in ("mean", "low", "high"))
            (drawn,) = axis.plot(places, mean, label=label, linewidth=1.4)
            axis.fill_between(places, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x_label)
        axis.grid(alpha=0.25)
    # Panels may show different conditions, under colours of their own: a legend below each.
    for axis in axes[0]:
        axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def write_page(path: Path, title: str, header: Mapping, sections: Sequence[tuple[str, str]], pictures: Sequence[Path]) -> None:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
