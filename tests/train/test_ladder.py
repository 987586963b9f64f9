"""The whole ladder in small: every stage runs, starts from the one before, and what comes out is a world."""

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from sana_wm_env.model.autoencoder import AutoencoderConfig
from sana_wm_env.rooms import HELD_OUT
from sana_wm_env.train import autoencoder, bidirectional, causal, data, distill
from sana_wm_env.train.latents import LatentClips
from sana_wm_env.train.loop import LoopConfig

LOOP = LoopConfig(steps=2, batch=2, preview=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs with one shard of two clips and an autoencoder trained for two steps."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CLIPS_PER_SHARD", 2)
        small = AutoencoderConfig(fine=16, coarse=32, encoder_blocks=1, decoder_blocks=1)
        autoencoder.run(autoencoder.AutoencoderStageConfig(runs=folder, shards=1, loop=LOOP, model=small))
    return folder


def test_the_ladder_ends_in_a_world(runs):
    bidirectional.run(bidirectional.BidirectionalConfig(runs=runs, shards=1, loop=LOOP))
    causal.run(causal.CausalConfig(runs=runs, shards=1, loop=LOOP))
    distill.run(distill.DistillConfig(runs=runs, shards=1, loop=LOOP, frames=7))
    env = gym.make("SanaWM-v0", world=str(runs / "rooms" / "world"))
    env.reset(seed=0)
    frames, *_ = env.step(np.zeros(6, np.float32))
    assert frames.shape == (24, 64, 64, 3)
    env.close()


def test_windows_begin_at_their_own_first_frame(runs):
    config = bidirectional.BidirectionalConfig(runs=runs, shards=1, loop=LOOP)
    clips = LatentClips(runs / "data", 1, (64, 64), config.text, "cpu")
    window = clips.window(torch.tensor([0, 1]), torch.tensor([0, 5]), 4, torch.tensor([True, False]))
    assert torch.equal(window.latents[1, :, 0], clips.stills[1, 5].float())
    assert torch.equal(window.latents[1, :, 1:], clips.moving[1, 6:9].float().transpose(0, 1))
    assert torch.allclose(window.camera[:, 0, :16], torch.eye(4).flatten().expand(2, -1), atol=1e-6)
    relative = torch.linalg.inv(clips.c2w[1, 40]) @ clips.c2w[1, 64]
    assert torch.allclose(window.camera[1, 3, :16], relative.flatten().float(), atol=1e-6)
    assert window.text_mask[0].sum() > 1 and window.text_mask[1].sum() == 1
    with pytest.raises(ValueError, match="the clips have 13"):
        clips.draw(1, 14, torch.Generator())


def test_a_stage_scores_only_what_it_has_to_predict(runs):
    """With a network that answers exactly, the loss is zero whatever the levels and however often the first frame is given."""
    stage = bidirectional.FlowStage(bidirectional.BidirectionalConfig(runs=runs, shards=1, loop=LOOP))

    def exact(model, noisy, timestep, window):
        sigma = (timestep / 1000)[:, None, :, None, None].clamp(min=1e-3)
        return torch.where(timestep[:, None, :, None, None] == 0, 1e6, (noisy - window.latents) / sigma)

    stage.velocity = exact
    losses = [stage.loss(4, torch.Generator().manual_seed(seed))[0].item() for seed in range(8)]
    assert max(losses) < 1e-4


def test_shards_are_a_function_of_their_index(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CLIPS_PER_SHARD", 2)
    again = data.render_clips([1], (64, 64))
    shard = data.read_shard(data.shard_path(runs / "data", 0))
    assert torch.equal(again.frames[0], shard.frames[1]) and again.captions[0] == shard.captions[1]
    with pytest.raises(ValueError, match="held-out"):
        data.write_shards(tmp_path, range(HELD_OUT // 2, HELD_OUT // 2 + 1), (64, 64))


def test_missing_stages_are_named(tmp_path, runs):
    config = bidirectional.BidirectionalConfig(runs=tmp_path, shards=1, loop=LOOP)
    with pytest.raises(FileNotFoundError, match="sana-wm train autoencoder"):
        bidirectional.FlowStage(config)
    with pytest.raises(FileNotFoundError, match="sana-wm train nowhere"):
        bidirectional.FlowStage(replace(config, runs=runs, start="nowhere"))
