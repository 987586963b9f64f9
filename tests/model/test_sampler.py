import pytest
import torch
from tiny_networks import clip, tiny_network

from sana_wm_env.model.network.execution import Rule
from sana_wm_env.model.sampler import (
    STREAMING_SIGMAS,
    euler,
    sample_chunk,
    sample_clip,
    shift,
    shifted_sigmas,
    staggered,
    timestep_of,
)

RULES: tuple[Rule, ...] = ("bidirectional", "chunk_causal")


def test_the_steps_are_the_shifted_quarters():
    quarters = [round(float(shift(s, 8.0)), 3) for s in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert quarters == [round(s, 3) for s in STREAMING_SIGMAS]
    assert torch.allclose(shift(torch.tensor([0.0, 0.5, 1.0]), 9.95), torch.tensor([0.0, 9.95 / 10.95, 1.0]))


def test_levels_arrive_as_whole_timesteps():
    assert timestep_of(torch.tensor(STREAMING_SIGMAS)).tolist() == [1000, 960, 889, 727, 0]
    assert timestep_of(torch.tensor(0.99826)).item() == pytest.approx(998.26)


def test_euler_recovers_the_target_of_a_straight_flow_and_keeps_the_image():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 4, 5, 3, 3, generator=generator)
    image, seen = clean[:, :, :1], []

    def velocity(x, t):
        seen.append(t)
        return noise - clean

    x = euler(velocity, noise, STREAMING_SIGMAS, image)
    assert torch.allclose(x, clean, atol=1e-6) and torch.equal(x[:, :, :1], image)
    assert [t[0, 0].item() for t in seen] == [0, 0, 0, 0] and [t[0, 1].item() for t in seen] == [
        1000,
        960,
        889,
        727,
    ]


@torch.no_grad()
def test_sampling_a_chunk_is_deterministic_and_leaves_the_state_alone():
    network, given = tiny_network(), clip(7)
    text = network.text_context(given["text"], given["mask"])
    opening = network.camera_context(given["camera"][:, :4], given["plucker"][:, :, :4])
    cameras = network.camera_context(given["camera"][:, 4:], given["plucker"][:, :, 4:], 4)
    state = network.commit(given["x"][:, :, :4], text, opening, None)
    before = state.map(torch.clone)
    noise = given["x"][:, :, 4:]
    a, b = (sample_chunk(network, noise, text, cameras, state) for _ in range(2))
    assert torch.equal(a, b) and a.shape == noise.shape
    assert torch.equal(state.blocks[0].attention.matrix, before.blocks[0].attention.matrix)


@torch.no_grad()
def test_guidance_of_one_and_the_same_text_twice_change_nothing():
    network, given = tiny_network(), clip(4)
    text = network.text_context(given["text"], given["mask"])
    cameras = network.camera_context(given["camera"], given["plucker"])
    image, sigmas = given["x"][:, :, :1] * 0, (1.0, 0.5, 0.0)
    plain = sample_clip(network, given["x"], text, cameras, image, sigmas=sigmas)
    assert torch.equal(plain[:, :, :1], image)
    assert torch.allclose(
        plain, sample_clip(network, given["x"], text, cameras, image, text, 3.0, sigmas), atol=1e-10
    )
    null = network.text_context(0 * given["text"], given["mask"])
    assert torch.equal(plain, sample_clip(network, given["x"], text, cameras, image, null, 1.0, sigmas))
    assert not torch.allclose(
        plain, sample_clip(network, given["x"], text, cameras, image, null, 3.0, sigmas)
    )


def test_a_schedule_has_whole_shifted_steps_and_nothing_else():
    assert shifted_sigmas(4, 8.0) == pytest.approx(
        [float(shift(s, 8.0)) for s in (1.0, 0.75, 0.5, 0.25, 0.0)]
    )
    assert shifted_sigmas(1, 9.8) == (1.0, 0.0)
    for steps, s, said in (
        (0, 9.8, "wanted at least 1"),
        (4, 0.0, "positive"),
        (4, float("nan"), "positive"),
    ):
        with pytest.raises(ValueError, match=said):
            shifted_sigmas(steps, s)


