"""World folders and the world model, with a tiny untrained world."""

import json
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_networks import paths
from tiny_worlds import AUTOENCODER, CONFIG, begin, poses

from sana_wm_env.model.camera_inputs import camera_inputs
from sana_wm_env.model.clip import ClipModel
from sana_wm_env.model.codecs.autoencoder import Autoencoder
from sana_wm_env.model.config import VARIANTS
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import sample_clip
from sana_wm_env.model.state import concatenate
from sana_wm_env.model.storage.worlds import (
    CheckpointError,
    is_bundled,
    known_worlds,
    label_world,
    load_config,
    resolve_world,
    save_world,
)
from sana_wm_env.model.tree import tensors_of
from sana_wm_env.model.world import WorldModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("worlds") / "tiny"
    transformer = Transformer(CONFIG.transformer)
    for block in transformer.blocks:
        torch.nn.init.normal_(block.attn.out_proj_cam.weight, std=0.1)
        torch.nn.init.normal_(block.plucker_proj.weight, std=0.1)
    save_world(path, CONFIG, transformer, Autoencoder(AUTOENCODER))
    return path


@pytest.fixture(scope="module")
def world(folder) -> WorldModel:
    return WorldModel.load(folder)


def play(world: WorldModel, state, chunks: int, batch: int) -> tuple[torch.Tensor, object]:
    frames = []
    for chunk in range(int(state.chunk_index[0]), int(state.chunk_index[0]) + chunks):
        new, state = world.step(state, poses(chunk, batch))
        frames.append(new)
    return torch.cat(frames, 1), state


def film(chunks: int, batch: int) -> torch.Tensor:
    """Frames that no network made."""
    generator = torch.Generator().manual_seed(6)
    return torch.randint(256, (batch, 24 * chunks, 16, 24, 3), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def test_what_is_observed_is_committed_in_place_of_what_is_imagined(world):
    state, seen, path = begin(world, 2), film(2, 2), torch.cat([poses(0, 2), poses(1, 2)], 1)
    after = world.observe(state, seen, path)
    latents = world.encode(torch.cat([state.frame[:, None], seen], 1))
    inputs = camera_inputs(
        torch.cat([state.c2w[:, None], path], 1), state.intrinsics_px, (16, 24), (2, 3), True
    )
    network, before = world.transformer, None
    for begins, ends in ((0, 4), (4, 7)):
        cameras = network.camera_context(inputs[0][:, begins:ends], inputs[1][:, :, begins:ends], begins)
        before = network.commit(latents[:, :, begins:ends], state.text, cameras, before)
    for one, other in zip(tensors_of(after.transformer), tensors_of(before), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert torch.equal(after.frame, seen[:, -1]) and torch.equal(after.c2w, path[:, -1])
    assert after.chunk_index.tolist() == [0, 0] and after.observed.tolist() == [2, 2]
    assert torch.equal(after.generators, state.generators), "nothing was drawn"


def test_an_observed_session_goes_on_like_any_other(world, tmp_path):
    state = world.observe(begin(world, 1), film(2, 1), torch.cat([poses(0, 1), poses(1, 1)], 1))
    frames, after = world.step(state, poses(2, 1))
    assert after.chunk_index.tolist() == [1] and after.observed.tolist() == [2]
    state.save(tmp_path / "state.safetensors")
    again, _ = world.step(world.accept(type(state).load(tmp_path / "state.safetensors")), poses(2, 1))
    assert torch.equal(frames, again)
    without, _ = world.step(begin(world, 1), poses(0, 1))
    assert (frames != without).any()


@pytest.mark.parametrize(
    ("frames", "path", "message"),
    [
        (film(1, 1).float(), poses(0, 1), "frames are torch.float32"),
        (film(1, 1)[:, :20], poses(0, 1)[:, :20], "whole chunks of 24 frames"),
        (film(1, 1)[..., :2], poses(0, 1), "wanted uint8"),
        (film(1, 1), poses(0, 1)[:, :20], "poses are"),
        (film(1, 1), poses(0, 1) * float("nan"), "NaN"),
    ],
)
def test_what_does_not_fit_is_not_observed(world, frames, path, message):
    with pytest.raises(ValueError, match=message):
        world.observe(begin(world, 1), frames, path)


def test_a_step_gives_24_frames_and_the_next_state(world):
    state = begin(world, 2)
    frames, after = world.step(state, poses(0, 2))
    assert frames.shape == (2, 24, 16, 24, 3) and frames.dtype == torch.uint8
    assert (state.chunk_index.tolist(), after.chunk_index.tolist()) == (
        [0, 0],
        [1, 1],
    ) and state.transformer is None
    assert after.transformer.next_frame.tolist() == [4, 4]
    assert torch.equal(after.c2w, poses(0, 2)[:, -1])
    _, later = world.step(after, poses(1, 2))
    assert later.transformer.next_frame.tolist() == [7, 7]


def test_a_state_repeats_itself_and_the_global_generator_stays_untouched(world):
    before = torch.get_rng_state()
    _, middle = play(world, begin(world, 1), 2, 1)
    first, end = play(world, middle, 2, 1)
    again, _ = play(world, middle, 2, 1)
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(middle.generators, end.generators)
    other, _ = play(world, begin(world, 1, seed=9), 1, 1)
    assert not torch.equal(other, play(world, begin(world, 1), 1, 1)[0])


def test_a_slot_is_what_it_is_alone(world):
    both = begin(world, 2)
    together, _ = play(world, both, 3, 2)
    frames, state = [], both.map(lambda t: t[1:])
    for chunk in range(3):
        new, state = world.step(state, poses(chunk, 2)[1:])
        frames.append(new)
    difference = torch.cat(frames, 1).int() - together[1:].int()
    assert difference.abs().max() <= 1


def test_noise_does_not_depend_on_neighbours(world):
    both = begin(world, 2)
    assert torch.equal(world.draw_noise(both, 3)[0][1:], world.draw_noise(both.map(lambda t: t[1:]), 3)[0])


def test_generate_latents_is_step_without_the_decode(world):
    state = begin(world, 1)
    latents, after = world.generate_latents(state, poses(0, 1))
    assert latents.shape == (1, 4, 3, 2, 3)
    frames, stepped = world.step(state, poses(0, 1))
    video, _ = world.autoencoder.decode(latents, state.decoder)
    assert torch.equal(((video + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1), frames)
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors_of(after.transformer), tensors_of(stepped.transformer), strict=True)
    )


def test_playing_a_path_is_step_after_step(world):
    state = begin(world, 2)
    wanted, end = play(world, state, 2, 2)
    chunks = list(world.play(state, torch.cat([poses(0, 2), poses(1, 2)], 1)))
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks], 1), wanted)
    assert torch.equal(concatenate(chunks[-1].states).transformer.next_frame, end.transformer.next_frame)
    undecoded = list(world.play(state, poses(0, 2), decode=False))
    assert not undecoded[0].frames.numel() and torch.equal(undecoded[0].latents, chunks[0].latents)
    with pytest.raises(ValueError, match=r"poses are \(2, 30, 4, 4\); wanted \(2, 24, 4, 4\)"):
        next(world.play(state, paths(31, 2)[:, 1:]))


