"""The refiner's training: its flow, its adapters, its pairs, and the three phases in small."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_refiners import tiny_refiner
from torch import nn

from sana_wm_env import cli
from sana_wm_env.model.codecs.refiner import find_refiner
from sana_wm_env.model.refiner import sample
from sana_wm_env.model.world import WorldModel
from sana_wm_env.train.data.pairs import Pairs, imagine_latents
from sana_wm_env.train.loop import LoopConfig, train
from sana_wm_env.train.lora import add_lora, merge_lora
from sana_wm_env.train.refiner import (
    RefineConfig,
    RefinerStage,
    draw_levels,
    truncate_flow,
    wear,
    write_refiner,
)


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Three sessions of four blocks; the imagined is the true, blurred."""
    true = latents(3, 13, 48, 2, 3).half()
    imagined = torch.cat([true[:, :1], 0.5 * true[:, 1:]], 1)
    return Pairs(imagined, true, ["a red room", "a green room", ""])


def stage(pairs: Pairs, runs: Path, phase: str, **settings) -> RefinerStage:
    loop = LoopConfig(steps=3, batch=4, preview=0, precision="fp32")
    sizes = {"layers": 2, "heads": 2, "head_dim": 16, "lora_rank": 4}
    return RefinerStage(RefineConfig(runs=runs, phase=phase, loop=loop, **sizes | settings), pairs)


# ---- the flow


def test_the_truncated_flow_begins_at_the_truth_and_ends_at_noised_stage_1():
    true, imagined, noise = (latents(2, 4, 3, 2, 2, seed=seed) for seed in range(3))
    start = 0.4 * imagined + 0.6 * noise
    x, v = truncate_flow(true, imagined, noise, torch.tensor([0.0, 0.6]), 0.6)
    assert torch.equal(x[0], true[0])
    assert (x[1] - start[1]).abs().max() < 1e-6
    # along the line: x at any level less the level's share of the velocity is the truth
    for sigma in (0.1, 0.35, 0.6):
        x, v = truncate_flow(true, imagined, noise, torch.full((2,), sigma), 0.6)
        assert (x - sigma * v - true).abs().max() < 1e-5


def test_with_the_highest_level_it_is_plain_flow():
    true, imagined, noise = (latents(2, 4, 3, 2, 2, seed=seed) for seed in range(3))
    x, v = truncate_flow(true, imagined, noise, torch.full((2,), 0.3), 1.0)
    assert (x - torch.lerp(true, noise, 0.3)).abs().max() < 1e-6
    assert (v - (noise - true)).abs().max() < 1e-6


@pytest.mark.parametrize("phase", ["base", "pairs", "streaming"])
def test_the_exact_student_has_no_loss(pairs, tmp_path, phase, monkeypatch):
    trained = stage(pairs, tmp_path, phase)
    seen = {}

    def remembering(true, imagined, noise, sigma, highest):
        seen["x"], seen["v"] = truncate_flow(true, imagined, noise, sigma, highest)
        return seen["x"], seen["v"]

    monkeypatch.setattr("sana_wm_env.train.refiner.truncate_flow", remembering)
    with torch.no_grad():
        learned, _ = trained.loss(4, torch.Generator().manual_seed(0))
        assert learned > 0.1
        # a network that says what the line says: its output is taken from what `loss` has drawn
        monkeypatch.setattr(
            type(trained.network), "forward", lambda self, x, *rest: (seen["v"], _left(trained, x))
        )
        exact, _ = trained.loss(4, torch.Generator().manual_seed(0))
    assert exact == 0


def _left(trained: RefinerStage, x: torch.Tensor):
    from sana_wm_env.model.state import KeysValues

    tokens = x.shape[2] * x.shape[3] * x.shape[4]
    empty = torch.zeros(len(x), 2, tokens, 16)
    return tuple(KeysValues(empty, empty) for _ in range(2))


