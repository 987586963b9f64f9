"""Every compiled operation against the plain function that it must equal, forward and gradient, at both
dtypes.
"""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from sana_wm_env.model.kernels import linear
from sana_wm_env.model.kernels.operations import PLAIN, Linear
from sana_wm_env.model.kernels.select import select_operations
from sana_wm_env.model.network.execution import Execution
from sana_wm_env.native import find_compiler

B, T, GRID, H, D = 2, 4, (3, 5), 2, 48
S, C, E = GRID[0] * GRID[1], H * D, 4 * D
CPU = torch.device("cpu")
FAST = select_operations(C, D, E // 2, CPU, torch.float32)
compiled = pytest.mark.skipif(not find_compiler(), reason="no C++ compiler")
SPANS = {"one": ((0, 4),), "chunks": ((0, 2), (2, 4)), "frames": ((0, 1), (1, 3), (3, 4))}


def draw(*shape: int, seed: int = 0, like: float = 1.0) -> Tensor:
    return like * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def table(width: int, seed: int = 9) -> Tensor:
    angles = draw(B, T, S, width // 2, seed=seed)
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cosine, cosine], -1), torch.stack([-sine, sine], -1)], -3).flatten(-2)


def keys(seed: int) -> Tensor:
    return draw(B, T, S, H, D, seed=seed, like=(D * S) ** -0.5).relu()


