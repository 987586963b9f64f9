"""The whole ladder in small: every stage runs, starts from the one before, and what comes out is a world."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_ladder import CODER, KINDS, TINY

from sana_wm_env.model.clip import ClipModel
from sana_wm_env.model.codecs.text import TextEncoderConfig
from sana_wm_env.model.config import PRESETS
from sana_wm_env.model.storage.tensors import read_tensors
from sana_wm_env.model.tree import map_tensors, tensors_of
from sana_wm_env.rooms import HELD_OUT, HOME
from sana_wm_env.rooms.room import held_out_room
from sana_wm_env.train import ablations, autoencoder, bidirectional, causal, distill, ode, self_forcing
from sana_wm_env.train.data import rooms as data
from sana_wm_env.train.data.latents import LatentClips, Sessions, encode_clip_files, room_clips
from sana_wm_env.train.export import ExportConfig, export
from sana_wm_env.train.flow import FlowStage
from sana_wm_env.train.loop import LoopConfig, load_average, train
from sana_wm_env.train.optim import OptimConfig

LOOP = LoopConfig(steps=2, batch=2, preview=2)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Small clip files, and a small world named tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "KINDS", KINDS)
        patch.setitem(PRESETS, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory) -> Path:
    """A folder of runs with one file of two clips and an autoencoder trained for two steps."""
    folder = tmp_path_factory.mktemp("runs")
    autoencoder.run(
        autoencoder.AutoencoderStageConfig(world="tiny", runs=folder, shards=1, loop=LOOP, model=CODER)
    )
    encode_clip_files(
        folder / "data",
        "clips",
        1,
        (64, 64),
        autoencoder.load_trained(folder / "tiny" / "autoencoder", "cpu"),
    )
    return folder


def test_the_ladder_ends_in_a_world(runs):
    first = bidirectional.BidirectionalConfig(
        world="tiny", runs=runs, shards=1, loop=LOOP, name="delta-rule", softmax_every=0
    )
    bidirectional.run(first)
    bidirectional.run(replace(first, name="", softmax_every=None, init_from="delta-rule"))
    bidirectional.run(replace(first, name="long", softmax_every=None, init_from="bidirectional", frames=13))
    causal.run(causal.CausalConfig(world="tiny", runs=runs, shards=1, loop=LOOP))
    ode.run(ode.OdeConfig(world="tiny", runs=runs, shards=1, loop=LOOP, trajectories=16, teacher_steps=4))
    first = self_forcing.SelfForcingConfig(
        world="tiny", runs=runs, shards=1, loop=LOOP, frames=7, name="self-forcing-all", cached=-1
    )
    self_forcing.run(first)
    self_forcing.run(replace(first, name="", cached=2, init_from="self-forcing-all"))
    distilled = distill.DistillConfig(world="tiny", runs=runs, shards=1, sessions=1, loop=LOOP)
    with pytest.raises(FileNotFoundError, match="nowhere"):  # before anything is trained
        distill.run(replace(distilled, average_with=("nowhere",)))
    assert not distilled.home.exists()
    distill.run(replace(distilled, average_with=("self-forcing",)))
    env = gym.make("SanaWM-v0", world=str(runs / "tiny" / "world"))
    env.reset(seed=0)
    frames, *_ = env.step(np.zeros(6, np.float32))
    assert frames.shape == (24, 64, 64, 3)
    env.close()
    export(ExportConfig("tiny", runs, undistilled="causal", out=runs / "versatile"))
    clips = ClipModel.load(
        runs / "versatile", dtype=torch.float32, variant="chunk_causal"
    ).transformer.state_dict()
    weight, taken = "x_embedder.proj.weight", load_average(runs / "tiny" / "causal", "generator")
    assert torch.equal(clips[weight], taken[weight].half().float())
    mean = read_tensors(runs / "tiny" / "world" / "transformer.safetensors", "wanted the mean")
    parts = [load_average(runs / "tiny" / stage, "generator") for stage in ("distill", "self-forcing")]
    assert not torch.equal(parts[0][weight], parts[1][weight])
    assert torch.equal(mean[weight], ((parts[0][weight] + parts[1][weight]) / 2).half())
    names = ("as designed", "no camera")
    asked = ablations.AblationsConfig(
        world="tiny",
        runs=runs,
        out=runs / "ablations",
        shards=1,
        validation=1,
        loop=LOOP,
        further=2,
        seeds=2,
        variants=names,
        episodes=2,
    )
    ablations.run(asked)
    text = (runs / "ablations" / "ablations.md").read_text()
    assert all(
        f"| {label} |" in text
        for label in (*names, "4 distilled steps", "20 undistilled steps", "without the sink")
    )
    assert (runs / "ablations" / "ablations.png").exists()
    blind = [
        json.loads((runs / "ablations" / f"no-camera-{seed}" / "result.json").read_text())
        for seed in range(2)
    ]
    assert all(
        row["loss"] == row["wrong cameras"] for row in blind
    )  # what has no cameras cannot mind wrong ones


def at(clip: list[int], start: list[int], keep_text: list[bool]) -> Sessions:
    return Sessions(torch.tensor(clip), torch.tensor(start), torch.tensor(keep_text))


def test_windows_begin_at_their_own_first_frame(runs):
    clips = LatentClips(room_clips(runs / "data", {"clips": 1}), (64, 64), TextEncoderConfig(), "cpu")
    window = clips.window(at([0, 1], [0, 5], [True, False]), 4)
    assert torch.equal(window.latents[1, :, 0], clips.stills[13 + 5].float())
    assert torch.equal(window.latents[1, :, 1:], clips.moving[13 + 6 : 13 + 9].float().transpose(0, 1))
    assert torch.allclose(window.camera[:, 0, :16], torch.eye(4).flatten().expand(2, -1), atol=1e-6)
    c2w = data.read_clip_file(data.clip_file(runs / "data", "clips", 0)).c2w[1]
    relative = torch.linalg.inv(c2w[40]) @ c2w[64]
    assert torch.allclose(window.camera[1, 3, :16], relative.flatten().float(), atol=1e-6)
    assert window.text_mask[0].sum() > 1 and window.text_mask[1].sum() == 1


def test_a_window_goes_on_where_the_one_before_ended(runs):
    """Two windows of a session, and the same frames in one; the later one may begin elsewhere in every
    row.
    """
    clips = LatentClips(room_clips(runs / "data", {"clips": 1}), (64, 64), TextEncoderConfig(), "cpu")
    sessions = at([0, 1], [0, 2], [True, True])
    whole, later = clips.window(sessions, 10), clips.window(sessions, 3, torch.tensor([4, 7]))
    for row, begin in enumerate((4, 7)):
        for name in ("latents", "plucker"):
            assert torch.allclose(
                getattr(later, name)[row], getattr(whole, name)[row, :, begin : begin + 3], atol=1e-6
            ), name
        assert torch.allclose(later.camera[row], whole.camera[row, begin : begin + 3], atol=1e-6)


def test_sessions_are_drawn_where_enough_is_left(runs):
    data.write_clip_files(runs / "data", "sessions", 1, (64, 64))
    autoencoder_ = autoencoder.load_trained(runs / "tiny" / "autoencoder", "cpu")
    encode_clip_files(runs / "data", "sessions", 1, (64, 64), autoencoder_)
    clips = LatentClips(
        room_clips(runs / "data", {"clips": 1, "sessions": 1}), (64, 64), TextEncoderConfig(), "cpu"
    )
    assert clips.lengths.tolist() == [13, 13, 25, 25]
    drawn = clips.draw(500, 12, torch.Generator().manual_seed(0))
    assert clips.left(drawn).min() == 12
    places = set(zip(drawn.clip.tolist(), drawn.start.tolist(), strict=True))
    assert places == {(clip, start) for clip, count in enumerate((2, 2, 14, 14)) for start in range(count)}
    assert set(clips.draw(50, 14, torch.Generator()).clip.tolist()) == {2, 3}
    with pytest.raises(ValueError, match="the clips have 25"):
        clips.draw(1, 26, torch.Generator())


def test_a_stage_scores_only_what_it_has_to_predict(runs):
    """With a network that answers exactly, the loss is zero whatever the levels and however often the first
    frame is given.
    """
    stage = FlowStage(bidirectional.BidirectionalConfig(world="tiny", runs=runs, shards=1, loop=LOOP))

    def exact(model, noisy, timestep, window):
        sigma = (timestep / 1000)[:, None, :, None, None].clamp(min=1e-3)
        return torch.where(timestep[:, None, :, None, None] == 0, 1e6, (noisy - window.latents) / sigma)

    stage.velocity = exact
    losses = [stage.loss(4, torch.Generator().manual_seed(seed))[0].item() for seed in range(8)]
    assert max(losses) < 1e-4


def test_a_student_that_reaches_the_end_of_every_trajectory_has_no_ode_loss(runs):
    config = ode.OdeConfig(
        world="tiny", runs=runs, shards=1, init_from="", loop=LOOP, trajectories=16, teacher_steps=4
    )
    bidirectional.run(bidirectional.BidirectionalConfig(world="tiny", runs=runs, shards=1, loop=LOOP))
    stage = ode.OdeStage(config)
    assert stage.records["latents"].shape == (16, 5, 7, 48, 8, 8)
    way = stage.records["latents"].float()
    assert torch.equal(way[:, :, 0], way[:, -1:, 0].expand(-1, 5, -1, -1, -1))  # the first frame is given
    assert (way[:, 0, 1:].std() - 1).abs() < 0.05  # and the rest begins as noise

    def exact(model, noisy, timestep, window):
        sigma = (timestep / 1000)[:, None, :, None, None]
        return torch.where(sigma == 0, 1e6, (noisy - window.latents) / sigma.clamp(min=1e-3))

    stage.velocity = exact
    assert max(stage.loss(4, torch.Generator().manual_seed(seed))[0].item() for seed in range(4)) < 1e-6


def test_two_equal_scores_do_not_pull(runs):
    """The pull of distribution matching is the difference of the scores, over the mean distance of the clip
    from the real one.
    """
    bidirectional.run(bidirectional.BidirectionalConfig(world="tiny", runs=runs, shards=1, loop=LOOP))
    config = self_forcing.SelfForcingConfig(
        world="tiny", runs=runs, shards=1, init_from="bidirectional", loop=LOOP, frames=7, guidance=0.0
    )
    stage, rng = self_forcing.SelfForcingStage(config), torch.Generator().manual_seed(0)
    window = stage.draw(2, rng)
    made = stage.roll_out(window, rng).detach().requires_grad_()
    loss, _ = stage.matching(made, window, torch.Generator().manual_seed(1))
    assert loss.item() == 0.0
    clip = window.latents

    def scores(
        network, noisy, timestep, window
    ):  # the critic is off by 0.5 everywhere, the teacher knows the clip
        sigma = (timestep / 1000)[:, None, :, None, None].clamp(min=1e-3)
        return (noisy - clip - (0.5 if network is stage.critic else 0.0)) / sigma

    stage.velocity = scores
    loss, scalars = stage.matching(made, window, torch.Generator().manual_seed(1))
    loss.backward()
    size = (made - clip)[:, :, 1:].abs().mean((1, 2, 3, 4), keepdim=True)
    expected = (0.5 / size).expand_as(made)[:, :, 1:] / made[:, :, 1:].numel()
    assert torch.allclose(made.grad[:, :, 1:], expected, rtol=1e-3) and not made.grad[:, :, 0].any()
    assert scalars["distance"] == pytest.approx(size.mean().item(), rel=1e-3)


def test_the_generator_learns_on_every_fifth_step_only(runs, tmp_path):
    bidirectional.run(bidirectional.BidirectionalConfig(world="tiny", runs=runs, shards=1, loop=LOOP))
    config = self_forcing.SelfForcingConfig(
        world="tiny",
        runs=runs,
        shards=1,
        init_from="bidirectional",
        loop=LoopConfig(steps=6, batch=1, preview=0),
        frames=7,
        every=5,
    )
    stage, seen = self_forcing.SelfForcingStage(config), []
    original = stage.loss

    def loss(batch, generator):
        seen.append(tuple(next(part.parameters()).detach().clone() for part in (stage.network, stage.critic)))
        return original(batch, generator)

    stage.loss = loss
    train(stage, config.loop, tmp_path)
    moved = [
        [not torch.equal(before, after) for before, after in zip(*pair, strict=True)]
        for pair in pairwise(seen)
    ]
    assert moved == [[True, True]] + [[False, True]] * 4
    assert load_average(tmp_path, "generator").keys() == stage.network.state_dict().keys()


def test_sessions_go_on_until_their_clips_end_and_survive_a_stop(runs, tmp_path):
    """Distillation with a stop in the middle gives the same losses, bit for bit, as without: what sessions
    carry is saved.
    """

    def losses(home: Path, steps: list[int]) -> tuple[list[float], list[float]]:
        (home / "tiny").mkdir(parents=True, exist_ok=True)
        for name in ("data", "tiny/autoencoder"):
            if not (home / name).exists():
                (home / name).symlink_to(runs / name)
        seen, ages = [], []
        for stop in steps:
            # the rates of both runs must not depend on where they stop
            optim = OptimConfig(warmup=1, decay=0.0)
            config = distill.DistillConfig(
                world="tiny",
                runs=home,
                shards=1,
                sessions=1,
                init_from="",
                loop=LoopConfig(steps=stop, batch=4, preview=0, optim=optim),
            )
            stage = distill.DistillStage(config)
            original = stage.loss

            def loss(batch, generator, original=original):
                value, scalars = original(batch, generator)
                seen.append(value.item())
                ages.append(scalars.get("age", 0.0))
                return value, scalars

            stage.loss = loss
            train(stage, config.loop, home / "tiny" / "distill")
        return seen, ages

    whole, ages = losses(tmp_path / "whole", [5])
    parts, _ = losses(tmp_path / "parts", [3, 5])
    assert whole == parts
    assert 13 <= max(ages) <= 25


@pytest.mark.parametrize(("frames", "cached", "wanted"), [(4, 2, 7), (7, 3, 10), (7, -1, 7)])
def test_sessions_that_go_on_together_have_full_windows(runs, frames, cached, wanted):
    config = distill.DistillConfig(
        world="tiny",
        runs=runs,
        shards=0,
        sessions=1,
        loop=LOOP,
        init_from="",
        frames=frames,
        cached=cached,
    )
    with pytest.raises(ValueError, match=f"--cached {cached}; wanted --cached from 0 and --frames {wanted}"):
        distill.DistillStage(config)


def test_a_session_that_is_lost_is_let_go(runs):
    """A state that is not finite, and an error that no picture makes; the others go on."""
    config = distill.DistillConfig(
        world="tiny", runs=runs, shards=0, sessions=1, loop=LOOP, init_from="", openings="flow"
    )
    stage = distill.DistillStage(config)
    generator = torch.Generator().manual_seed(0)
    places = Sessions(
        torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)
    )
    played, errors = stage.advance(distill.Ongoing(places, torch.rand(4), None), generator)
    assert len(stage.unfinished(played, errors).trust) == 4
    spoiled = map_tensors(torch.clone, played)
    next(t for t in tensors_of(spoiled.state) if t.is_floating_point())[1] = torch.inf
    errors[0][2] = 2 * distill.LOST
    left = stage.unfinished(spoiled, errors)
    assert torch.equal(left.trust, played.trust[[0, 3]])
    assert all(t.isfinite().all() for t in tensors_of(left.state))


def test_clip_files_are_a_function_of_their_index(runs, tmp_path):
    again = data.render_clips([1], (64, 64))
    stored_clips = data.read_clip_file(data.clip_file(runs / "data", "clips", 0))
    assert (
        torch.equal(again.frames[0], stored_clips.frames[1]) and again.captions[0] == stored_clips.captions[1]
    )
    with pytest.raises(ValueError, match="held-out"):
        data.seeds_of("clips", HELD_OUT // 2)
    assert data.seeds_of("clips", HELD_OUT // 2 - 1)[-1] == HELD_OUT - 1


def test_clips_at_home_show_the_same_rooms_from_everywhere():
    rooms = [room for index in range(2) for room in data.rooms_of("home-clips", index)]
    assert set(rooms) <= set(HOME) and rooms == [HOME[seed] for seed in range(4)]
    clips = data.render_clip_file("home-clips", 0, (64, 64))
    own = data.render_clips(data.rooms_of("home-clips", 0), (64, 64))
    assert clips.captions == own.captions and not torch.equal(clips.frames[:, 0], own.frames[:, 0])
    assert not any(seed in HOME for seed in map(held_out_room, range(100)))


def test_returns_show_again_what_they_have_shown():
    assert data.rooms_of("home-returns", 0) == [HOME[seed % 48] for seed in data.seeds_of("returns", 0)]
    clips = data.render_clip_file("home-returns", 0, (64, 64))
    ends, frames = clips.c2w[:, ::24], clips.frames[:, ::24]
    near = (ends[:, :, None] - ends[:, None]).abs().amax((-1, -2)) < 1e-9
    again = near & torch.ones(9, 9, dtype=torch.bool).tril(-2)  # not the end of a chunk that stood still
    assert again.sum() >= 4
    for clip, later, earlier in again.nonzero():
        assert (frames[clip, later].int() - frames[clip, earlier].int()).abs().amax() <= 1


def test_latents_are_the_same_whether_frames_lie_on_disk_or_not(runs, tmp_path):
    encode_clip_files(
        tmp_path, "clips", 1, (64, 64), autoencoder.load_trained(runs / "tiny" / "autoencoder", "cpu")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["clips-00000.latents.safetensors"]
    kept, rendered = (room_clips(folder, {"clips": 1}) for folder in (runs / "data", tmp_path))
    assert all(
        torch.equal(a.moving, b.moving) and a.caption == b.caption
        for a, b in zip(kept, rendered, strict=True)
    )


def test_missing_stages_are_named(tmp_path, runs):
    config = bidirectional.BidirectionalConfig(world="tiny", runs=tmp_path, shards=1, loop=LOOP)
    with pytest.raises(FileNotFoundError, match="sana-wm train autoencoder"):
        FlowStage(config)
    with pytest.raises(FileNotFoundError, match="sana-wm train nowhere"):
        FlowStage(replace(config, runs=runs, init_from="nowhere"))
