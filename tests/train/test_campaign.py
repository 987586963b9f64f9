"""A turn on a GPU, on the CPU: its programs are compared with the blocks that they stand for, its weights
come home in parts.
"""

import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load, save_file
from small_ladder import CODER, KINDS, TINY

from sana_wm_env.model.config import PRESETS
from sana_wm_env.train import autoencoder, bidirectional, campaign
from sana_wm_env.train.data import rooms as data
from sana_wm_env.train.data.latents import latents_path
from sana_wm_env.train.loop import LoopConfig, load_average
from sana_wm_env.train.programs import list_programs, make_program
from sana_wm_env.train.teacher_forcing import TeacherForcingConfig, TeacherForcingStage

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "KINDS", KINDS)
        patch.setitem(PRESETS, "tiny", TINY)
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        torch.compiler.reset()
        yield


@pytest.fixture(scope="module")
def config(small, tmp_path_factory) -> campaign.CampaignConfig:
    folder = tmp_path_factory.mktemp("campaign")
    loop = LoopConfig(steps=2, batch=2, preview=0, precision="fp32")
    common = {"world": "tiny", "runs": folder / "runs"}
    for runs in (common["runs"], common["runs"] / "programs"):
        ours = common | {"runs": runs, "loop": loop, "shards": 1}
        autoencoder.run(autoencoder.AutoencoderStageConfig(**ours, model=CODER))
    bidirectional.run(bidirectional.BidirectionalConfig(**common, loop=loop, shards=1))
    weights = str(folder / "begin.safetensors")
    save_file(load_average(common["runs"] / "tiny" / "bidirectional", "generator"), weights)
    stage = TeacherForcingConfig(
        **common,
        loop=replace(loop, steps=10**9, compile=True),
        init_from=weights,
        shards=0,
        sessions=2,
        home_sessions=2,
        returns=1,
        home_returns=1,
        frames=19,
        lead=2,
        cached=3,
        own_past=1.0,
        pack=False,
    )
    return campaign.CampaignConfig(folder / "out", seconds=40, reserve=1, encoders=2, stage=stage)


def small_stage(config) -> TeacherForcingStage:
    return TeacherForcingStage(campaign._small(config.stage))


def met_programs(config, monkeypatch) -> set:
    """What the blocks of one step of training are called with."""
    met = set()

    def listening(block):
        mix, name = block.mix, type(block.attn).__name__

        def mix_and_tell(*inputs):
            x, *_, past = inputs
            entries = getattr(past and past.attention, "entries", None)
            seen = 0 if past is None else 1 if entries is None else len(entries)
            met.add((name, x.shape[1], seen, torch.is_grad_enabled()))
            return mix(*inputs)

        return mix_and_tell

    stage = small_stage(config)
    for block in stage.network.blocks:
        monkeypatch.setattr(block, "mix", listening(block))
    for seed in range(4):  # with a lead and without
        stage.loss(2, torch.Generator().manual_seed(seed))
    return met


def test_the_programs_are_those_that_training_calls(config, monkeypatch):
    plain = replace(config.stage, loop=replace(config.stage.loop, compile=False), short=0.0)
    assert met_programs(replace(config, stage=plain), monkeypatch) == set(list_programs(config.stage))


def test_tours_are_encoded_and_call_no_other_programs(config, monkeypatch):
    plain = replace(config.stage.loop, compile=False)
    stage = replace(config.stage, loop=plain, frames=7, lead=1, short=0.0, cached=7, home_tours=1, toured=1.0)
    toured = replace(config, stage=stage, share=0, encoders=1)
    campaign.encode_share(toured)
    assert latents_path(stage.runs / "data", "home-tours", 0).exists()
    met, listed = met_programs(toured, monkeypatch), set(list_programs(stage))
    assert met < listed  # with a gradient none whose window is yet to fill
    assert max(seen for *_, seen, _ in met) == max(seen for *_, seen, _ in listed) == 7


