"""The delta rule against flash-linear-attention's own reference.

Runs on a CPU and without triton: pip install --no-deps flash-linear-attention==0.6.0 fla-core==0.6.0, and
einops.
"""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from torch import Tensor

from sana_wm_env.model.network.gated_delta import scan, transitions

pytest.importorskip("einops")
B, H, D, VALUES = 2, 3, 16, 24


@pytest.fixture(scope="module")
def naive():
    """fla/ops/gated_delta_rule/naive.py alone: the packages around it import triton."""
    try:
        file = distribution("fla-core").locate_file("fla/ops/gated_delta_rule/naive.py")
    except PackageNotFoundError:
        pytest.skip("flash-linear-attention is not installed")
    spec = spec_from_file_location("fla_naive", str(file))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ours(
    q: Tensor, keys: Tensor, values: Tensor, beta: Tensor, decay: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries (B, T, h, S, D), keys likewise, values (B, T, h, S, V) -> read-outs (B, T, h, S, V), state (B,
    h, V, D). No normaliser.
    """
    transition, weighted = transitions(keys, beta, decay)
    spans = tuple(
        (frame, frame + 1) for frame in range(keys.shape[1])
    )  # a frame sees itself and the past, as a token does there
    states, last = scan(transition, values.mT @ weighted, spans, initial)
    return q @ states.mT, last


@pytest.mark.parametrize("rule", ["naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"])
def test_one_token_per_frame_is_their_rule(naive, rule):
    frames = 70  # more than one of their chunks of 64
    q = rows(B, frames, H, 1, D, seed=0)
    keys = torch.nn.functional.normalize(rows(B, frames, H, 1, D, seed=1), dim=-1)
    values, initial = rows(B, frames, H, 1, VALUES, seed=2), rows(B, H, VALUES, D, seed=3)
    beta, decay = rows(B, frames, H, 1, seed=4).sigmoid(), rows(B, frames, H, seed=5).sigmoid()
    read, last = ours(q, keys, values, beta, decay, initial)
    # theirs: (B, T, H, D), the logarithm of the decay, a state of (K, V), queries scaled
    token = {
        "q": q[:, :, :, 0],
        "k": keys[:, :, :, 0],
        "v": values[:, :, :, 0],
        "beta": beta[..., 0],
        "g": decay.log(),
    }
    given = {"scale": 1.0, "initial_state": initial.mT.contiguous(), "output_final_state": True}
    reference, state = getattr(naive, rule)(**token, **given)
    assert torch.allclose(read[:, :, :, 0], reference, atol=2e-5) and torch.allclose(
        last.mT, state, atol=2e-5
    )
    assert reference.std() > 0.5


@pytest.mark.parametrize("orthogonal", [True, False])
def test_frames_of_several_tokens_are_theirs_only_where_keys_do_not_meet(naive, orthogonal):
    """Theirs writes token after token. That is writing a frame at once if its keys are orthogonal, which keys
    of a picture are not.
    """
    frames, tokens = 5, 4
    keys = (
        torch.linalg.qr(rows(B, frames, H, D, tokens, seed=1)).Q.mT
        if orthogonal
        else 0.5 * rows(B, frames, H, tokens, D, seed=1)
    )
    q, values = rows(B, frames, H, tokens, D, seed=0), rows(B, frames, H, tokens, VALUES, seed=2)
    beta, decay = rows(B, frames, H, tokens, seed=4).sigmoid(), rows(B, frames, H, seed=5).sigmoid()
    initial = rows(B, H, VALUES, D, seed=3)
    _, last = ours(q, keys, values, beta, decay, initial)
    once = torch.nn.functional.pad(
        decay.log()[..., None], (0, tokens - 1)
    )  # a frame fades the state once, not once per token
    token = {
        name: x.transpose(2, 3).flatten(1, 2)
        for name, x in {"q": q, "k": keys, "v": values, "beta": beta, "g": once}.items()
    }
    _, state = naive.naive_recurrent_gated_delta_rule(
        **token, scale=1.0, initial_state=initial.mT.contiguous(), output_final_state=True
    )
    assert torch.allclose(last.mT, state, atol=2e-5) == orthogonal
