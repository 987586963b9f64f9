import pytest
import torch
from tiny_networks import clip, tiny_network

from sana_wm_env.model.sampler import STREAMING_SIGMAS, euler, sample_chunk, sample_clip, shift, timestep_of


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
    assert [t[0, 0].item() for t in seen] == [0, 0, 0, 0] and [t[0, 1].item() for t in seen] == [1000, 960, 889, 727]


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
    assert torch.allclose(plain, sample_clip(network, given["x"], text, cameras, image, text, 3.0, sigmas), atol=1e-10)
    null = network.text_context(0 * given["text"], given["mask"])
    assert torch.equal(plain, sample_clip(network, given["x"], text, cameras, image, null, 1.0, sigmas))
    assert not torch.allclose(plain, sample_clip(network, given["x"], text, cameras, image, null, 3.0, sigmas))