def test_sessions_of_any_age_step_together(world):
    young, old = begin(world, 1), play(world, begin(world, 1, seed=3), 2, 1)[1]
    together = world.step_each([young, old, young], [poses(0, 1)[0], poses(2, 1)[0], poses(0, 1)[0]])
    for (frames, after), (state, chunk) in zip(together, ((young, 0), (old, 2), (young, 0)), strict=True):
        alone, next_state = world.step(state, poses(chunk, 1))
        assert (frames.int() - alone[0].int()).abs().max() <= 1
        assert torch.equal(after.chunk_index, next_state.chunk_index)


def test_noise_levels_are_an_argument(world):
    state, before = begin(world, 1), world.fingerprint
    few, _ = world.step(state, poses(0, 1), (1.0, 0.5, 0.0))
    usual, _ = world.step(state, poses(0, 1))
    assert torch.equal(usual, world.step(state, poses(0, 1), world.config.sigmas)[0]) and not torch.equal(
        few, usual
    )
    assert world.fingerprint == before


def test_the_camera_path_matters(world):
    state = begin(world, 1)
    still = torch.eye(4, dtype=torch.float64).repeat(1, 24, 1, 1)
    assert not torch.equal(world.step(state, still)[0], world.step(state, poses(0, 1))[0])


def test_bad_input_is_refused(world):
    state = begin(world, 1)
    with pytest.raises(ValueError, match=r"poses are \(1, 23, 4, 4\); wanted \(1, 24, 4, 4\)"):
        world.step(state, poses(0, 1)[:, 1:])
    with pytest.raises(ValueError, match="NaN"):
        world.step(state, poses(0, 1) * float("nan"))
    image = torch.zeros(1, 16, 24, 3)
    with pytest.raises(ValueError, match=r"wanted uint8 \(B, 16, 24, 3\)"):
        world.start(image, torch.ones(1, 4), [""], [torch.Generator()])
    with pytest.raises(ValueError, match="2 prompts"):
        world.start(image.byte(), torch.ones(1, 4), ["", ""], [torch.Generator()])


