"""`sana-wm roofline`: computed bounds against counts by hand."""

import pytest

from sana_wm_env import cli
from sana_wm_env.commands.roofline import CARDS, Pass, bound_seconds, count_pass
from sana_wm_env.model.config import preset

GRID = (22, 40)
ROWS = 3 * 22 * 40
SIZES = preset("2.6b")


@pytest.fixture(scope="module")
def passes() -> dict:
    return {precision: count_pass(SIZES, GRID, 10**9, precision) for precision in (None, "fp8", "nvfp4")}


def test_quantised_products_are_those_of_the_recipe(passes):
    """qkv, output gate, output, two of the text, and the feed-forward's pair, in twenty blocks; the prompt's
    keys are made once.
    """
    width, hidden = SIZES.width, SIZES.ffn_width
    flops = 20 * 2 * ROWS * width * (3 * width + width + width + 2 * width + 2 * hidden + hidden)
    assert {sum(f for f, _ in passed.products) for passed in passes.values()} == {flops}
    assert len(passes["nvfp4"].products) == 20 * 7 and len({passed.other for passed in passes.values()}) == 1


def test_all_operations_of_a_pass_are_counted(passes):
    """The published description counts 15.3 TFLOP with what is computed once per prompt and chunk, 14.8
    without.
    """
    wide = passes[None]
    assert 14.3e12 < sum(f for f, _ in wide.products) + wide.other[0] < 15.0e12


def test_few_bits_move_fewer_bytes(passes):
    """A weight of 2240 x 2240: 2 bytes a number, 1, or a half and a sixteenth."""
    square = 2240 * 2240
    sizes = {precision: dict(passed.products)[2 * ROWS * square] for precision, passed in passes.items()}
    wide = 2 * ROWS * (2240 + 2240)
    assert sizes[None] == wide + 2 * square
    assert sizes["fp8"] == wide + square + 4 * 2240 + 2 * (ROWS * 2240 + 4 * ROWS)
    assert sizes["nvfp4"] == wide + square * 9 // 16 + 4 + 2 * (ROWS * 2240 * 9 // 16 + 4)


def test_a_bound_is_the_slower_of_arithmetic_and_memory():
    card = CARDS["h100"]
    assert bound_seconds(Pass([(10**12, 1)], (0, 0)), card, None) == pytest.approx(
        1 / card.tflops["bfloat16"]
    )
    assert bound_seconds(Pass([(10**12, 1)], (0, 0)), card, "fp8") == pytest.approx(1 / card.tflops["fp8"])
    assert bound_seconds(Pass([(1, 10**9)], (0, 0)), card, "fp8") == pytest.approx(1 / card.gb_per_s)
    both = Pass([(10**12, 1), (1, 10**9)], (2 * 10**12, 5))
    assert bound_seconds(both, card, None) == pytest.approx(3 / card.tflops["bfloat16"] + 1 / card.gb_per_s)


def test_the_table_names_what_a_card_cannot(capsys):
    assert cli.main(["roofline", "--preset", "rooms", "--grid", "8", "8", "--cards", "h100", "b200"]) == 0
    said = capsys.readouterr().out
    hopper, blackwell = said.split("B200:")
    assert hopper.count("its tensor cores do not multiply it") == 2 and "do not multiply" not in blackwell
    assert "GeForce" not in said and "precision_speed.py --device cuda --preset rooms --grid 8 8" in said
    assert (
        cli.main(["roofline", "--cards", "h300"]) == 2
        and "got --cards h300; wanted some of rtx5090, h100, b200" in capsys.readouterr().err
    )
