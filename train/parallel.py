"""Training on many devices: clips divided in time among ranks (context parallelism), parameters sharded over
all of them (FSDP2).

The world is data parallel x context. Ranks that share a clip are neighbours in number, and each holds a
contiguous segment of whole chunks. What crosses a segment's border is small: two recurrent states per head,
three frames of the key convolution, one of the feed-forward's; only softmax blocks gather the keys and values
of the whole clip.

The published trainer pads clips to a multiple of the ranks and masks the padding. Here segments may differ in
length by a chunk, so that a border always lies between two chunks and no frame is computed that does not
exist: 121 frames are 61 and 60, on four ranks 31, 30, 30, 30.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from sana_wm_env.model.network.execution import chunk_sizes
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.tree import map_tensors
from sana_wm_env.settings import check_settings

from .processes import rank, world_size

Value = TypeVar("Value")


@dataclass(frozen=True)
class ParallelConfig:
    """Distribution of a training over processes, and what saves memory.

    Attributes:
        context: ranks that share a clip, each holding a segment of its frames; the number of processes is a
            multiple.
        shard: keep parameters, gradients and optimiser state in shards over all ranks (FSDP2, one unit per
            block).
        bf16: with shard, compute in bfloat16; shards, gradient sums and the optimiser stay in float32.
        recompute: keep only the inputs of blocks for the backward pass and run the blocks again there.
        timeout_s: seconds that a step may wait for another process before the run stops.
    """

    context: int = 1
    shard: bool = False
    bf16: bool = False
    recompute: bool = False
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        check_settings(self, context="[1, inf)", timeout_s="(0, inf)")
        if self.bf16 and not self.shard:
            raise ValueError(
                "--bf16 needs --shard, which keeps the float32 parameters that the optimiser works on"
            )


# ---- parameters


def distribute(model: nn.Module, config: ParallelConfig, device: str) -> None:
    """Prepares the transformers inside a model, in place: recomputation in their blocks, and sharding over
    all ranks.

    ValueError where there is nothing to shard, or only one process.
    """
    networks = [module for module in model.modules() if isinstance(module, Transformer)]
    for block in (block for network in networks for block in network.blocks):
        block.recompute = config.recompute
    if not config.shard:
        return
    if not networks or not dist.is_initialized():
        missing = "several processes; start it with torchrun" if networks else "a stage of the transformer"
        raise ValueError(f"--shard is for {missing}")
    mesh = init_device_mesh(torch.device(device).type, (world_size(),))
    # inputs are not cast: timesteps would lose their last digits and poses their metres
    precision = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if config.bf16
        else MixedPrecisionPolicy()
    )
    for network in networks:
        for block in network.blocks:
            fully_shard(block, mesh=mesh, mp_policy=precision)
            _gather_for(block, "text_context", "ray_context")
        fully_shard(network, mesh=mesh, mp_policy=precision)
        _gather_for(network, "text_context", "camera_context", "stream", "commit")


def _gather_for(module: nn.Module, *methods: str) -> None:
    """Methods besides `forward` that need the module's parameters in one piece."""
    for method in methods:
        register_fsdp_forward_method(module, method)


# ---- time


def segment_borders(frames: int, chunk: int, ranks: int) -> tuple[int, ...]:
    """Borders (ranks + 1) of the segments of whole chunks that a clip of `frames` latent frames is divided
    into.

    ValueError if there are fewer chunks than ranks.
    """
    sizes = chunk_sizes(frames, chunk)
    if len(sizes) < ranks:
        least = chunk * ranks + 1
        raise ValueError(
            f"{frames} latent frames are {len(sizes)} chunks, too few for {ranks} ranks; give at least "
            f"{least} frames"
        )
    starts = [0, *accumulate(sizes)]
    most, more = divmod(len(sizes), ranks)
    return tuple(starts[most * r + min(r, more)] for r in range(ranks + 1))


@cache
def context_group(ranks: int) -> "ContextGroup | None":
    """Makes the group of ranks that share clips with this one; None for one. All processes have to call.
    ValueError if they do not divide evenly.
    """
    if world_size() % ranks:
        raise ValueError(
            f"{world_size()} processes do not divide into groups of {ranks} that share a clip; start a "
            "multiple with torchrun"
        )
    return ContextGroup(dist.new_subgroups(ranks)[0]) if ranks > 1 else None


class ContextGroup:
    """The ranks of a process group, which hold the segments of a clip in the order of their numbers."""

    def __init__(self, group: Any):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def leaders(self, value: Value) -> Value:
        """Broadcasts the first rank's value, a tensor or a dataclass or tuple of tensors."""

        def broadcast(tensor: Tensor) -> Tensor:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, group=self.group, group_src=0)
            return tensor

        return map_tensors(broadcast, value)

    def segment(self, frames: int, chunk: int) -> "RankSegment":
        """This rank's part of a clip of `frames` latent frames."""
        return RankSegment(self, segment_borders(frames, chunk, self.size))


