"""`sana-wm doctor` on this machine, and its verdicts on machines that are described."""

import json
import socket

import pytest
import torch

from sana_wm_env import cli
from sana_wm_env.commands.doctor import why_not
from sana_wm_env.model.config import preset
from sana_wm_env.model.storage.layouts import published_world

PUBLISHED = published_world("2.6b", preset("2.6b"))
HUB = {"huggingface_hub": True, "diffusers": True, "transformers": True}
GPU = {
    "device": "cuda",
    "free_memory": 80 * 10**9,
    "tflops": {"float32": 50.0, "bfloat16": 700.0},
    "extras": {"hub": HUB},
}


def test_this_machine_is_described_without_a_connection(tmp_path, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert cli.main(["doctor", "--json", str(tmp_path / "found.json")]) == 0
    text, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    machine, presets = found["machine"], found["presets"]
    assert machine["torch"] == torch.__version__ and machine["free_disk"] > 0
    assert min(machine["tflops"].values()) > 0 and machine["free_memory"] > 10**6
    assert list(presets) == ["tiny-rooms", "2.6b"] and presets["tiny-rooms"]["fits"]
    assert sum(presets["2.6b"]["bytes"].values()) > max(presets["2.6b"]["peak_bytes"].values()) > 10**10
    for name, row in presets.items():
        assert row["fits"] == (not row["reasons"]) and f"{name}: {row['image_size'][0]} x" in text
        assert all(f"does not fit: {reason}" in text for reason in row["reasons"])
    if (
        machine["device"] == "cpu" and max(machine["tflops"].values()) < 1
    ):  # hours for a minute of video, whatever the memory
        assert (
            not presets["2.6b"]["fits"]
            and "no CUDA device" in text
            and "largest that fits: tiny-rooms" in text
        )


def test_a_large_gpu_fits():
    assert why_not(PUBLISHED, 9 * 10**9, GPU) == []


@pytest.mark.parametrize(
    "lacks, said",
    [
        ({"free_memory": 8 * 10**9}, "needs 9.0 GB, 8.0 GB are free"),
        (
            {"device": "cpu", "tflops": {"float32": 0.5, "bfloat16": 1.0}},
            "at least 101 s for 1.5 s of video; no CUDA device",
        ),
        (
            {"extras": {"hub": {**HUB, "diffusers": False}}},
            "not installed: diffusers (pip install 'sana-wm-env[hub]')",
        ),
    ],
)
def test_what_stands_against_it_is_said(lacks, said):
    (reason,) = why_not(PUBLISHED, 9 * 10**9, GPU | lacks)
    assert said in reason