def test_levels_are_levels():
    drawn = draw_levels(20_000, 192, torch.Generator().manual_seed(0))
    assert drawn.min() > 0 and drawn.max() <= 1
    assert 0.6 < drawn.median() < 0.7  # sigmoid of the mean 0.652, stretched
    many = draw_levels(20_000, 10**6, torch.Generator().manual_seed(0))
    assert torch.isfinite(many).all() and many.median() > drawn.median()  # the mean is bounded


def test_a_worn_past_is_near_the_truth_and_not_it():
    true = latents(4, 8, 3, 4, 4)
    worn = wear(true, 0.5 * true, torch.Generator().manual_seed(1))
    error = (worn - true).square().mean() / true.square().mean()
    assert 0.001 < error < 0.5
    assert torch.equal(worn, wear(true, 0.5 * true, torch.Generator().manual_seed(1)))


# ---- adapters


def test_a_merged_adapter_equals_base_plus_adapter():
    refiner = tiny_refiner()
    network = refiner.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    add_lora(network, 3)
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trainable and all(name.endswith((".up", ".down")) for name in trainable)
    block = latents(1, 6, 3, 2, 3)
    with torch.no_grad():
        state = refiner.start(latents(1, 6, 1, 2, 3), ["a"])
        untouched, _ = refiner.refine(block, state)
        for name, parameter in network.named_parameters():
            if name.endswith(".up"):
                parameter.copy_(0.1 * latents(*parameter.shape, seed=len(name)))
        adapted, _ = refiner.refine(block, refiner.start(latents(1, 6, 1, 2, 3), ["a"]))
        assert not torch.equal(adapted, untouched)
        added = {
            name: layer.parametrizations.weight[0].up @ layer.parametrizations.weight[0].down
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear) and hasattr(layer, "parametrizations")
        }
        merge_lora(network)
        merged, _ = refiner.refine(block, refiner.start(latents(1, 6, 1, 2, 3), ["a"]))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert (merged - adapted).abs().max() < 1e-6
    for name, value in before.items():
        layer = name.removesuffix(".weight")
        wanted = value + added[layer] if layer in added and name.endswith(".weight") else value
        assert (after[name] - wanted).abs().max() < 1e-6
    assert len(added) == 3 * 10  # per block q, k, v and output twice, and two of the feed-forward


# ---- pairs and phases


def test_pairs_are_what_the_world_imagines():
    world = WorldModel.load("tiny-rooms", dtype=torch.float32)
    image = torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)
    image[:, 20:40, 10:30] = torch.tensor([200, 60, 30], dtype=torch.uint8)
    c2w = torch.eye(4, dtype=torch.float64).repeat(1, 49, 1, 1)
    c2w[:, :, 2, 3] = 0.02 * torch.arange(49)
    intrinsics = torch.tensor([[50.0, 50.0, 32.0, 32.0]])
    first = world.encode(image[:, None])[:, :, 0]
    found = imagine_latents(world, first, c2w, intrinsics, ["a red room"])
    state = world.start(image, intrinsics, ["a red room"], [torch.Generator().manual_seed(0)])
    wanted = torch.cat([chunk.latents for chunk in world.play(state, c2w[:, 1:])], 2).transpose(1, 2)
    assert found.shape == (1, 6, 48, 8, 8)
    assert torch.equal(found, wanted)


def test_phases_follow_one_another_and_resume(pairs, tmp_path):
    configs, before = [], {}
    for phase in ("base", "pairs", "streaming"):
        trained = stage(pairs, tmp_path, phase)
        began = trained.network.state_dict()["proj_in.weight"]
        assert not before or (began - before["proj_in.weight"]).abs().max() < 1e-3  # half precision
        train(trained, trained.config.loop, trained.config.home)
        merge_lora(trained.network)
        write_refiner(trained.config.home, trained.network)
        before = {name: value.clone() for name, value in trained.network.state_dict().items()}
        configs.append(find_refiner(tmp_path, trained.config.home).config)
    assert configs[0] == configs[2] and configs[0].sigmas == (0.1, 0.05, 0.0)
    again = stage(pairs, tmp_path, "streaming")
    longer = replace(again.config.loop, steps=5)
    train(again, longer, again.config.home)
    assert torch.load(again.config.home / "checkpoint.pt", weights_only=False)["step"] == 5


