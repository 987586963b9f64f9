import sys

import numpy as np
import pytest

from sana_wm_env.cli import main
from sana_wm_env.commands.explain import differences, explain, frame_count, segment_in_words
from sana_wm_env.keys import keys_to_path, motions

WALK = ["actions", "explain", "w-48,dw-24,none-24"]


def in_words(text, scheme):
    """What each line says that begins with a segment."""
    return [line.split(" s   ")[1] for line in explain(text, scheme)[: text.count(",") + 1]]


def test_the_segments_of_both_schemes():
    coasted = sum(
        np.exp(-np.arange(1, 25) / 16)
    )  # frames' worth of motion after the keys, with a time constant of one second
    assert in_words("w-48,dw-24,none-24", "sana-v2") == [
        "forward 1.20 m",
        "forward 0.60 m, turn right 14.4 degrees",
        f"forward {0.025 * coasted:.2f} m (coasting), turn right {0.6 * coasted:.1f} degrees (coasting)",
    ]
    assert in_words("w-48,dw-24,none-24", "sana-v1") == [
        "forward 2.40 m",
        "forward 1.20 m, step right 1.20 m",
        "stand still",
    ]


@pytest.mark.parametrize(
    ("text", "scheme", "said"),
    [
        ("s-40", "sana-v1", "back 2.00 m"),
        ("ws-24", "sana-v2", "stand still"),
        ("k-110", "sana-v2", "look down 60.0 degrees, and no further than the limit of 60 degrees"),
        ("i-100", "sana-v1", "look up 84.0 degrees, and no further than the limit of 85 degrees"),
        ("ajl-10", "sana-v1", "step left 0.50 m"),
        ("ajl-10", "sana-v2", "turn left 6.0 degrees"),
    ],
)
def test_words_and_figures(text, scheme, said):
    assert segment_in_words(text.split("-")[0], motions(text, scheme), scheme) == said


def test_where_it_ends_and_how_fast_it_gets():
    end = explain("w-24,d-48", "sana-v2")[2:]
    assert "z = 0.600 m (forward)" in end[0] and "x = 0.000 m" in end[0]
    assert "turned by 28.8 degrees (to the right) and looking up by 0.0 degrees" in end[1]
    assert "moves 0.6 m and turns 0.2514 rad per chunk" in end[2]


def test_the_rule_of_frames():
    assert frame_count(96).endswith("6.0 s at 16 frames per second: 4 chunks of 24")
    assert "the nearest are 96 and 120; none-22 at the end makes 120" in frame_count(98)
    assert "the nearest are 24 and 48; none-14 at the end makes 24" in frame_count(10)


def test_differences_name_the_keys_that_are_used():
    lines = differences("wd-24,none-2,j-1", "sana-v1", "sana-v2")
    assert lines[:2] == [
        "key d: step right in sana-v1, turn right in sana-v2",
        "key j: turn left in sana-v1, step left in sana-v2",
    ]
    assert not any(line.startswith(("key w", "key a", "key l")) for line in lines)
    assert "speed per frame: 0.05 m or 1.2 degrees in sana-v1, 0.025 m or 0.6 degrees in sana-v2" in lines


def test_the_command(tmp_path, capsys):
    assert main([*WALK, "--scheme", "sana-v1", "--out", str(tmp_path / "new" / "path.npy")]) == 0
    said = capsys.readouterr().out
    assert "in sana-v1\n96 frames" in said and "In sana-v2 it would be" in said and "assumed" not in said
    path = np.load(tmp_path / "new" / "path.npy")
    np.testing.assert_array_equal(path, keys_to_path("w-48,dw-24,none-24", "sana-v1"))
    assert path.dtype == np.float64


def test_an_assumed_scheme_is_said(capsys):
    assert main(WALK) == 0
    assert "in sana-v2 (assumed: no --scheme was given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["actions", "explain", "x-24"], "got the key 'x'"),
        (["actions", "explain", "w24"], "got the segment 'w24'"),
        ([*WALK, "--out", "path.txt"], "ends in .npy"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(argv, message, capsys):
    assert main(argv) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out


def test_without_matplotlib_the_plot_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*WALK, "--plot", str(tmp_path / "a.png"), "--out", str(tmp_path / "a.npy")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from PIL import Image

    assert main([*WALK, "--plot", str(tmp_path / "new" / "a.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "new" / "a.png").convert("RGB")).astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 100).nonzero()
    assert len(blue[0]) > 200 and np.ptp(blue[0]) > 100  # the path, upwards
    assert f"wrote {tmp_path / 'new' / 'a.png'}" in capsys.readouterr().out