class RankSegment:
    """One rank's segment of a clip: `sana_wm_env.model.network.execution.Segment` over torch.distributed."""

    local: slice
    """The frames of the clip that this rank holds."""

    def __init__(self, context: ContextGroup, borders: Sequence[int]):
        self.context, self.borders = context, tuple(borders)
        self.first, stop = borders[context.rank : context.rank + 2]
        self.local = slice(self.first, stop)
        self.frames = borders[-1]

    def carry(self, state: Tensor, product: Tensor, reverse: bool) -> Tensor:
        """See Segment."""
        return _Carry.apply(state, product, self.context, reverse)

    def halo(self, x: Tensor, count: int, ahead: bool) -> tuple[Tensor, Tensor | None]:
        """See Segment."""
        before, after = _Halo.apply(x, count, count if ahead else 0, self.context)
        return before, after if ahead else None

    def gather(self, x: Tensor) -> Tensor:
        """See Segment."""
        return _Gather.apply(x, self.borders, self.context)


class _Carry(torch.autograd.Function):
    """The states S_r before every rank r: S_{r+1} = S_r P_r + H_r from S_0 = 0. The adjoint runs backward,
    G_r = g_r + G_{r+1} P_r^T.

    Every rank takes part in every call, the first one too, which is what keeps the order of messages equal in
    the backward pass.
    """

    @staticmethod
    def forward(ctx, state: Tensor, product: Tensor, context: ContextGroup, reverse: bool) -> Tensor:
        ctx.context, ctx.rank = context, context.size - 1 - context.rank if reverse else context.rank
        ctx.order = -1 if reverse else 1
        rows = state.shape[-2]
        maps = _all(torch.cat([state, product], -2), context)[:: ctx.order]  # (B, h, R + D, D) of every rank
        before = [torch.zeros_like(state)]
        for affine in maps[:-1]:
            before.append(before[-1] @ affine[..., rows:, :] + affine[..., :rows, :])
        ctx.save_for_backward(before[ctx.rank], *(affine[..., rows:, :] for affine in maps))
        return before[ctx.rank].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        before, *products = ctx.saved_tensors
        gradients = _all(gradient, ctx.context)[:: ctx.order]
        later = torch.zeros_like(gradient)  # G_{r+1} of the own rank r in the end
        for r in range(ctx.context.size - 1, ctx.rank, -1):
            later = gradients[r] + later @ products[r].mT
        return later, before.mT @ later, None, None


class _Halo(torch.autograd.Function):
    """Frames next to the own: the last `before` of the left neighbour, the first `after` of the right one."""

    @staticmethod
    def forward(ctx, x: Tensor, before: int, after: int, context: ContextGroup) -> tuple[Tensor, Tensor]:
        ctx.context, ctx.shape = context, x.shape
        return _exchange(x[:, :after], x[:, x.shape[1] - before :], before, after, context)

    @staticmethod
    @once_differentiable
    def backward(ctx, from_left: Tensor, from_right: Tensor):
        before, after = from_left.shape[1], from_right.shape[1]
        # what had come from the left belongs to the left neighbour's end, and the other way round
        begin, end = _exchange(from_left, from_right, after, before, ctx.context)
        gradient = from_left.new_zeros(ctx.shape)
        gradient[:, :after] += begin
        gradient[:, ctx.shape[1] - before :] += end
        return gradient, None, None, None


class _Gather(torch.autograd.Function):
    """The segments of all ranks end to end. The gradient of the whole is summed over the ranks, each keeps
    its own frames' part.
    """

    @staticmethod
    def forward(ctx, x: Tensor, borders: tuple[int, ...], context: ContextGroup) -> Tensor:
        ctx.context, ctx.borders = context, borders
        sizes = [b - a for a, b in pairwise(borders)]
        padded = x.new_zeros(x.shape[0], max(sizes), *x.shape[2:])
        padded[:, : x.shape[1]] = x
        return torch.cat([part[:, :size] for part, size in zip(_all(padded, context), sizes, strict=True)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.context.group)
        first, stop = ctx.borders[ctx.context.rank : ctx.context.rank + 2]
        return total[:, first:stop], None, None


def _all(x: Tensor, context: ContextGroup) -> list[Tensor]:
    """The x of every rank."""
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(context.size)]
    dist.all_gather(parts, x, group=context.group)
    return parts


def _exchange(
    to_left: Tensor, to_right: Tensor, before: int, after: int, context: ContextGroup
) -> tuple[Tensor, Tensor]:
    """Sends frames (B, n, ...) to both neighbours and returns the `before` from the left and `after` from the
    right, zeros at the ends.
    """
    shape = to_left.shape[2:]
    from_left, from_right = (to_left.new_zeros(to_left.shape[0], count, *shape) for count in (before, after))
    calls = []
    for peer, sent, received in (
        (context.rank - 1, to_left, from_left),
        (context.rank + 1, to_right, from_right),
    ):
        if 0 <= peer < context.size:
            calls += (
                [dist.P2POp(dist.isend, sent.contiguous(), group=context.group, group_peer=peer)]
                if sent.numel()
                else []
            )
            calls += (
                [dist.P2POp(dist.irecv, received, group=context.group, group_peer=peer)]
                if received.numel()
                else []
            )
    for work in dist.batch_isend_irecv(calls) if calls else ():
        work.wait()
    return from_left, from_right


def data_rank(config: ParallelConfig) -> int:
    """Index of this process's share of a batch; ranks that share a clip have the same one."""
    return rank() // config.context
