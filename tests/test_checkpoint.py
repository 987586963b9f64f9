"""`sana-wm checkpoint` on the bundled world."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_wm_env import cli
from sana_wm_env.model.codecs.refiner import find_refiner
from sana_wm_env.model.storage.worlds import resolve_world

KEYS = Path(__file__).parent / "fixtures" / "checkpoint_keys.json"


def test_keys_of_the_published_network(tmp_path, capsys):
    assert cli.main(["checkpoint", "keys", "--preset", "2.6b", "--json", str(tmp_path / "keys.json")]) == 0
    assert json.loads((tmp_path / "keys.json").read_text()) == json.loads(KEYS.read_text())
    assert "872 names, 2,661,800,448 parameters" in capsys.readouterr().out
    assert cli.main(["checkpoint", "keys", "--preset", "rooms"]) == 0
    assert "blocks.0.attn.qkv.weight  (576, 192)" in capsys.readouterr().out
    assert cli.main(["checkpoint", "keys", "--preset", "9b"]) == 2
    assert "got --preset 9b; wanted one of rooms, 2.6b" in capsys.readouterr().err


def test_inspect_counts_what_is_there(tmp_path, capsys):
    assert cli.main(["checkpoint", "inspect", "rooms", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    held = load_file(found["files"][0])
    assert (found["layout"], found["tensors"]) == ("world", len(held))
    assert found["parameters"] == sum(t.numel() for t in held.values())
    assert found["bytes"] == sum(t.numel() * t.element_size() for t in held.values()) < found["file_bytes"]
    assert found["dtypes"] == {"float16": len(held)} and found["norms"] == {}
    assert f"parameters  {found['parameters']:,}" in capsys.readouterr().out
    clips = found["undistilled"]  # the same network with the weights of whole clips
    assert clips["files"] != found["files"] and clips["parameters"] == found["parameters"]


def test_inspect_names_what_does_not_fit(tmp_path, capsys):
    held = {
        "t_block.1.bias": torch.ones(3),
        "extra": torch.zeros(1),
        "blocks.0.attn.qkv.weight": torch.ones(6720, 2240),
    }
    save_file(held, tmp_path / "odd.safetensors")
    assert cli.main(["checkpoint", "inspect", str(tmp_path / "odd.safetensors")]) == 1
    said = capsys.readouterr().out
    assert (
        "unexpected  extra" in said
        and "t_block.1.bias (3,) instead of (13440,)" in said
        and "x_embedder.proj.weight" in said
    )
    norm = (6720 * 2240) ** 0.5
    assert f"blocks.0.attn.qkv.weight {norm:.2f} (720.04 is reported" in said


def test_convert_there_and_back(tmp_path, capsys):
    first, second = tmp_path / "diffusers", tmp_path / "world"
    assert cli.main(["checkpoint", "convert", "rooms", str(first), "--to", "diffusers"]) == 0
    assert (
        cli.main(["checkpoint", "inspect", str(first)]) == 0
        and "layout      diffusers" in capsys.readouterr().out
    )
    assert cli.main(["checkpoint", "convert", str(first), str(second), "--to", "world"]) == 0
    for name in ("transformer", "transformer-undistilled", "autoencoder"):
        before, after = (
            load_file(folder / f"{name}.safetensors") for folder in (resolve_world("rooms"), second)
        )
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    refiners = [find_refiner(folder, "auto") for folder in (resolve_world("rooms"), first, second)]
    assert all(found.config == refiners[0].config for found in refiners)
    assert [found.folder for found in refiners[1:]] == [folder / "refiner" for folder in (first, second)]
    assert cli.main(["checkpoint", "convert", "rooms", str(second), "--to", "world"]) == 2
    assert "holds config.json already; wanted a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["inspect", "nowhere"], ["convert", "nowhere", "out", "--to", "native"]])
def test_an_unknown_checkpoint_is_refused(argv, capsys):
    assert cli.main(["checkpoint", *argv]) == 2
    assert (
        "unknown world 'nowhere'" in capsys.readouterr().err
        and not Path("out").joinpath("config.json").exists()
    )
