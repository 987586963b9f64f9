"""A world with the parts of the published ones, small and random: LTX-2 autoencoder, Gemma-2 text encoder.
From folder to environment.
"""

import shutil
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from tiny_gemma import INSTRUCTION, WIDTH, write_tiny_gemma
from tiny_networks import tiny_config, tiny_network

import sana_wm_env  # noqa: F401 (registers the ids)
from sana_wm_env.model.codecs.gemma import GemmaTextEncoder
from sana_wm_env.model.codecs.ltx2 import LTX2Autoencoder
from sana_wm_env.model.config import WorldConfig
from sana_wm_env.model.state import WorldState
from sana_wm_env.model.storage.worlds import CheckpointError, save_world, write_config
from sana_wm_env.model.tree import tensors_of
from sana_wm_env.model.world import WorldModel

pytestmark = pytest.mark.usefixtures("one_thread")
LTX2 = {
    "latent_channels": 4,
    "block_out_channels": (8, 16, 32, 64),
    "decoder_block_out_channels": (8, 16, 32),
}
SIZES = {"text_width": WIDTH, "text_tokens": 8}
CONFIG = WorldConfig(
    name="small-published",
    transformer=tiny_config(**SIZES),
    autoencoder={"kind": "ltx2", **LTX2},
    text={"kind": "gemma2", "width": WIDTH, "tokens": 8, "instruction": INSTRUCTION},
    image_size=(64, 96),
    grid=(2, 3),
)
IMAGE = np.random.default_rng(0).integers(256, size=(100, 120, 3), dtype=np.uint8)
START = {"image": IMAGE, "fov_deg": 65, "prompt": "a red box"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("worlds") / "small"
    torch.manual_seed(0)
    autoencoder = LTX2Autoencoder(LTX2)
    autoencoder.latents_std.fill_(0.3)
    save_world(path, CONFIG, tiny_network(torch.float32, **SIZES), autoencoder)
    write_tiny_gemma(path / "text_encoder")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANA_WM_CACHE", str(tmp_path))


def actions() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (3, 6)).astype(np.float32)


def test_an_episode_and_its_repetition_from_the_middle(folder, tmp_path):
    env = gym.make("SanaWM-v0", world=str(folder), offload={"text": "release"})
    obs, info = env.reset(seed=3, options=START)
    assert obs.shape == (24, 64, 96, 3) and info["n_new_frames"] == 1
    assert (
        isinstance(env.unwrapped.model.text_encoder, GemmaTextEncoder)
        and env.unwrapped.model.text_encoder._loaded is None
    )
    env.step(actions()[0])
    middle = env.unwrapped.save_state()
    assert len(middle.decoder) == 45
    middle.save(tmp_path / "middle.safetensors")
    played = [env.step(action)[0] for action in actions()[1:]]
    end = env.unwrapped.save_state()
    assert played[0].std() > 1 and not np.array_equal(played[0], played[1])

    fresh = gym.make("SanaWM-v0", world=str(folder))
    fresh.reset(seed=9, options={**START, "prompt": ""})
    fresh.unwrapped.restore_state(WorldState.load(tmp_path / "middle.safetensors"))
    again = [fresh.step(action)[0] for action in actions()[1:]]
    assert all(np.array_equal(a, b) for a, b in zip(played, again, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors_of(end), tensors_of(fresh.unwrapped.save_state()), strict=True)
    )


