"""The refiner: what it sees, what it carries, and how it goes with a world."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_refiners import GRID, random_latents, stream, tiny_refiner, write_refiner
from torch.nn import functional as F

import sana_wm_env  # noqa: F401
from sana_wm_env.model.codecs.refiner import find_refiner, open_refiner
from sana_wm_env.model.codecs.text import TextEncoder, TextEncoderConfig
from sana_wm_env.model.network.refiner import RefinerConfig, RefinerNetwork, rotate
from sana_wm_env.model.refiner import sample
from sana_wm_env.model.state import WorldState, concatenate
from sana_wm_env.model.storage.weights import CheckpointError
from sana_wm_env.model.tree import map_tensors
from sana_wm_env.model.world import WorldModel

TOKENS = GRID[0] * GRID[1]


# ---- the network


def test_the_published_network_has_the_published_size():
    with torch.device("meta"):
        network = RefinerNetwork(RefinerConfig())
    assert sum(p.numel() for p in network.parameters()) == 13_041_520_768


def test_settings_of_another_ltx_are_refused():
    for name, value in (("gated_attn", True), ("cross_attn_mod", True), ("patch_size", 2)):
        with pytest.raises(ValueError, match=name):
            RefinerConfig.from_settings({name: value})
    for wrong in ({"sigmas": (0.5, 0.6, 0.0)}, {"sigmas": (0.5,)}, {"window": 0}, {"rope_type": "none"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RefinerConfig(**wrong)


@torch.no_grad()
def recompute(refiner, latents, levels, visible, places):
    """Velocities of all tokens in one pass over a whole session, with what each frame sees as an explicit
    mask (T, T), and levels and places of each. Written from the formulas, on the same weights.
    """
    network = refiner.network
    features, words = refiner.text_encoder.encode(["a"])
    text = network.read_text(features)
    x = network.proj_in(latents.flatten(2).mT)
    modulation, embedded = network.time_embed(1000 * torch.tensor(levels), x.dtype)
    each = torch.arange(latents.shape[2]).repeat_interleave(TOKENS)  # frame of a token
    sees = visible[each][:, each]
    rotation = network.rotate_to(places, GRID, torch.device("cpu"))
    for block in network.transformer_blocks:
        table = (block.scale_shift_table + modulation)[each].unbind(1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = table
        own, y = block.attn1, F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

        def split(t, heads=own.heads):
            return t.unflatten(2, (heads, -1)).transpose(1, 2)

        query, key = (
            rotate(split(norm(to(y))), rotation, own.rope_type)
            for norm, to in ((own.norm_q, own.to_q), (own.norm_k, own.to_k))
        )
        scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~sees, -torch.inf)
        attended = (scores.softmax(-1) @ split(own.to_v(y))).transpose(1, 2).flatten(2)
        x = x + own.to_out[0](attended) * gate
        bias = torch.where(words, 0.0, -10000.0)[:, None, None]
        x = x + block.attn2.to_text(F.rms_norm(x, x.shape[-1:], eps=1e-6), text, bias)
        y = F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_ff) + shift_ff
        x = x + block.ff(y) * gate_ff
    shift, scale = (network.scale_shift_table + embedded[:, None])[each].unbind(1)
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return network.proj_out(x).mT.unflatten(2, latents.shape[2:])


@pytest.mark.parametrize(("blocks", "size"), [(5, 1000), (4, 11)])
def test_streaming_equals_a_whole_recompute_with_the_same_visible_frames(blocks, size):
    """Every block in turn, before anything leaves the window: its pass against one over the whole session
    with a mask.
    """
    refiner = tiny_refiner(window=size)
    latents = random_latents(1 + 3 * blocks)
    state, refined = refiner.start(latents[:, :, :1], ["a"]), [latents[:, :, :1]]
    for k, block in enumerate(latents[:, :, 1:].split(3, 2)):
        length = 4 + 3 * k
        begins = torch.tensor([0] + [1 + 3 * (f // 3) for f in range(length - 1)])  # of each frame's block
        visible = torch.arange(length)[None] < (begins + 3)[:, None]
        visible[0, 1:] = False
        whole = torch.cat([*refined, block], 2)
        found, _ = refiner.prepare_pass(state, block)(block, 0.5)
        wanted = recompute(refiner, whole, [0.0] * (length - 3) + [0.5] * 3, visible, range(length))
        assert (found - wanted[:, :, -3:]).abs().max() < 1e-5
        new, remember = refiner.refine(block, state)
        refined.append(new)
        state = remember()


def test_a_full_window_sees_the_sink_and_the_newest_frames_alone():
    """Against an explicit window: keys of the sink and of the last ten frames, at their places."""
    # slow angles: those of absolute places, as published, are rounded to float32, ours are small
    refiner = tiny_refiner(window=11, rope_theta=100.0)
    latents = random_latents(1 + 3 * 6)
    state = refiner.start(latents[:, :, :1], ["a"])
    kept = [state.window]
    for block in latents[:, :, 1:16].split(3, 2):
        run = refiner.prepare_pass(state, block)
        new, remember = refiner.refine(block, state)
        kept.append(run(new, 0.0)[1])
        state = remember()
    block = latents[:, :, 16:19]
    found, _ = refiner.prepare_pass(state, block)(block, 0.3)

    def joined(i, part):
        frames = torch.cat([getattr(blocks[i], part) for blocks in kept[1:]], 2)[:, :, -10 * TOKENS :]
        return torch.cat([getattr(kept[0][i], part), frames], 2)

    # absolute places, as published: the sink slides to right before the ten frames, 6 to 15
    window = refiner.network.rotate_to([5, *range(6, 19)], GRID, torch.device("cpu"))
    past = [replace(kept[0][i], key=joined(i, "key"), value=joined(i, "value")) for i in range(3)]
    wanted, _ = refiner.network(block, torch.tensor([0.3]), state.text, state.mask, window, past)
    assert (found - wanted).abs().max() < 1e-5
    assert state.window[0].key.shape[2] == 11 * TOKENS


def test_sessions_of_other_ages_refine_together_as_alone():
    refiner = tiny_refiner(window=4)
    latents = random_latents(13, batch=2)

    def after(row, blocks):
        state = refiner.start(latents[row : row + 1, :, :1], ["ab"[row]])
        for block in latents[row : row + 1, :, 1 : 1 + 3 * blocks].split(3, 2):
            state = refiner.refine(block, state)[1]()
        return state

    states = after(0, 1), after(1, 3)  # windows equally full, one of which has slid
    block = latents[:, :, 10:13]
    both = map_tensors(lambda *rows: torch.cat(rows), *states)
    together, remember = refiner.refine(block, both)
    for row, state in enumerate(states):
        alone, alone_remember = refiner.refine(block[row : row + 1], state)
        assert (together[row : row + 1] - alone).abs().max() < 1e-5
        after_it = remember().window[0].key[row : row + 1]
        assert (after_it - alone_remember().window[0].key).abs().max() < 1e-5


# ---- sampling


def test_the_exact_velocity_leads_to_the_target():
    target, stage1, noise = (random_latents(3, seed=seed) for seed in (1, 2, 3))
    sigmas = RefinerConfig().sigmas
    start = (1 - sigmas[0]) * stage1 + sigmas[0] * noise

    def exact(x, sigma):
        return (start - target) / sigmas[0], ()

    assert (sample(exact, stage1, noise, sigmas) - target).abs().max() < 1e-6


def test_no_steps_from_zero_change_nothing():
    stage1, noise = random_latents(3), random_latents(3, seed=2)
    tiny = sample(lambda x, sigma: (torch.zeros_like(x), ()), stage1, noise, (1e-6, 0.0))
    assert (tiny - stage1).abs().max() < 1e-4


def test_the_whole_clip_at_once_is_one_block():
    refiner = tiny_refiner()
    latents = random_latents(10)
    state = refiner.start(latents[:, :, :1], ["a"])
    refined, _ = refiner.refine(latents[:, :, 1:], state)
    assert refined.shape == latents[:, :, 1:].shape
    assert (refined - stream(refiner, latents, ["a"])[:, :, 1:]).abs().max() > 1e-3


# ---- in a world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_refiner(tmp_path_factory.mktemp("refiner") / "small")


@pytest.fixture(scope="module")
def world(folder):
    return WorldModel.load("tiny-rooms", dtype=torch.float32, refiner=folder)


def begin(world, batch):
    images = torch.stack([torch.full((64, 64, 3), 40 * (row + 1), dtype=torch.uint8) for row in range(batch)])
    images[:, 20:40, 10:30] = torch.tensor([200, 60, 30], dtype=torch.uint8)
    intrinsics = torch.tensor([[50.0, 50.0, 32.0, 32.0]]).repeat(batch, 1)
    generators = [torch.Generator().manual_seed(row) for row in range(batch)]
    return world.start(images, intrinsics, ["a red room"] * batch, generators)


def poses(chunk, batch):
    """Straight ahead, 2 cm a frame."""
    path = torch.eye(4, dtype=torch.float64).repeat(batch, 24, 1, 1)
    path[:, :, 2, 3] = 0.02 * (24 * chunk + 1 + torch.arange(24))
    return path


def play(world, state, chunks, first=0):
    for k in range(first, first + chunks):
        frames, state = world.step(state, poses(k, len(state)))
    return frames, state


def test_stage_1_goes_on_as_without_a_refiner(world):
    plain = WorldModel.load("tiny-rooms", dtype=torch.float32)
    refined, with_it = play(world, begin(world, 1), 3)
    frames, without = play(plain, begin(plain, 1), 3)
    assert not torch.equal(refined, frames)
    for one, other in zip(
        replace(with_it, refiner=None, decoder=(), frame=with_it.c2w).transformer.blocks,
        without.transformer.blocks,
        strict=True,
    ):
        assert torch.equal(one.ffn_tail, other.ffn_tail)


def test_a_saved_session_goes_on_to_the_last_bit(world, tmp_path):
    _, state = play(world, begin(world, 1), 5)
    state.save(tmp_path / "state")
    again = world.accept(WorldState.load(tmp_path / "state"))
    assert again.refiner.frames.tolist() == [15]
    for k in range(5, 8):
        (ours, state), (theirs, again) = (world.step(s, poses(k, 1)) for s in (state, again))
        assert torch.equal(ours, theirs)


def test_its_state_stops_growing(world):
    sizes = []
    state = begin(world, 1)
    for k in range(6):
        _, state = world.step(state, poses(k, 1))
        sizes.append(state.refiner.nbytes)
    assert sizes[0] < sizes[2] and len(set(sizes[3:])) == 1


def test_what_is_not_refined_is_forgotten(world):
    _, state = play(world, begin(world, 1), 3)
    *_, skipped = world.play(state, torch.cat([poses(3, 1), poses(4, 1)], 1), refine=False)
    (after,) = skipped.states
    assert after.refiner.window[0].key.shape[2] == 64 and after.refiner.frames.tolist() == [0]
    plain = WorldModel.load("tiny-rooms", dtype=torch.float32)
    *_, wanted = plain.play(plain.accept(state), torch.cat([poses(3, 1), poses(4, 1)], 1))
    assert torch.equal(skipped.frames, wanted.frames)
    assert torch.isfinite(world.step(after, poses(5, 1))[0].float()).all()


def test_states_cross_only_where_they_can_go_on(world, tmp_path):
    plain = WorldModel.load("tiny-rooms", dtype=torch.float32)
    _, unrefined = play(plain, begin(plain, 1), 1)
    with pytest.raises(ValueError, match="refiner=None"):
        world.accept(unrefined)
    _, state = play(world, begin(world, 1), 1)
    assert plain.accept(state).refiner is None
    other = WorldModel.load("tiny-rooms", refiner=write_refiner(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="of the refiner"):
        other.accept(state)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("window", lambda r: replace(r, window=r.window[:-1])),
        ("window", lambda r: replace(r, window=())),
        ("window", lambda r: replace(r, window=tuple(b.map(lambda t: t[:, :, 1:]) for b in r.window))),
        (
            "window.1",
            lambda r: replace(r, window=(r.window[0], *(b.map(lambda t: t[..., 1:]) for b in r.window[1:]))),
        ),
        (
            "window.0.key",
            lambda r: replace(r, window=tuple(replace(b, key=b.key.double()) for b in r.window)),
        ),
        (
            "window.0.key",
            lambda r: replace(r, window=tuple(replace(b, key=b.key * float("nan")) for b in r.window)),
        ),
        ("window.0.key", lambda r: replace(r, window=tuple(replace(b, key=None) for b in r.window))),
        ("text", lambda r: replace(r, text=r.text[..., 1:])),
        ("text", lambda r: replace(r, text=None)),
        ("text", lambda r: replace(r, mask=r.mask[:, 1:])),
        ("frames", lambda r: replace(r, frames=r.frames * 0)),
        ("frames", lambda r: replace(r, frames=r.frames[:0])),
        ("generators", lambda r: replace(r, generators=r.generators[:, 1:])),
        ("weights", lambda r: replace(r, weights=3)),
    ],
)
def test_damaged_states_are_refused_by_name(world, part, damage):
    _, state = play(world, begin(world, 1), 2)
    with pytest.raises(ValueError, match=rf"refiner\.{part}"):
        world.accept(replace(state, refiner=damage(state.refiner)))


def test_rows_of_a_batch_refine_as_alone(world):
    _, both = play(world, begin(world, 2), 2)
    frames, _ = world.step(both, poses(2, 2))
    alone, _ = world.step(both[1], poses(2, 1))
    assert (frames[1:].int() - alone.int()).abs().max() <= 1
    assert concatenate([both[0], both[1]]).refiner.frames.tolist() == [6, 6]


# ---- files


def test_blocks_left_in_files_refine_alike(folder):
    files = find_refiner(folder, folder)
    encoder = TextEncoder(TextEncoderConfig())
    whole, lazy = (open_refiner(files, encoder, torch.float32, "cpu", place) for place in ("cpu", "blocks"))
    assert whole.fingerprint == lazy.fingerprint
    held = sum(t.numel() for t in lazy.network.state_dict().values())
    assert held < sum(t.numel() for t in whole.network.state_dict().values())
    latents = torch.randn(1, 48, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stream(whole, latents, ["a"]), stream(lazy, latents, ["a"]))


def test_weights_of_sound_are_never_read(folder, tmp_path):
    path = "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(folder / path)
    with_sound = write_refiner(tmp_path / "sound")
    more = {"audio_proj_in.weight": torch.full((1, 1), torch.nan)}
    more["transformer_blocks.0.audio_attn1.to_q.weight"] = torch.full((1, 1), torch.nan)
    more["av_cross_attn_video_a2v_gate.linear.bias"] = torch.full((1,), torch.nan)
    save_file(tensors | more, with_sound / path)
    world = WorldModel.load("tiny-rooms", refiner=with_sound)
    assert world.refiner.network.state_dict().keys() == tensors.keys()
    del tensors["proj_in.weight"]
    save_file(tensors, with_sound / path)
    with pytest.raises(CheckpointError, match=r"missing proj_in\.weight"):
        WorldModel.load("tiny-rooms", refiner=with_sound)


def test_no_refiner_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="wanted the folder of a refiner"):
        WorldModel.load("tiny-rooms", refiner=tmp_path)


def test_environments_refine_what_is_seen_and_plan_without(folder):
    env, plain = (gym.make("SanaWM-v0", refiner=r, dtype="float32") for r in (str(folder), None))
    (_, _), (_, _) = env.reset(seed=1), plain.reset(seed=1)
    action = np.full(6, 0.3, np.float32)
    assert not np.array_equal(env.step(action)[0], plain.step(action)[0])
    planned = [e.unwrapped.imagine(np.tile(action, (2, 2, 1)), decode="last") for e in (env, plain)]
    assert np.array_equal(planned[0].latents, planned[1].latents)
    seen = env.unwrapped.imagine(np.tile(action, (2, 2, 1)), decode="last", refine=True)
    assert not np.array_equal(seen.frames, planned[0].frames)
    fork = env.unwrapped.fork(2)
    first = fork.step(np.tile(action, (2, 1)))[0]
    assert np.abs(first[0].astype(int) - env.step(action)[0].astype(int)).max() <= 1
    with pytest.raises(CheckpointError, match="refiner"):
        gym.make("SanaWM-v0", refiner="nowhere")