# ---- folders


def test_settings_and_weights_survive_a_round_trip(folder, world):
    assert load_config(folder) == CONFIG == world.config
    stored = load_file(folder / "transformer.safetensors")
    assert stored["final_layer.linear.weight"].dtype == torch.float16
    assert torch.equal(
        world.transformer.final_layer.linear.weight, stored["final_layer.linear.weight"].float()
    )
    assert world.transformer.pos_embed.device.type == "cpu"
    assert not any(p.requires_grad for p in world.transformer.parameters())


def copy(folder, tmp_path):
    target = tmp_path / "world"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_an_unknown_world_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"unknown world 'romos': neither a folder nor one of the bundled worlds \["
    ):
        resolve_world("romos")
    with pytest.raises(CheckpointError, match=r"is not a world: it has no config\.json"):
        WorldModel.load(tmp_path)
    for name in known_worlds():
        assert (resolve_world(name) / "config.json").is_file()


def test_the_bundled_world_is_shown_as_tiny_rooms_and_its_first_name_still_opens_it(tmp_path):
    assert known_worlds() == ["tiny-rooms"] and is_bundled("rooms") and not is_bundled("2.6b")
    bundled = resolve_world("tiny-rooms")
    assert bundled == resolve_world("rooms")
    config = load_config(bundled)
    assert config.name == "rooms"  # which saved states and the fingerprint hold
    assert label_world(bundled, config) == "tiny-rooms" and label_world(tmp_path, config) == "rooms"
    assert gym.make("SanaWM-v0", world="rooms").reset(seed=1)[1]["world"] == "tiny-rooms"


@pytest.mark.parametrize("name", ["transformer.safetensors", "autoencoder.safetensors"])
def test_missing_and_damaged_weights_are_named(folder, tmp_path, name):
    target = copy(folder, tmp_path)
    (target / name).write_bytes((target / name).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"{name} cannot be read as safetensors"):
        WorldModel.load(target)
    (target / name).unlink()
    with pytest.raises(CheckpointError, match=f"it has no {name}"):
        WorldModel.load(target)


def test_keys_that_do_not_fit_are_named(folder, tmp_path):
    target = copy(folder, tmp_path)
    tensors = load_file(target / "transformer.safetensors")
    del tensors["t_block.1.bias"]
    tensors["blocks.9.attn.proj.bias"] = torch.zeros(32)
    tensors["x_embedder.proj.bias"] = torch.zeros(31)
    save_file(tensors, target / "transformer.safetensors")
    said = (
        r"missing t_block\.1\.bias; unexpected blocks\.9\.attn\.proj\.bias; mis-shaped "
        r"x_embedder\.proj\.bias \(31,\) instead of \(32,\)"
    )
    with pytest.raises(CheckpointError, match=said):
        WorldModel.load(target)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fsp": 16}, "unknown world settings \\['fsp'\\]"),
        ({"sigmas": [1.0, 0.5]}, "fall from 1 at most to 0"),
        ({"transformer": {"depth": 4}}, "incomplete transformer settings"),
        ({"autoencoder": {"wide": 4}}, "wide"),
        ({"autoencoder": {"latent_channels": 8}}, "latent channels .* differ: 8 and 4"),
        ({"image_size": [16, 16]}, r"image size .* differ: \(16, 24\) and \(16, 16\)"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder, tmp_path, change, said):
    target = copy(folder, tmp_path)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(CheckpointError, match=said):
        WorldModel.load(target)


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    transformer = Transformer(CONFIG.transformer)
    torch.nn.init.constant_(transformer.final_layer.linear.bias, 1e6)
    with pytest.raises(
        ValueError, match=r"final_layer\.linear\.bias holds numbers that torch\.float16 cannot"
    ):
        save_world(tmp_path / "w", CONFIG, transformer, Autoencoder(AUTOENCODER))


@pytest.fixture(scope="module")
def versatile(folder, tmp_path_factory):
    """The world of `folder` with another transformer for its clips."""
    path = tmp_path_factory.mktemp("versatile") / "tiny"
    streaming = WorldModel.load(folder)
    torch.manual_seed(1)
    save_world(
        path,
        replace(CONFIG, variants=VARIANTS),
        streaming.transformer,
        streaming.autoencoder,
        undistilled=Transformer(CONFIG.transformer),
    )
    return path