def test_chunks_walk_down_the_same_levels_a_third_of_the_schedule_apart():
    levels = staggered((1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0), (4, 3, 3))
    assert levels.shape == (11, 10)
    first, second, third = levels[:, 0].tolist(), levels[:, 4].tolist(), levels[:, 7].tolist()
    assert first == [1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert second == [1.0, 1.0, 1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0]
    assert third == [1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert all(
        torch.equal(levels[:, i], levels[:, j])
        for chunk in ((0, 4), (4, 7), (7, 10))
        for i in range(*chunk)
        for j in range(*chunk)
    )


def test_fewer_steps_than_chunks_still_start_one_after_the_other():
    assert staggered((1.0, 0.5, 0.0), (4, 3, 3, 3))[:, [0, 4, 7, 10]].T.tolist() == [
        [1.0, 0.5, 0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 0.5, 0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 0.5, 0.0, 0.0],
        [1.0, 1.0, 1.0, 1.0, 0.5, 0.0],
    ]


@torch.no_grad()
@pytest.mark.parametrize("frames", [10, 12])  # 12: the last chunk takes up two more
def test_staggered_sampling_agrees_with_running_the_whole_clip_at_every_step(frames):
    network, given = tiny_network(), clip(frames)
    text, null = (network.text_context(scale * given["text"], given["mask"]) for scale in (1, 0))
    cameras = network.camera_context(given["camera"], given["plucker"])
    image, sigmas = 0.3 * given["x"][:, :, :1], shifted_sigmas(7, 3.0)
    ticks = []
    fast = sample_clip(
        network, given["x"], text, cameras, image, null, 2.0, sigmas, "chunk_causal", lambda: ticks.append(1)
    )
    x, lag = given["x"].clone(), 2
    for tick in range(7 + 2 * lag):
        x[:, :, :1] = image
        level = [
            [
                sigmas[min(max(tick + more - lag * min((f - 1) // 3, 2) * (f > 0), 0), 7)]
                for f in range(frames)
            ]
            for more in (0, 1)
        ]
        now, then = torch.tensor(level, dtype=torch.float64)
        t = (1000 * now)[None].round(decimals=3)
        t[:, 0] = 0
        v, free = (network(x, t, words, cameras, rule="chunk_causal") for words in (text, null))
        x = x - (now - then)[:, None, None] * (free + 2.0 * (v - free))
    x[:, :, :1] = image
    assert len(ticks) == 11
    assert torch.allclose(fast, x, atol=1e-9)


@torch.no_grad()
def test_with_one_chunk_the_staggered_sampler_is_the_bidirectional_one_and_with_two_it_is_not():
    network = tiny_network()
    for frames, same in ((4, True), (7, False)):
        given = clip(frames)
        text = network.text_context(given["text"], given["mask"])
        cameras = network.camera_context(given["camera"], given["plucker"])
        sigmas = shifted_sigmas(3, 9.8)
        both = [
            sample_clip(network, given["x"], text, cameras, given["x"][:, :, :1], sigmas=sigmas, rule=r)
            for r in RULES
        ]
        assert torch.equal(*both) is same


@torch.no_grad()
def test_what_a_chunk_becomes_does_not_depend_on_the_noise_of_later_ones():
    network, given = tiny_network(), clip(10)
    text = network.text_context(given["text"], given["mask"])
    cameras = network.camera_context(given["camera"], given["plucker"])
    sigmas, other = shifted_sigmas(4, 9.8), given["x"].clone()
    other[:, :, 7:] += 1
    a, b = (
        sample_clip(network, noise, text, cameras, sigmas=sigmas, rule="chunk_causal")
        for noise in (given["x"], other)
    )
    assert torch.allclose(a[:, :, :7], b[:, :, :7], atol=1e-10) and not torch.allclose(
        a[:, :, 7:], b[:, :, 7:]
    )