@pytest.mark.parametrize(
    "program",
    [
        ("GatedDeltaAttention", 3, 1, True),
        ("SoftmaxAttention", 3, 3, True),
        ("SoftmaxAttention", 4, 0, False),
    ],
    ids=lambda p: "-".join(map(str, p)),
)
def test_every_program_computes_what_its_block_does(config, program, capsys):
    make_program(small_stage(config), program)
    said = capsys.readouterr().out
    assert str(program) in said and "plain" in said
    assert ("gradients of weights" in said) == program[-1]


@pytest.mark.parametrize("wrong", ["output", "gradient"])
def test_a_program_that_errs_is_refused(config, monkeypatch, wrong):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    def compiled(mix, **options):
        def err(*inputs):
            x, state = mix(*inputs)
            return (x + 1 if wrong == "output" else Doubled.apply(x)), state

        return err if torch.compiler.is_compiling() else partial(choose, mix, err)

    def choose(mix, err, *inputs):  # plain where programs are switched off
        forced = torch._dynamo.eval_frame._stance.stance == "force_eager"
        return (mix if forced else err)(*inputs)

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(ArithmeticError, match="is off by"):
        make_program(small_stage(config), ("GatedDeltaAttention", 3, 1, True))
    if wrong == "gradient":
        make_program(small_stage(config), ("GatedDeltaAttention", 3, 1, False))


class Here:
    """A part of the campaign, done in this process when it is waited for."""

    def __init__(self, config, code: int, flag: str, number: int):
        self.config, self.code, self.flag, self.number = config, code, flag, number

    def wait(self) -> int:
        if self.flag == "--share":
            campaign.encode_share(replace(self.config, share=self.number))
            return 0
        return self.code


def test_weights_come_home_while_it_trains(config, tmp_path, monkeypatch):
    """As a turn may be cut off at any moment."""
    monkeypatch.setattr(campaign, "WATCH_SECONDS", 0.05)
    home, out = config.stage.runs / "tiny" / "bidirectional", tmp_path / "out"
    with campaign._bringing_home(out, home):
        parts, end = out / "transformer.safetensors.00", time.monotonic() + 30
        while not parts.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert load(parts.read_bytes()).keys() == load_average(home, "generator").keys()


@pytest.mark.parametrize("code", [0, 1], ids=["programs", "wrong programs"])
def test_a_turn_brings_weights_home_in_parts(config, tmp_path, monkeypatch, capsys, code):
    stage = replace(config.stage, name=f"turn-{code}")
    config = replace(config, out=tmp_path, seconds=15.0, stage=stage)
    monkeypatch.setattr(campaign, "PART", 100_000)
    monkeypatch.setattr(campaign, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(campaign, "_start", partial(Here, config, code))
    monkeypatch.setattr(campaign, "_take_autoencoder", lambda stage: None)  # the fixture's, of this size
    campaign.run(config)
    parts = sorted(config.out.glob("transformer.safetensors.*"))
    assert len(parts) > 1
    home = load(b"".join(part.read_bytes() for part in parts))
    trained = load_average(config.stage.home, "generator")
    begin = load((config.stage.runs.parent / "begin.safetensors").read_bytes())
    assert {name: value.dtype for name, value in home.items()} == dict.fromkeys(trained, torch.float16)
    assert all(torch.equal(home[name], trained[name].half()) for name in trained)
    assert any(not torch.equal(home[name], begin[name].half()) for name in trained)
    assert ("without programs" in capsys.readouterr().out) == bool(code)


def test_a_device_that_errs_trains_nothing(config, monkeypatch):
    monkeypatch.setattr(campaign, "_start", partial(Here, config, campaign.PLAIN_WRONG))
    monkeypatch.setattr(campaign, "_take_autoencoder", lambda stage: None)
    with pytest.raises(ChildProcessError, match="even without programs"):
        campaign.run(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_card_is_said(config):
    stage = replace(config.stage, loop=replace(config.stage.loop, device="cuda"))
    with pytest.raises(ValueError, match="sees no CUDA card"):
        campaign.run(replace(config, stage=stage))


def test_no_time_is_said(config, monkeypatch):
    monkeypatch.setattr(campaign, "_start", partial(Here, config, 0))
    monkeypatch.setattr(campaign, "_take_autoencoder", lambda stage: None)
    with pytest.raises(TimeoutError, match="give more --seconds"):
        campaign.run(replace(config, seconds=1.0))
