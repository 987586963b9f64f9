import json
from pathlib import Path

import pytest
import torch
from tiny_networks import clip, tiny_config, tiny_network

from sana_wm_env.model.config import PRESETS, TransformerConfig, preset
from sana_wm_env.model.network.transformer import TimeEmbedding, Transformer

KEYS = Path(__file__).parents[1] / "fixtures" / "checkpoint_keys.json"


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        network = Transformer(preset("2.6b"))
    ours = {key: list(t.shape) for key, t in network.state_dict().items()}
    assert ours == json.loads(KEYS.read_text()) and len(ours) == 872
    assert sum(p.numel() for p in network.parameters()) == 2_661_800_448


def velocity(network: Transformer, given: dict, rule: str = "bidirectional") -> torch.Tensor:
    text = network.text_context(given["text"], given["mask"])
    cameras = network.camera_context(given["camera"], given["plucker"])
    return network(
        given["x"], torch.full((given["x"].shape[0], given["x"].shape[2]), 500.0), text, cameras, rule
    )


@torch.no_grad()
def test_cameras_change_nothing_before_training():
    torch.manual_seed(0)
    network = Transformer(tiny_config()).double()
    still, moving = clip(4, step_m=0.0), clip(4, step_m=0.5)
    assert not torch.equal(still["camera"], moving["camera"])
    assert torch.equal(velocity(network, still), velocity(network, moving))
    assert velocity(network, still).std() > 0.1


@torch.no_grad()
def test_cameras_matter_afterwards(network):
    assert (
        velocity(network, clip(4, step_m=0.0)) - velocity(network, clip(4, step_m=0.5))
    ).abs().max() > 1e-3


@torch.no_grad()
def test_the_camera_branch_starts_as_a_copy():
    network = Transformer(tiny_config())
    for block in network.blocks:
        copies = torch.cat(
            [block.attn.q_proj_cam.weight, block.attn.k_proj_cam.weight, block.attn.v_proj_cam.weight]
        )
        assert torch.equal(copies, block.attn.qkv.weight)
        assert not block.attn.out_proj_cam.weight.any()


@torch.no_grad()
def test_padding_of_the_text_is_not_read(network):
    given = clip(4)
    other = {**given, "text": given["text"].clone()}
    other["text"][:, 3:] += 5
    assert torch.equal(velocity(network, given), velocity(network, other))
    other["text"][:, :3] += 5
    assert not torch.allclose(velocity(network, given), velocity(network, other))


@torch.no_grad()
def test_timesteps_are_cut_to_whole_numbers():
    embed = TimeEmbedding(8)
    assert torch.equal(embed(torch.tensor([[998.99, 0.5]])), embed(torch.tensor([[998.0, 0.0]])))
    assert not torch.equal(embed(torch.tensor([[998.0]])), embed(torch.tensor([[999.0]])))


@pytest.mark.parametrize("rule", ["bidirectional", "chunk_causal"])
def test_every_weight_that_is_read_gets_a_gradient(rule):
    network = tiny_network(torch.float32)
    velocity(network, clip(7, batch=2, dtype=torch.float32), rule).square().mean().backward()
    silent = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    unread = {
        f"blocks.3.attn.{name}"
        for name in (
            "A_log",
            "dt_bias",
            "beta_proj.weight",
            "beta_proj.bias",
            "gate_proj.weight",
            "gate_proj.bias",
        )
    }
    assert silent == unread | {"raymap_embedder.proj.weight", "raymap_embedder.proj.bias"}
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_nothing_is_stuck_at_its_initial_zero():
    """After one step of plain descent from scratch every weight that is read moves, the silent camera paths
    included.
    """
    torch.manual_seed(0)
    network, given = Transformer(tiny_config()), clip(7, batch=2, dtype=torch.float32)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        velocity(network, given).square().mean().backward()
        optimiser.step()
    moved = [b.plucker_proj.weight.abs().max() > 0 for b in network.blocks] + [
        b.attn.out_proj_cam.weight.abs().max() > 0 for b in network.blocks
    ]
    assert all(moved) and network.plucker_embedder.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_a_round_trip(name):
    config = preset(name)
    assert TransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 3}, "not a multiple of heads"),
        ({"width": 24}, "multiple of 8"),
        ({"depth": 0}, "at least 1"),
        ({"cam_rms_clamp": "some"}, "cam_rms_clamp is 'some'"),
    ],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        tiny_config(**changes)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match=r"known are rooms, 2\.6b"):
        preset("room")