def test_training_lowers_the_loss(pairs, tmp_path):
    trained = stage(pairs, tmp_path, "streaming", sigmas=(0.2, 0.1, 0.0))
    loop = replace(trained.config.loop, steps=60, batch=8)

    def loss() -> float:
        with torch.no_grad():
            losses = [trained.loss(8, torch.Generator().manual_seed(s))[0] for s in range(8)]
        return float(torch.stack(losses).mean())

    before = loss()
    train(trained, loop, trained.config.home)
    assert loss() < 0.9 * before


def test_no_answer_costs_one_wherever_stage_1_is(pairs, tmp_path):
    """So blocks where it is far off weigh no more than those where it is close."""
    for blur in (0.01, 0.5):
        imagined = torch.lerp(pairs.true.float(), torch.zeros(()), blur)
        trained = stage(replace(pairs, imagined=imagined), tmp_path, "streaming", sigmas=(0.1, 0.0))
        nn.init.zeros_(trained.network.proj_out.weight)
        nn.init.zeros_(trained.network.proj_out.bias)
        learned, _ = trained.loss(4, torch.Generator().manual_seed(0))
        assert learned.item() == pytest.approx(1, abs=1e-4)


def test_every_block_of_a_session_is_drawn_and_the_first_ones_most(tmp_path):
    true = latents(1, 1 + 3 * 8, 48, 2, 3).half()
    trained = stage(Pairs(true, true, ["a red room"]), tmp_path, "streaming")
    generator = torch.Generator().manual_seed(0)
    lasts = []
    for _ in range(400):
        block = trained.draw(1, generator)
        lasts.append((block.begin - 1 + block.true.shape[2]) // 3)
    counts = np.bincount(lasts, minlength=9)[1:]
    assert counts.sum() == 400 and counts.min() > 5
    assert counts[0] > counts[1] > counts[3] > counts[7]


def test_sampling_in_training_is_sampling_in_use(pairs, tmp_path):
    """A past of its own is made by the very sampler, from the state that the passes have left."""
    trained = stage(pairs, tmp_path, "streaming")
    block = trained.draw(2, torch.Generator().manual_seed(3))
    with torch.no_grad():
        state = trained.refiner.open(block.first, block.features, block.mask)
        rolled = trained.roll_out(block.imagined[:, :, :3], state, torch.Generator().manual_seed(4))
        generator = torch.Generator().manual_seed(4)
        levels = len(trained.config.sigmas) - 1
        steps = 1 + int(torch.randint(levels, (), generator=generator))
        noise = torch.randn(rolled.shape, generator=generator)
        run = trained.refiner.prepare_pass(state, noise)
        wanted = sample(run, block.imagined[:, :, :3], noise, (*trained.config.sigmas[:steps], 0.0))
    assert torch.equal(rolled, wanted)


def test_the_command_says_what_is_missing(capsys, tmp_path):
    code = cli.main(["train", "refiner", "--runs", str(tmp_path), "--sessions", "0", "--home-sessions", "0"])
    assert code == 2
    assert "--home-sessions above 0" in capsys.readouterr().err


def test_a_refined_world_looks_otherwise(pairs, tmp_path):
    """What training writes opens in a world, whose grid is another."""
    trained = stage(pairs, tmp_path, "base")
    write_refiner(tmp_path / "out", trained.network)
    world = WorldModel.load("tiny-rooms", refiner=tmp_path / "out")
    assert world.refiner.config.window == 7
    picture = torch.from_numpy(np.full((1, 64, 64, 3), 80, np.uint8))
    state = world.start(picture, torch.tensor([[50.0, 50, 32, 32]]), [""], [torch.Generator()])
    assert state.refiner.weights == world.refiner.fingerprint
