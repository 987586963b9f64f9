"""Computed bytes against what tensors really take, and against the published figures of the 2.6b network."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sana_wm_env.model import memory
from sana_wm_env.model.config import WorldConfig, preset
from sana_wm_env.model.memory import Need, bytes_by_device, decoder_bytes, need, session_bytes, ways_to_run
from sana_wm_env.model.network.refiner import RefinerConfig
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.storage.layouts import published_world
from sana_wm_env.model.storage.worlds import CheckpointError, load_config, resolve_world
from sana_wm_env.model.world import WorldModel, WorldState

pytestmark = pytest.mark.usefixtures("one_thread")
STILL = torch.eye(4, dtype=torch.float64).repeat(1, 24, 1, 1)


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return WorldModel.load("rooms", dtype=torch.float32)


@pytest.fixture(scope="module")
def session(world) -> WorldState:
    """After as many chunks as fill the window."""
    image = torch.zeros(1, *world.config.image_size, 3, dtype=torch.uint8)
    state = world.start(image, torch.tensor([[32.0, 32.0, 32.0, 32.0]]), ["a red box"], [torch.Generator()])
    for _ in range(world.config.transformer.num_cached_blocks):
        state = world.step(state, STILL)[1]
    return state


@pytest.fixture(scope="module")
def computed(world) -> Need:
    return need(world.config, torch.float32)


def allocated(run: Callable[[], object]) -> int:
    """The most bytes that torch's allocator had given out at once since `run` began, as the profiler saw
    it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    del kept
    return peak


def test_state_bytes_are_those_of_a_session(computed, session):
    assert computed.state + computed.decoder == session.nbytes


def test_weight_bytes_are_those_of_the_modules(computed, world):
    assert computed.transformer == sum(t.nbytes for t in world.transformer.state_dict().values())
    assert computed.autoencoder == sum(t.nbytes for t in world.autoencoder.state_dict().values())
    assert computed.text_encoder == 0


def test_a_pass_takes_what_was_computed(computed, world, session):
    """In plain torch, but for the scratch memory of matrix products. The compiled operations read the window
    where it lies and take less.
    """
    config = world.config
    camera, plucker = torch.zeros(1, 3, 20), torch.zeros(1, 48, 3, *config.grid)
    camera[..., :16], camera[..., 16:] = torch.eye(4).flatten(), 4.0
    latents = torch.zeros(1, config.transformer.in_channels, 3, *config.grid)

    def clean_pass(network):
        cameras = network.camera_context(camera, plucker, session.transformer.next_frame)
        return cameras, network.commit(latents, session.text, cameras, session.transformer)

    plain = Transformer(config.transformer).eval()
    plain.load_state_dict(world.transformer.state_dict())
    with torch.inference_mode():
        for network in (plain, world.transformer):
            clean_pass(network)
        assert allocated(lambda: clean_pass(plain)) == pytest.approx(computed.forward, rel=0.1)
        assert allocated(lambda: clean_pass(world.transformer)) < 1.05 * computed.forward


def test_a_decode_takes_what_was_computed(computed, world, session):
    latents = torch.zeros(1, world.config.transformer.in_channels, 3, *world.config.grid)
    with torch.inference_mode():
        assert allocated(lambda: world.autoencoder.decode(latents, session.decoder)) == pytest.approx(
            computed.decode, rel=0.1
        )


def test_the_published_network_carries_what_its_layout_says():
    """model/README.md section 8: 1,015,840,000 bytes at 704 x 1280; keys and values of the prompt, its mask
    and a counter come with it.
    """
    carried, _ = session_bytes(preset("2.6b"), (22, 40), torch.bfloat16)
    assert carried == 1_015_840_000 + 20 * 2 * 300 * 2240 * 2 + 300 + 8


def test_what_the_published_world_needs_on_a_gpu():
    """The table of the README."""
    ways = ways_to_run(need(published_world("2.6b", preset("2.6b")), torch.bfloat16), "cuda")
    assert {way: round(size / memory.GB, 1) for way, size in ways.items()} == {
        "everything on the device": 17.0,
        "offload={'text': 'release'}": 13.0,
        "offload={'text': 'cpu'}": 11.8,
        "offload={'autoencoder': 'cpu', 'text': 'cpu'}": 7.6,
    }


