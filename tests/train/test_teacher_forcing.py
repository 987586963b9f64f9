"""Teacher forcing: each chunk is learned on the state that a session would carry there; and the network that
grows.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small_ladder import CODER, KINDS, TINY
from torch._dynamo.utils import counters

from sana_wm_env.model.config import PRESETS
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.tree import tensors_of
from sana_wm_env.train import autoencoder, bidirectional, teacher_forcing
from sana_wm_env.train.data import rooms as data
from sana_wm_env.train.data.latents import Window
from sana_wm_env.train.growth import deepen
from sana_wm_env.train.loop import LoopConfig

LOOP = LoopConfig(steps=2, batch=2, preview=0, precision="fp32")


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "KINDS", KINDS)
        patch.setitem(PRESETS, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def config(small, tmp_path_factory) -> teacher_forcing.TeacherForcingConfig:
    runs = tmp_path_factory.mktemp("runs")
    common = {"world": "tiny", "runs": runs, "shards": 1, "loop": LOOP}
    autoencoder.run(autoencoder.AutoencoderStageConfig(**common, model=CODER))
    bidirectional.run(bidirectional.BidirectionalConfig(**common))
    return teacher_forcing.TeacherForcingConfig(
        **common, sessions=1, frames=13, short_frames=7, init_from="bidirectional"
    )


@pytest.fixture(scope="module")
def stage(config) -> teacher_forcing.TeacherForcingStage:
    return stage_of(config)


def stage_of(config: teacher_forcing.TeacherForcingConfig) -> teacher_forcing.TeacherForcingStage:
    stage = teacher_forcing.TeacherForcingStage(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # blocks that pass nothing on would hide every leak
        for parameter in stage.network.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return stage


def window_of(stage: teacher_forcing.TeacherForcingStage) -> Window:
    sessions = stage.clips.draw(2, 13, torch.Generator().manual_seed(1), text_drop=0.0)
    return stage.clips.window(sessions, 13)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@torch.no_grad()
@pytest.mark.parametrize("cached", [2, 3])
def test_a_chunk_is_recovered_as_a_session_would_recover_it(config, cached):
    """Four chunks together against `stream` on states that are carried one by one, on the same noise."""
    stage = stage_of(replace(config, cached=cached))
    window = window_of(stage)
    chunks, text = stage.chunks(window), stage.network.text_context(window.text, window.text_mask)
    truths = [truth for truth, _ in chunks]
    together = stage.recover_all(chunks, text, stage.states(truths[:-1], chunks, text), generator(), (1.0,))
    noise, state = generator(), None
    for index, (truth, cameras) in enumerate(chunks):
        if index <= cached:  # those with full windows draw as one batch
            alike = len(chunks) - index if index == cached else 1
            torch.randint(1, (2 * alike,), generator=noise)
            drawn = torch.randn(*truth.repeat(alike, 1, 1, 1, 1).shape, generator=noise).chunk(alike)
        x = drawn[max(0, index - cached)]
        timestep = torch.full((2, x.shape[2]), 1000.0)
        if index == 0:
            x, timestep[:, 0] = torch.cat([truth[:, :, :1], x[:, :, 1:]], 2), 0
        given = 1 if index == 0 else 0
        alone = x - stage.network.stream(x, timestep, text, cameras, state)
        assert torch.allclose(together[index][:, :, given:], alone[:, :, given:], atol=1e-4), index
        state = stage.network.commit(truth, text, cameras, state)


@torch.no_grad()
def test_no_chunk_sees_what_comes_after_it(stage):
    window = window_of(stage)
    before = stage.errors(window, generator())
    latents = window.latents.clone()
    latents[:, :, 7:10] += 1.0  # the third chunk
    after = stage.errors(replace(window, latents=latents), generator())
    assert torch.equal(before[:2], after[:2])
    assert (before[2:] != after[2:]).all()


def test_the_last_chunk_teaches_the_first_commit(stage):
    window = window_of(stage)
    window = replace(window, latents=window.latents.clone().requires_grad_())
    stage.errors(window, generator())[-1].mean().backward()
    assert window.latents.grad[:, :, :4].abs().amax() > 0


@torch.no_grad()
def test_its_own_past_is_what_it_imagines(stage):
    """The second chunk is imagined on top of what the network made of the first."""
    window = window_of(stage)
    chunks, text = stage.chunks(window), stage.network.text_context(window.text, window.text_mask)
    past, _ = stage.imagine(chunks, text, torch.ones(2), generator())
    (truth, cameras), (second, after) = chunks[:2]
    assert torch.equal(past[0][:, :, :1], truth[:, :, :1]), "the first frame is given"
    assert not torch.allclose(past[0], truth, atol=1e-2)
    again = generator()
    stage.recover(truth, text, cameras, None, truth[:, :, :1], again, (1.0,))
    torch.rand(2, generator=again)
    state = stage.network.commit(past[0], text, cameras, None)
    assert torch.equal(past[1], stage.recover(second, text, after, state, None, again, (1.0,)))


@torch.no_grad()
def test_without_a_past_of_its_own_the_truth_is_committed(stage):
    window = window_of(stage)
    chunks, text = stage.chunks(window), stage.network.text_context(window.text, window.text_mask)
    past, _ = stage.imagine(chunks, text, torch.zeros(2), generator())
    assert all(torch.equal(made, truth) for made, (truth, _) in zip(past, chunks, strict=False))


@torch.no_grad()
def test_a_clip_goes_on_from_what_went_before_it(stage):
    """With two chunks of lead, the third and the fourth are those of the whole window."""
    window = window_of(stage)
    chunks, text = stage.chunks(window), stage.network.text_context(window.text, window.text_mask)
    truths = [truth for truth, _ in chunks]
    past, before = stage.imagine(chunks, text, torch.zeros(2), generator(), lead=2)
    states = stage.states(past[2:], chunks[2:], text, before)
    whole = stage.states(truths[:-1], chunks, text)[2:]
    for one, other in zip(map(tensors_of, states), map(tensors_of, whole), strict=True):
        assert all(map(torch.equal, one, other))
    assert stage.errors(window, generator(), lead=2).shape == (2, 2)


@torch.no_grad()
def test_what_was_looked_at_is_committed_as_it_is(stage):
    window = window_of(stage)
    chunks, text = stage.chunks(window), stage.network.text_context(window.text, window.text_mask)
    past, _ = stage.imagine(chunks, text, torch.ones(2), generator(), lead=2, seen=2)
    assert [torch.equal(made, truth) for made, (truth, _) in zip(past, chunks, strict=False)] == [
        True,
        True,
        False,
    ]


def test_tours_begin_with_a_look_around_and_their_clips_after_it(config, monkeypatch):
    config = replace(
        config, tours=1, home_tours=1, toured=1.0, own_past=1.0, lead=1, cached=6, sinks=5, frames=7
    )
    stage, asked = stage_of(config), []
    clip = stage.tours.window(stage.tours.draw(4, 16, generator(), text_drop=0.0), 16)
    still = (clip.plucker[:, :6] - clip.plucker[:, 42:]).abs().amax((0, 1, 3, 4))  # first and last raw frame
    assert still[1:].max() < 1e-6, "every look rests for a latent frame"
    errors = stage.errors
    monkeypatch.setattr(stage, "errors", lambda *given: asked.append(given) or errors(*given))
    for seed in range(4):
        loss, _ = stage.loss(2, torch.Generator().manual_seed(4096 * seed))
        assert loss.isfinite()
    assert {lead for _, _, lead, _ in asked} == {5, 6} and {seen for *_, seen in asked} == {5}
    assert {window.latents.shape[2] for window, *_ in asked} == {7 + 15, 7 + 18}


def test_a_share_of_tours_wants_tours(config):
    with pytest.raises(ValueError, match=r"got toured=0.5 without tours; wanted files of tours"):
        replace(config, toured=0.5)


def test_no_gradient_reaches_the_lead(stage):
    window = window_of(stage)
    window = replace(window, latents=window.latents.clone().requires_grad_())
    stage.errors(window, generator(), lead=1).mean().backward()
    gradient = window.latents.grad.abs().amax((0, 1, 3, 4))
    assert (gradient[:4] == 0).all() and (gradient[4:] > 0).all()


def test_compiled_blocks_recover_what_plain_ones_do(config, monkeypatch):
    """Gradients included, without and with a lead. There is one program for each kind of block and of past,
    whatever the block.
    """
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]  # of other tests
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    loop = replace(config.loop, compile=True)  # plain ones too draw their noise chunk by chunk then
    stage = teacher_forcing.TeacherForcingStage(replace(config, loop=loop, own_past=1.0, init_from=""))
    window, results = window_of(stage), []
    for compiled in (True, False):
        if not compiled:
            for block in stage.network.blocks:
                del block.mix
        stage.network.zero_grad()
        errors = [stage.errors(window, generator(), lead) for lead in (0, 2)]
        (errors[0].mean() + errors[1].mean()).backward()
        grads = [p.grad for p in stage.network.parameters() if p.grad is not None]
        results.append([*(e.detach() for e in errors), *(grad.clone() for grad in grads)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # by the delta rule: the opening and any other chunk; softmax: those after none, one and two; each twice
    assert counters["stats"]["unique_graphs"] - before == 10


@pytest.mark.parametrize("short", [0.0, 1.0])
def test_it_trains_on_short_and_long_clips(config, tmp_path, short):
    teacher_forcing.run(replace(config, short=short, own_past=0.5, pack=False, name=f"short-{short:g}"))
    assert (config.runs / "tiny" / f"short-{short:g}" / "checkpoint.pt").exists()


@pytest.mark.parametrize("setting", [{"short": 1.5}, {"own_past": -0.1}])
def test_shares_are_shares(setting):
    with pytest.raises(ValueError, match="wanted a number, 0 or more, 1 at most"):
        teacher_forcing.TeacherForcingConfig(**setting)


# ---- growing


@torch.no_grad()
@pytest.mark.parametrize("rule", ["bidirectional", "chunk_causal"])
def test_a_grown_network_computes_what_it_grew_from(stage, rule):
    window, small = window_of(stage), stage.network
    deep = Transformer(replace(TINY, depth=12)).prepare()
    deep.load_state_dict(deepen(small.state_dict(), deep.config))
    velocities = []
    for network in (small, deep):
        text = network.text_context(window.text, window.text_mask)
        cameras = network.camera_context(window.camera, window.plucker)
        velocities.append(network(window.latents, torch.full((2, 13), 500.0), text, cameras, rule=rule))
    assert torch.equal(*velocities)
    assert velocities[0].abs().amax() > 0


def test_a_grown_block_learns_from_the_first_step(stage):
    window = window_of(stage)
    deep = Transformer(replace(TINY, depth=8)).prepare()
    deep.load_state_dict(deepen(stage.network.state_dict(), deep.config))
    text = deep.text_context(window.text, window.text_mask)
    cameras = deep.camera_context(window.camera, window.plucker)
    velocity = deep(window.latents, torch.full((2, 13), 500.0), text, cameras, rule="chunk_causal")
    velocity.square().mean().backward()
    for block in deep.blocks[4:]:
        assert block.attn.proj.weight.grad.abs().amax() > 0
        assert block.mlp.point_conv.conv.weight.grad.abs().amax() > 0


def test_what_cannot_grow_is_refused(stage):
    with pytest.raises(ValueError, match="4 blocks for a network of 12; wanted a multiple of 3"):
        deepen(stage.network.state_dict(), replace(TINY, depth=12, softmax_every=3))


def test_deep_enough_weights_stay_as_they_are(stage):
    weights = stage.network.state_dict()
    assert deepen(weights, TINY) is weights


def test_the_distance_counts_what_is_known_more_than_what_is_not():
    """Known values: a cell that is off by 0.1 in all channels, and one that is off by 1."""
    truth = torch.zeros(1, 48, 3, 8, 8)
    near, far = (float(teacher_forcing.distance(truth + off, truth)) for off in (0.1, 1.0))
    assert near == pytest.approx(0.02**0.5 - 0.1, rel=1e-4) and far == pytest.approx(
        1.01**0.5 - 0.1, rel=1e-4
    )
    assert teacher_forcing.distance(truth, truth) == 0