def test_each_variant_has_the_weights_that_it_was_trained_with(folder, versatile, world):
    few, many = WorldModel.load(versatile), ClipModel.load(versatile)
    assert (few.variant, many.variant) == ("streaming", "bidirectional")
    weight = "x_embedder.proj.weight"
    theirs, ours = (w.transformer.state_dict()[weight] for w in (world, few))
    assert torch.equal(theirs, ours) and not torch.equal(ours, many.transformer.state_dict()[weight])
    assert (
        few.fingerprint == world.fingerprint != many.fingerprint
    )  # states saved before the world could do more still open
    (versatile / "transformer-undistilled.safetensors").rename(versatile / "away")
    try:
        WorldModel.load(versatile)
        with pytest.raises(CheckpointError, match=r"it has no transformer-undistilled\.safetensors"):
            ClipModel.load(versatile, variant="chunk_causal")
    finally:
        (versatile / "away").rename(versatile / "transformer-undistilled.safetensors")


def test_a_variant_that_is_not_there_is_refused(folder, versatile, world):
    with pytest.raises(
        CheckpointError, match="the world 'tiny' has no variant 'bidirectional'; it has streaming"
    ):
        ClipModel.load(folder)
    clips = ClipModel.load(versatile, variant="chunk_causal")
    with pytest.raises(
        ValueError, match="got the variant 'streaming'; a ClipModel runs bidirectional or chunk_causal"
    ):
        ClipModel(CONFIG, clips.transformer, clips.autoencoder, clips.text_encoder, "streaming")
    with pytest.warns(DeprecationWarning, match="is ClipModel.load"):
        assert WorldModel.load(versatile, variant="chunk_causal").variant == "chunk_causal"
    assert clips.clip_steps(960) == 60 + 39  # 40 chunks, each a step later than the one before
    with pytest.raises(ValueError, match=r"the variants streaming with an undistilled transformer"):
        save_world(folder, CONFIG, world.transformer, world.autoencoder, undistilled=world.transformer)
    with pytest.raises(
        ValueError, match=r"streaming, bidirectional, chunk_causal with no undistilled transformer"
    ):
        save_world(folder, replace(CONFIG, variants=VARIANTS), world.transformer, world.autoencoder)
    with pytest.raises(ValueError, match=r"variants are \('stream',\); wanted some of streaming"):
        replace(CONFIG, variants=("stream",))


@pytest.mark.parametrize("variant", ["bidirectional", "chunk_causal"])
def test_a_clip_is_the_sampler_on_the_cameras_text_and_noise_of_its_session(versatile, variant):
    clips, taken = ClipModel.load(versatile, variant=variant), []
    state = begin(clips, 2)
    latents = clips.clip_latents(
        state, poses(0, 2)[:, :16], (1.0, 0.5, 0.0), guidance=2.0, on_step=lambda: taken.append(1)
    )
    noise = torch.stack(
        [torch.randn(4, 2, 2, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    )
    camera, plucker = camera_inputs(paths(25, 2)[:, :17], state.intrinsics_px, (16, 24), (2, 3))
    net, null = clips.transformer, clips.text_encoder.encode(["", ""])
    with torch.inference_mode():
        wanted = sample_clip(
            net,
            torch.cat([state.image_latent, noise], 2),
            state.text,
            net.camera_context(camera, plucker),
            state.image_latent,
            net.text_context(*null),
            2.0,
            (1.0, 0.5, 0.0),
            variant,
        )
    torch.testing.assert_close(latents, wanted[:, :, 1:])  # what runs beside decides how a product rounds
    assert len(taken) == clips.clip_steps(16, (1.0, 0.5, 0.0)) == 2
    alone = clips.clip_latents(
        state.map(lambda t: t[1:]), poses(0, 2)[1:, :16], (1.0, 0.5, 0.0), guidance=2.0
    )
    torch.testing.assert_close(alone, latents[1:])
    with pytest.raises(ValueError, match=r"poses are \(2, 20, 4, 4\); wanted \(2, 16, 4, 4\)"):
        clips.clip_latents(state, poses(0, 2)[:, :20])


def test_a_clip_decodes_in_pieces(versatile):
    clips = ClipModel.load(versatile)
    state = begin(clips, 1)
    latents = clips.clip_latents(state, poses(0, 1), (1.0, 0.0))
    whole, _ = clips.decode(latents, state)
    first, after = clips.decode(latents[:, :, :1], state)
    rest, _ = clips.decode(latents[:, :, 1:], after)
    assert whole.shape == (1, 24, 16, 24, 3)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    (played,) = clips.play(state, poses(0, 1), (1.0, 0.0))
    assert torch.equal(played.frames, whole) and torch.equal(played.latents, latents)