def test_the_kept_figures_of_the_published_decoder_are_those_of_diffusers_class():
    pytest.importorskip("diffusers")
    kept = published_world("2.6b", preset("2.6b"))
    spelled_out = WorldConfig(**{**vars(kept), "autoencoder": {"kind": "ltx2", "latent_channels": 128}})
    assert decoder_bytes(kept, torch.bfloat16) == pytest.approx(
        decoder_bytes(spelled_out, torch.bfloat16), rel=1e-3
    )
    assert decoder_bytes(kept, torch.bfloat16)[0] == 595_189_760


PARTS = Need(transformer=50, autoencoder=20, text_encoder=40, state=10, decoder=5, forward=8, decode=16)


def test_what_is_elsewhere_does_not_count():
    assert bytes_by_device(PARTS, "cuda") == {"cuda": 50 + 20 + 40 + 10 + 5 + 16}
    assert bytes_by_device(PARTS, "cuda", {"text": "release"}) == {
        "cuda": 50 + 20 + 40
    }  # more than a step: 10 + 5 + 16
    assert bytes_by_device(PARTS, "cuda", {"text": "cpu"}) == {"cuda": 50 + 20 + 10 + 5 + 16, "cpu": 40}
    both = {"cuda": 50 + 10 + 8, "cpu": 20 + 40 + 5 + 16}
    assert bytes_by_device(PARTS, "cuda", {"autoencoder": "cpu", "text": "cpu"}) == both
    assert list(ways_to_run(PARTS, "cuda").values()) == [141, 110, 101, 68] and list(
        ways_to_run(PARTS, "cpu").values()
    ) == [141, 110]


def test_the_encoder_of_the_refiner_lies_where_the_refiner_does():
    parts = replace(PARTS, refiner=100, refiner_by_blocks=7, window=9, refine=30, refiner_text=200)
    step = 10 + 5 + 9 + 30
    assert bytes_by_device(parts, "cuda") == {"cuda": 50 + 20 + 40 + 100 + 200 + step}
    assert bytes_by_device(parts, "cuda", {"text": "release"}) == {"cuda": 50 + 20 + 100 + 200}
    apart = bytes_by_device(parts, "cuda", {"text": "release", "refiner": "cpu"})
    assert apart == {"cuda": 50 + 20 + 40, "cpu": 100 + 200}
    assert bytes_by_device(parts, "cuda", {"refiner": "blocks"})["cuda"] == 50 + 20 + 40 + 7 + 200 + step


def test_the_published_encoder_of_the_refiner_counts():
    """The numbers of gemma-3-12b's text half: 48 layers of width 3840, 262,208 words."""
    attention = 3840 * (2 * 16 * 256 + 2 * 8 * 256)
    layer = attention + 3 * 3840 * 15360 + 4 * 3840 + 2 * 256
    gemma = 262_208 * 3840 + 48 * layer + 3840
    needed = need(published_world("2.6b", preset("2.6b")), torch.bfloat16, refiner=RefinerConfig())
    assert needed.refiner_text == 2 * (gemma + 1_431_475_200)
    rooms = load_config(resolve_world("tiny-rooms"))
    assert need(rooms, torch.bfloat16, refiner=RefinerConfig(caption_channels=64)).refiner_text == 0


def test_a_world_without_room_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    """The folder holds no weights, so that only what is said first can be said."""
    (tmp_path / "sana_dit").mkdir()
    monkeypatch.setattr(memory, "free_memory", lambda device: 15 * memory.GB)
    with pytest.raises(CheckpointError) as refused:
        WorldModel.load(tmp_path)
    said = str(refused.value)
    assert (
        "needs 17.0 GB on cpu, where 15.0 GB are free (in GB: transformer 5.3, autoencoder "
        "2.4, text encoder 5.2" in said
    )
    assert said.endswith(
        "; offload={'text': 'release'} would do; the nearest world that fits is 'tiny-rooms'"
    )
    monkeypatch.setattr(memory, "free_memory", lambda device: 20_000_000)
    with pytest.raises(CheckpointError, match=r"no bundled world fits either$"):
        WorldModel.load(tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda device: 20 * memory.GB)
    with pytest.raises(CheckpointError, match="sana-wm download"):
        WorldModel.load(tmp_path)


def test_a_small_world_is_never_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert WorldModel.load("rooms").config.name == "rooms"
