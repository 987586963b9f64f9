"""Muon for the matrices, AdamW for the rest: on two cores the number of steps is what is scarce. Or AdamW for
all, as published.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sana_wm_env.settings import check_choice, check_settings

from .precision import compute_dtype
from .processes import rank, world_size


@dataclass(frozen=True)
class OptimConfig:
    """Rates and what goes with them. `PUBLISHED` has the values of the released recipe.

    Attributes:
        method: "muon" for matrices by Muon and the rest by AdamW, "adamw" for everything by AdamW.
        lr: peak rate of Muon.
        adam_lr: peak rate of AdamW.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of Muon.
        weight_decay: of matrices by Muon; of everything by "adamw".
        warmup: steps of linear rise.
        decay: last share of the run, in which the rates fall linearly to zero.
        clip: largest gradient norm.
    """

    method: Literal["muon", "adamw"] = "muon"
    lr: float = 3e-3
    adam_lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.01
    warmup: int = 50
    decay: float = 0.4
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_choice("--method", self.method, ("muon", "adamw"))
        check_settings(
            self,
            lr="[0, inf)",
            adam_lr="[0, inf)",
            betas="[0, 1)",
            eps="(0, inf)",
            momentum="[0, 1)",
            weight_decay="[0, inf)",
            warmup="[0, inf)",
            decay="[0, 1]",
            clip="(0, inf)",
        )


PUBLISHED = OptimConfig(
    method="adamw",
    adam_lr=1e-5,
    betas=(0.9, 0.999),
    eps=1e-10,
    weight_decay=0.0,
    warmup=0,
    decay=0.0,
    clip=0.5,
)  # the stages at minute length, paper table 7 and the released configs


def schedule(step: int, done: float, config: OptimConfig) -> float:
    """Share of the peak rate at a step, when `done` of the run (0 to 1) is over: linear rise, flat, linear
    fall over the last `decay`.
    """
    rise = (step + 1) / max(config.warmup, 1)
    fall = (1 - done) / config.decay if config.decay else 1.0
    return max(0.0, min(1.0, rise, fall))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024) and scaled like AdamW's (Liu et al. 2025:
    0.2 sqrt(longer side)).

    torch.optim.Muon takes 2-D parameters only; the network's 1x1 convolutions keep the 4-D shapes of the
    published checkpoints, so here every parameter counts as the matrix (shape[0], rest). With several
    processes each orthogonalises its share, and shares are summed.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = torch.zeros(sum(p.numel() for p in params), device=params[0].device)
            for index, (param, update) in enumerate(
                zip(params, updates.split([p.numel() for p in params]), strict=True)
            ):
                momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                momentum.lerp_(param.grad, 1 - group["momentum"])
                if index % world_size() == rank():
                    direction = param.grad.lerp(momentum, group["momentum"]).flatten(1)
                    update.copy_((orthogonalise(direction) * 0.2 * max(direction.shape) ** 0.5).flatten())
            if world_size() > 1:
                dist.all_reduce(updates)
            for param, update in zip(params, updates.split([p.numel() for p in params]), strict=True):
                param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update.view_as(param))


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest orthogonal matrix, roughly: the quintic Newton-Schulz iteration pulls all singular values
    to about 1.

    In bfloat16 where the device is faster at it, as its authors do: the iteration corrects what rounding
    spoils.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).to(compute_dtype("auto", matrix.device)).contiguous()
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def optimisers(
    model: nn.Module, config: OptimConfig, parts: dict[str, float] | None = None
) -> list[torch.optim.Optimizer]:
    """Muon over the weights that are matrices between hidden layers, AdamW over gains, biases, tables and
    depthwise filters.

    With config.method "adamw" AdamW takes all, one optimiser per part. Every group keeps its `peak` rate,
    from which schedules start.

    parts: where the model is several networks, the factor on the rates of each, by the name of the submodule.
    """
    made = []
    for part, factor in (parts or {"": 1.0}).items():
        trainable = [p for p in model.get_submodule(part).parameters() if p.requires_grad]
        adam = {"lr": factor * config.adam_lr, "betas": config.betas, "eps": config.eps}
        if config.method == "adamw":
            made.append(torch.optim.AdamW(trainable, **adam, weight_decay=config.weight_decay))
            continue
        matrices = [p for p in trainable if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16]
        taken = {id(p) for p in matrices}
        others = [p for p in trainable if id(p) not in taken]
        if matrices:
            made.append(Muon(matrices, factor * config.lr, config.momentum, config.weight_decay))
        if others:
            made.append(torch.optim.AdamW(others, **adam, weight_decay=0.0))
    for group in (group for optimiser in made for group in optimiser.param_groups):
        group["peak"] = group["lr"]
    return made
