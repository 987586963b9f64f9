import math

import numpy as np
from PIL import Image

from sana_wm_env.evaluation import metrics, report


def test_a_table_is_markdown_with_aligned_cells():
    text = report.markdown_table(["a", "long name"], [["1.0 ± 0.5", "x"], ["-", "yy"]])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and all(line.count("|") == 3 for line in lines)
    assert lines[2].split("|")[1].strip() == "1.0 ± 0.5"


def test_cells_say_mean_and_interval_or_that_there_is_none():
    assert report.cell(metrics.estimate_mean(np.array([1.0, 2.0, 3.0])), 1) == "2.0 ± 2.5"
    assert report.cell(metrics.estimate_mean(np.array([2.0]))) == "2.00"
    assert report.cell(metrics.estimate_mean(np.array([math.nan]))) == report.cell(None) == "-"


def test_a_page_names_command_versions_and_pictures_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/sana-wm", "evaluate", "follow", "--json", "a b.json"])
    panels = {"error": {"world": np.array([[1.0, 2.0], [2.0, 4.0]]), "truth": np.full((2, 2), math.nan)}}
    assert report.plot_over_time(panels, "chunk", tmp_path / "curves.png")
    report.write_page(
        tmp_path / "page.md",
        "Title",
        {"versions": {"torch": "2"}, "seed": 3},
        [("Figures", "text")],
        [tmp_path / "curves.png", tmp_path / "missing.png"],
    )
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert lines[0] == "# Title" and "`sana-wm evaluate follow --json 'a b.json'`" in lines
    assert "* versions: torch 2" in lines and "* seed: 3" in lines and "## Figures" in lines
    assert "![curves](curves.png)" in lines and not [line for line in lines if "missing" in line]
    assert Image.open(tmp_path / "curves.png").width > 300
