"""Moving the origin of time of a carried state: exact, because rotary positions reach q.k and the output only
as differences.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..state import AttentionState, DeltaState, TransformerState, WindowEntry
from .rope import camera_angles, rope_angles, rope_table, rotate


def shift_time(state: TransformerState, frames: int | Tensor) -> TransformerState:
    """The same session with its latent frame `frames` counted as frame 0; what it goes on to imagine does not
    change.

    Turned back are the keys of the main branch, cached ones and the key side of the matrices, and in the
    camera branch the second halves of keys and values. The normaliser is built of keys that were never
    turned.

    Args:
        state: any batch; unchanged afterwards.
        frames: one number or (B,) int64. Negative numbers move the origin back.
    """
    device = state.next_frame.device
    origin = torch.as_tensor(frames, dtype=torch.int64, device=device).expand(len(state.next_frame))
    shifted = tuple(replace(block, attention=_turned(block.attention, -origin)) for block in state.blocks)
    return TransformerState(shifted, state.next_frame - origin)


def _turned(attention: AttentionState, by: Tensor) -> AttentionState:
    """The attention state of blocks whose positions move by `by` (B,) frames."""
    if isinstance(attention, DeltaState):
        main, camera = _tables(by, attention.matrix)
        turned_keys = _turn_half(attention.camera_matrix, camera)  # (B, h, V rows, K columns)
        return replace(
            attention,
            matrix=rotate(attention.matrix, main),
            camera_matrix=_turn_half(turned_keys.mT.contiguous(), camera).mT.contiguous(),
        )
    entries = []
    for entry in attention.entries:
        main, camera = _tables(by, entry.key)
        turned = (
            rotate(entry.key, main),
            entry.value,
            _turn_half(entry.camera_key, camera),
            _turn_half(entry.camera_value, camera),
        )
        entries.append(WindowEntry(*turned))
    return replace(attention, entries=tuple(entries))


def _tables(by: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary tables (B, 1, 1, D/2) of a head and (B, 1, 1, D/4) of a camera head's half, for vectors like (B,
    h, N, D).
    """
    head_dim = like.shape[-1]
    angles = rope_angles(by, 1, 1, 1, head_dim)  # (B, 1, 1, D/2): row 0 and column 0 do not turn
    precise = torch.promote_types(like.dtype, torch.float32)
    main, camera = (rope_table(table, precise)[:, 0] for table in (angles, camera_angles(angles, head_dim)))
    return main, camera


def _turn_half(x: Tensor, table: Tensor) -> Tensor:
    still, turning = x.chunk(2, -1)
    return torch.cat([still, rotate(turning.contiguous(), table)], -1)