def test_the_frames_of_an_episode_are_the_decode_of_its_latents_as_one_clip(folder):
    world = WorldModel.load(folder)
    image = torch.from_numpy(IMAGE[:64, :96].copy())[None]
    state = world.start(
        image, torch.tensor([[80.0, 80.0, 48.0, 32.0]]), ["a red box"], [torch.Generator().manual_seed(0)]
    )
    still, shown, latents = torch.eye(4, dtype=torch.float64).repeat(1, 24, 1, 1), [], [state.image_latent]
    for _ in range(2):
        new, after = world.generate_latents(state, still)
        frames, state = world.decode(new, after)
        latents.append(new)
        shown.append(frames)
    video, _ = world.autoencoder.decode(torch.cat(latents, 2))
    wanted = ((video[:, :, 1:] + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 4, 1)
    assert (torch.cat(shown, 1).int() - wanted.int()).abs().max() <= 1


def test_the_prompt_matters_and_is_encoded_once(folder, tmp_path):
    world = WorldModel.load(folder)
    image, camera = torch.from_numpy(IMAGE[:64, :96].copy())[None], torch.tensor([[80.0, 80.0, 48.0, 32.0]])
    states = [
        world.start(image, camera, [prompt], [torch.Generator()])
        for prompt in ("a red box", "a green pillar", "a red box")
    ]
    assert not torch.equal(states[0].text.keys[0], states[1].text.keys[0])
    assert torch.equal(states[0].text.keys[0], states[2].text.keys[0])
    assert len(list((tmp_path / "text").iterdir())) == 2


def test_published_files_beside_the_transformer(folder, tmp_path):
    """`ltx2_causal_vae/` with diffusers' own settings and `text_encoder/` with `tokenizer/`, as the
    repositories have them.
    """
    from diffusers import AutoencoderKLLTX2Video

    target = shutil.copytree(folder, tmp_path / "published")
    stored = load_file(target / "autoencoder.safetensors")
    (target / "autoencoder.safetensors").unlink()
    AutoencoderKLLTX2Video(**LTX2).save_pretrained(target / "ltx2_causal_vae")
    save_file(
        {name: t.float() for name, t in stored.items()},
        target / "ltx2_causal_vae" / "diffusion_pytorch_model.safetensors",
    )
    (target / "tokenizer").mkdir()
    for file in (target / "text_encoder").glob("tokenizer*"):
        file.rename(target / "tokenizer" / file.name)
    ours, theirs = WorldModel.load(folder), WorldModel.load(target)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            ours.autoencoder.state_dict().values(), theirs.autoencoder.state_dict().values(), strict=True
        )
    )
    assert torch.equal(
        ours.text_encoder.encode(["a red box"])[0], theirs.text_encoder.encode(["a red box"])[0]
    )


def test_what_is_missing_or_does_not_fit_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    target = shutil.copytree(folder, tmp_path / "world")
    tensors = load_file(target / "autoencoder.safetensors")
    tensors["decoder.conv_in.conv.bias"] = tensors["decoder.conv_in.conv.bias"][:-1]
    save_file(tensors, target / "autoencoder.safetensors")
    with pytest.raises(
        CheckpointError, match=r"mis-shaped decoder\.conv_in\.conv\.bias \(31,\) instead of \(32,\)"
    ):
        WorldModel.load(target)
    (target / "text_encoder").rename(target / "elsewhere")
    with pytest.raises(CheckpointError, match=r"sana-wm download Efficient-Large-Model/gemma-2-2b-it"):
        WorldModel.load(target)


def test_a_world_is_run_in_the_numbers_that_it_names(folder, tmp_path):
    target = shutil.copytree(folder, tmp_path / "half")
    write_config(target, replace(CONFIG, dtype="bfloat16"), "world")
    image, camera = torch.from_numpy(IMAGE[:64, :96].copy())[None], torch.tensor([[80.0, 80.0, 48.0, 32.0]])
    still, shown = torch.eye(4, dtype=torch.float64).repeat(1, 24, 1, 1), []
    for place, dtype in ((folder, torch.float32), (target, torch.bfloat16)):
        world = WorldModel.load(place)
        assert {p.dtype for p in (*world.transformer.parameters(), *world.autoencoder.parameters())} == {
            dtype
        }
        state = world.start(image, camera, ["a red box"], [torch.Generator().manual_seed(0)])
        assert state.text.keys[0].dtype == dtype
        for _ in range(2):
            frames, state = world.step(state, still)
        shown.append(frames.float())
    assert 0 < (shown[0] - shown[1]).abs().mean() < 0.1 * shown[0].std()


def test_bad_offload_is_refused(folder):
    for offload in ({"transformer": "cpu"}, {"autoencoder": "release"}):
        with pytest.raises(ValueError, match="wanted a device for 'autoencoder', 'text' or 'refiner'"):
            WorldModel.load(folder, offload=offload)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parts_on_another_device_give_the_same_frames(folder):
    shown = []
    for offload in (None, {"autoencoder": "cpu", "text": "cpu"}):
        env = gym.make("SanaWM-v0", world=str(folder), device="cuda", offload=offload)
        env.reset(seed=3, options=START)
        env.step(actions()[0])
        state = env.unwrapped.save_state()
        env.unwrapped.restore_state(state)  # also from where it was saved
        shown.append(env.step(actions()[1])[0].astype(int))
    assert np.abs(shown[0] - shown[1]).max() <= 2
