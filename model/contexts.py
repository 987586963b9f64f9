"""Inputs of a pass of the network beside latents and state, computed once per prompt and once per chunk.

Letters: B batch, T latent frames, S tokens per latent frame, L text tokens, h heads, D head size, C width.
"""

from dataclasses import dataclass

from torch import Tensor

from .tree import Mappable


@dataclass(frozen=True)
class TextContext(Mappable):
    """A prompt as cross-attention reads it, computed once: per block K and V (B, h, L, D), and mask (B, 1, 1,
    L) bool.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


@dataclass(frozen=True)
class CameraContext(Mappable):
    """Everything that depends on cameras and positions only, computed once per chunk.

    rays       (B, T, S, 4, 4)    world to ray frame, P
    rays_mT    (B, T, S, 4, 4)    its transpose
    rays_inv   (B, T, S, 4, 4)    P^-1
    rope       (B, T, S, 2, D)    rotary table of a head, see `rope.rope_table`
    rope_cam   (B, T, S, 2, D/2)  rotary table of a camera head's second half
    plucker    per block (B, T, S, C)
    grid       (H, W) of the latent
    """

    rays: Tensor
    rays_mT: Tensor
    rays_inv: Tensor
    rope: Tensor
    rope_cam: Tensor
    plucker: tuple[Tensor, ...]
    grid: tuple[int, int]