CASES = {
    "linear": (
        lambda ops, x, w, b: ops.linear(x, w, b),
        (draw(B, T, S, C), draw(E, C, seed=1), draw(E, seed=2)),
    ),
    "pack": (
        lambda ops, x, w, b: ops.linear(x, ops.pack(w) if not w.requires_grad else w, b),
        (draw(B, T, S, C), draw(E, C), draw(E)),
    ),
    "linear without bias": (lambda ops, x, w: ops.linear(x, w), (draw(B, T, S, C), draw(E, C, seed=1))),
    "linear of columns": (
        lambda ops, x, w, b: ops.linear(x.chunk(2, -1)[1], w, b),
        (draw(B, T, S, 2 * C), draw(4, C, seed=1), draw(4, seed=2)),
    ),
    "silu_linear": (
        lambda ops, x, w, b: ops.silu_linear(x, w, b),
        (draw(B, T, S, C), draw(E, C, seed=1, like=0.1), draw(E, seed=2)),
    ),
    "linear_onto": (
        lambda ops, y, x, w, b: ops.linear_onto(y, x, w, b),
        (draw(B, T, S, E, seed=3), draw(B, T, S, C), draw(E, C), draw(E)),
    ),
    "rms_norm": (lambda ops, x, w: ops.rms_norm(x, w, 1e-5), (draw(B, T, S, C), draw(C, seed=1))),
    "rms_norm, relu, scale": (
        lambda ops, x, w: ops.rms_norm(x, w, 1e-5, True, 0.3),
        (draw(B, T, S, C), draw(C, seed=1)),
    ),
    "rms_norm of a chunk": (
        lambda ops, x, w: ops.rms_norm(x.chunk(3, -1)[1], w, 1e-5, True),
        (draw(B, T, S, 3 * C), draw(C, seed=1)),
    ),
    "modulate": (
        lambda ops, x, rows: ops.modulate(x, *rows.unbind(2)),
        (draw(B, T, S, C), draw(B, T, 2, 1, C, seed=1)),
    ),
    "modulate, rows apart": (
        lambda ops, x, a, b: ops.modulate(x, a, b),
        (draw(B, T, S, C), draw(B, T, 1, C, seed=1), draw(B, T, 1, C, seed=2)),
    ),
    "gated_sum": (
        lambda ops, *x: ops.gated_sum(*x),
        (draw(B, T, S, C), draw(B, T, S, C, seed=1), draw(B, T, S, C, seed=2)),
    ),
    "gated_sum of a chunk": (
        lambda ops, g, a, b: ops.gated_sum(g.chunk(3, -1)[1], a, b),
        (draw(B, T, S, 3 * C), draw(B, T, S, C, seed=1), draw(B, T, S, C, seed=2)),
    ),
    "gated_mix": (
        lambda ops, x, w, b: ops.gated_mix(x, GRID, w, b),
        (draw(B, T, S, E), draw(E, 1, 3, 3, seed=1), draw(E, seed=2)),
    ),
    "rotate": (lambda ops, x: ops.rotate(x, table(D)), (draw(B, T, S, H, D),)),
    "rotate back": (lambda ops, x: ops.rotate(x, table(D), -1.0), (draw(B, T, S, H, D),)),
    "move": (lambda ops, x: ops.move(x, draw(B, T, S, 4, 4, seed=3), table(D // 2)), (draw(B, T, S, H, D),)),
    "move of a chunk": (
        lambda ops, x: ops.move(
            x.chunk(3, -1)[2].unflatten(-1, (H, D)), draw(B, T, S, 4, 4, seed=3).mT, table(D // 2), -1.0
        ),
        (draw(B, T, S, 3 * C),),
    ),
    "mean_growth": (lambda ops, a, b: ops.mean_growth(a, b), (keys(1), keys(2))),
    "attend": (
        lambda ops, q, k, v: ops.attend(q, [k], [v], 0.2),
        (draw(B, 37, H, D), draw(B, H, 21, D, seed=1), draw(B, H, 21, D, seed=2)),
    ),
    "attend, two pieces": (
        lambda ops, q, *kv: ops.attend(q, kv[:2], kv[2:], 0.2),
        (draw(B, 101, H, D), *(draw(B, H, n, D, seed=n + i) for i in (0, 1) for n in (21, 8))),
    ),
    "attend, masked": (
        lambda ops, q, k, v: ops.attend(
            q, [k], [v], 0.2, torch.arange(21)[None, None, None] < torch.tensor([3, 21])[:, None, None, None]
        ),
        (draw(B, 37, H, D), draw(B, H, 21, D, seed=1), draw(B, H, 21, D, seed=2)),
    ),
    "attend, large scores": (
        lambda ops, q, k, v: ops.attend(q, [k.transpose(1, 2)], [v.transpose(1, 2)], 3.0),
        (draw(B, 37, H, D), draw(B, 21, H, D, seed=1), draw(B, 21, H, D, seed=2)),
    ),
}
for name, spans in SPANS.items():
    for sides in ("none", "past", "both"):
        CASES[f"short_conv, {name}, {sides}"] = (
            lambda ops, x, w, p, f, spans=spans, sides=sides: ops.short_conv(
                x.chunk(3, -1)[1], w, spans, None if sides == "none" else p, f if sides == "both" else None
            ),
            (draw(B, T, S, 3 * C), draw(C, 1, 4, seed=1), draw(B, 3, S, C, seed=2), draw(B, 3, S, C, seed=3)),
        )
    for carried in (False, True):
        for turned in (False, True):
            CASES[f"delta_rule, {name}, {carried=}, {turned=}"] = (
                lambda ops, q, k, v, beta, g, m, z, spans=spans, carried=carried, turned=turned: torch.cat(
                    [
                        part.flatten()
                        for part in ops.delta_rule(
                            q, k, v.chunk(3, -1)[1].unflatten(-1, (H, D)), beta, g,
                            table(D) if turned else None, Execution(spans),
                            *((m, z if turned else None) if carried else (None, None)),
                        )
                        if part is not None
                    ]
                ),
                (
                    keys(1) + 0.01, keys(2), draw(B, T, S, 3 * C, seed=3), draw(B, T, S, H, seed=4).sigmoid(),
                    draw(B, T, H, seed=5).sigmoid(), draw(B, H, D, D, seed=6), draw(B, H, D, seed=7).abs(),
                ),
            )  # fmt: skip


def outcome(
    ops, name: str, dtype: torch.dtype, gradient: bool, plain_dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The result of an operation, or its gradients for a gradient that is drawn."""
    function, inputs = CASES[name]
    inputs = [x.to(dtype).to(plain_dtype or dtype).detach().requires_grad_(gradient) for x in inputs]
    with torch.set_grad_enabled(gradient):
        out = function(ops, *inputs)
    if not gradient:
        return [out]
    return [
        g
        for g in torch.autograd.grad(out, inputs, draw(*out.shape, seed=8).to(out.dtype), allow_unused=True)
        if g is not None
    ]


@compiled
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_operations_equal_plain_ones(name, dtype, gradient):
    """The reference is the plain function in float64, at the same inputs."""
    ops = (
        replace(
            FAST,
            pack=linear.pack,
            linear=linear.linear,
            silu_linear=linear.silu_linear,
            linear_onto=linear.linear_onto,
        )
        if linear.has_onednn()
        else FAST
    )
    found = outcome(ops, name, dtype, gradient)
    wanted = outcome(PLAIN, name, dtype, gradient, torch.float64)
    assert len(found) == len(wanted)
    for ours, exact in zip(found, wanted, strict=True):
        bound = (2e-5 if dtype == torch.float32 else 2e-2) * exact.abs().max().clamp(min=1e-3)
        assert ours.isfinite().all() and (ours.double() - exact).abs().max() <= bound


@compiled
def test_heads_of_any_legal_size_have_compiled_operations():
    """24 is no multiple of the widest vectors: narrower ones are compiled for it."""
    x, angles = draw(B, T, S, 2, 24), table(24)
    ours = select_operations(48, 24, 96, CPU, torch.float32)
    assert ours.rotate is not PLAIN.rotate and torch.allclose(
        ours.rotate(x, angles), PLAIN.rotate(x, angles), atol=1e-6
    )


def test_a_packed_weight_is_used_as_long_as_it_is_what_it_was():
    layer = Linear(48, 96).requires_grad_(False)
    layer.ops = replace(PLAIN, pack=lambda weight: weight + 1)
    layer.pack()
    assert torch.equal(layer.matrix, layer.weight + 1)
    layer.weight.mul_(2)
    assert torch.equal(layer.matrix, layer.weight)
    layer.pack()
    layer.to(torch.float64)
    assert torch.equal(layer.matrix, layer.weight)


@compiled
def test_every_operation_has_a_compiled_form_and_a_case():
    assert [
        f.name
        for f in fields(FAST)
        if getattr(FAST, f.name) is getattr(PLAIN, f.name) and f.name != "pack" and "linear" not in f.name
    ] == []
    assert {f.name for f in fields(PLAIN)} == {name.split(",")[0].split()[0] for name in CASES}


def test_large_and_odd_networks_and_other_dtypes_take_the_plain_functions():
    assert select_operations(2240, 112, 6720, CPU, torch.float32).rms_norm is PLAIN.rms_norm
    assert select_operations(36, 18, 36, CPU, torch.float32).move is PLAIN.move
    assert select_operations(C, D, E, CPU, torch.float64) is PLAIN
    assert select_operations(C, D, E, torch.device("cuda"), torch.float32) is PLAIN
