from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sana_wm_env.commands import parity

FIXTURES = Path(__file__).parent / "fixtures"
CURRENT = FIXTURES / "streaming_current.safetensors"


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (not a dict)


@pytest.fixture(scope="module")
def goldens(tmp_path_factory) -> list[str]:
    """All three variants; their weights are the same and are kept once."""
    folder = tmp_path_factory.mktemp("goldens")
    weights = {key: t for key, t in read(CURRENT)[0].items() if key.startswith("weights.")}
    files = [str(CURRENT)]
    for name in ("streaming_v1", "streaming_clamped"):
        tensors, metadata = read(FIXTURES / f"{name}.without_weights.safetensors")
        save_file({**weights, **tensors}, folder / f"{name}.safetensors", metadata)
        files.append(str(folder / f"{name}.safetensors"))
    return files


def test_all_variants_agree_with_the_official_code(goldens, capsys):
    assert parity.run(goldens) == 0
    table = capsys.readouterr().out
    rows = [line for line in table.splitlines() if line.startswith("streaming_")]
    assert len(rows) == 6 and not any("!" in row or " - " in row for row in rows)


def test_one_wrong_weight_is_noticed(tmp_path, capsys):
    tensors, metadata = read(CURRENT)
    tensors["weights.blocks.1.mlp.t_conv.weight"][0, 0, 0, 0] += 0.1
    save_file(tensors, tmp_path / "wrong.safetensors", metadata)
    assert parity.run([str(tmp_path / "wrong.safetensors")]) == 1
    assert "!" in capsys.readouterr().out


def test_a_trace_that_is_not_a_number_is_noticed(tmp_path):
    tensors, metadata = read(CURRENT)
    tensors["trace.chunk1.step0.v"][0, 0, 0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors", metadata)
    assert parity.run([str(tmp_path / "nan.safetensors")]) == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("variant", "mystery", "variant is 'mystery'; known are nvlabs"),
        ("heads", "5", "width 96 is not heads 5 times head_dim 24"),
        ("heads", None, "metadata has no heads"),
        ("layers", "3", "unexpected blocks.3."),
        ("layers", "many", "layers is 'many'; wanted a whole number"),
        ("grid", "3", "grid is '3'; wanted HxW"),
        ("grid", "4x3", "inputs.noise is (1, 8, 13, 3, 4); its metadata makes it (1, 8, 13, 4, 3)"),
        ("sigmas", "1.0,0.5,0.3,0.2,0.1,0.0", "has no tensor trace.chunk0.step4.v"),
    ],
)
def test_metadata_is_checked(tmp_path, capsys, key, value, said):
    tensors, metadata = read(CURRENT)
    metadata = {k: v for k, v in {**metadata, key: value}.items() if v is not None}
    save_file(tensors, tmp_path / "odd.safetensors", metadata)
    assert parity.run([str(tmp_path / "odd.safetensors")]) == 2
    assert said in capsys.readouterr().err


def test_unreadable_files_are_named_and_the_others_still_run(tmp_path, capsys):
    (tmp_path / "text.safetensors").write_text("not a tensor in sight")
    assert (
        parity.run([str(tmp_path / "missing.safetensors"), str(tmp_path / "text.safetensors"), str(CURRENT)])
        == 2
    )
    printed = capsys.readouterr()
    assert "missing.safetensors: cannot be read" in printed.err
    assert "text.safetensors: cannot be read" in printed.err
    assert "streaming_current.safetensors" in printed.out
