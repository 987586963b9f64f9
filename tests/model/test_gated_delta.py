import pytest
import torch
from tiny_networks import clip, tiny_network
from torch import Tensor

from sana_wm_env.model.network.gated_delta import last_frames, scan, short_conv, transitions
from sana_wm_env.model.network.rays import mean_growth, move, ray_matrices

B, T, S, H, D, C = 2, 7, 6, 2, 8, 16
SPANS = ((0, 4), (4, 7))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_scan(
    keys: Tensor, values: Tensor, beta: Tensor, decay: Tensor, spans, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written in the paper, one head and one frame after the other."""
    states = torch.zeros(B, T, H, D, D, dtype=torch.float64)
    last = torch.zeros(B, H, D, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):

            def advance(m: Tensor, f: int, b=b, h=h) -> Tensor:
                k, v = keys[b, f, h].T, values[b, f, h].T  # (D, S)
                w = torch.diag(beta[b, f, h])
                return m @ (decay[b, f, h] * (torch.eye(D, dtype=torch.float64) - k @ w @ k.T)) + v @ w @ k.T

            m = initial[b, h]
            for f in range(T):
                m = advance(m, f)
                states[b, f, h] += m
            last[b, h] = m
            for start, stop in spans:
                r = torch.zeros(D, D, dtype=torch.float64)
                for f in reversed(range(start, stop - 1)):
                    r = advance(r, f + 1)
                    states[b, f, h] += r
    return states, last


@pytest.mark.parametrize("spans", [((0, 7),), SPANS, tuple((i, i + 1) for i in range(7))])
def test_the_scan_equals_the_written_recurrence(spans):
    keys, values = 0.3 * normal(B, T, H, S, D), normal(B, T, H, S, D, seed=1)
    beta, decay = normal(B, T, H, S, seed=2).sigmoid(), normal(B, T, H, seed=3).sigmoid()
    initial = normal(B, H, D, D, seed=4)
    transition, weighted = transitions(keys, beta, decay)
    ours = scan(transition, values.mT @ weighted, spans, initial)
    for a, b in zip(ours, plain_scan(keys, values, beta, decay, spans, initial), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    from_zero = scan(transition, values.mT @ weighted, spans, None)
    assert torch.allclose(
        from_zero[0], scan(transition, values.mT @ weighted, spans, torch.zeros_like(initial))[0]
    )


@pytest.mark.parametrize("carried", [False, True])
def test_the_short_convolution_equals_its_formula(carried):
    x, weight = normal(B, T, S, C), normal(C, 1, 4, seed=1)
    past = normal(B, 3, S, C, seed=2) if carried else torch.zeros(B, 3, S, C, dtype=torch.float64)
    known = torch.cat([past, x], 1)
    wanted = torch.zeros_like(x)
    for start, stop in SPANS:
        for f in range(start, stop):
            for j in range(4):
                wanted[:, f] += weight[:, 0, 3 - j] * known[:, 3 + f - j]
                if j and f + j < stop:
                    wanted[:, f] += weight[:, 0, 3 - j] * x[:, f + j]
    assert torch.allclose(short_conv(x, weight, SPANS, past if carried else None), wanted, atol=1e-12)


def test_tails_reach_over_short_chunks():
    x, past = normal(1, 2, 1, 1), normal(1, 3, 1, 1, seed=1)
    assert torch.equal(last_frames(x, past), torch.cat([past[:, 2:], x], 1))
    assert torch.equal(last_frames(x, None)[:, 0], torch.zeros(1, 1, 1, dtype=torch.float64))
    assert torch.equal(last_frames(normal(1, 5, 1, 1), past), normal(1, 5, 1, 1)[:, 2:])


@pytest.mark.parametrize("metres_per_frame", [0.0, 0.3, 20.0])
@torch.no_grad()
def test_no_frame_lets_the_state_grow(metres_per_frame):
    """Every transition contracts, in the camera branch only thanks to the shrunken write strengths."""
    network, given = tiny_network(), clip(7, step_m=metres_per_frame)
    attn = network.blocks[0].attn
    attn.k_norm.weight.fill_(1)
    attn.k_norm_cam.weight.fill_(1)
    cameras = network.camera_context(given["camera"], given["plucker"])
    u = network.x_embedder(given["x"].flatten(3).permute(0, 2, 3, 1))
    beta, decay = torch.sigmoid(attn.beta_proj(u)), attn.decay(u)
    k = attn.split(attn.k_norm_cam(attn.k_proj_cam(u)).relu() * attn.key_scale(u))
    moved = move(k, cameras.rays_inv, cameras.rope_cam)
    for keys, strength in ((k, beta), (moved, beta / mean_growth(k, moved).clamp(min=1))):
        transition, _ = transitions(keys.transpose(2, 3), strength.transpose(2, 3), decay)
        assert torch.linalg.matrix_norm(transition, 2).max() <= 1 + 1e-9
    if metres_per_frame == 20.0:
        transition, _ = transitions(moved.transpose(2, 3), beta.transpose(2, 3), decay)
        assert torch.linalg.matrix_norm(transition, 2).max() > 10


@torch.no_grad()
def test_ray_transforms_cancel_and_see_only_relative_poses():
    network, given = tiny_network(), clip(4, step_m=1.0)
    cameras = network.camera_context(given["camera"], given["plucker"])
    x = normal(1, 4, 6, 2, 16)
    back = move(move(x, cameras.rays_inv, cameras.rope_cam), cameras.rays, cameras.rope_cam, -1.0)
    assert torch.allclose(back, x, atol=1e-10)
    # the same walk seen from another world frame
    elsewhere = torch.linalg.matrix_exp(
        0.3
        * torch.triu(torch.ones(4, 4, dtype=torch.float64), 1)
        * torch.tensor([[1.0, 1, 1, 1]] * 3 + [[0] * 4])
    )
    elsewhere[:3, :3] = (
        torch.linalg.qr(elsewhere[:3, :3]).Q * torch.linalg.qr(elsewhere[:3, :3]).R.diagonal().sign()
    )
    moved = given["camera"].clone()
    moved[..., :16] = (elsewhere @ given["camera"][..., :16].unflatten(-1, (4, 4))).flatten(-2)
    products = []
    for camera in (given["camera"], moved):
        rays, rays_inv = ray_matrices(camera, 2, 3)
        assert torch.allclose(rays @ rays_inv, torch.eye(4, dtype=torch.float64).expand_as(rays), atol=1e-12)
        flat = rays.flatten(1, 2)
        products.append(
            flat[:, :, None] @ rays_inv.flatten(1, 2)[:, None]
        )  # P_q P_k^-1 for all pairs of tokens
    assert torch.allclose(*products, atol=1e-10)
