"""The second stage: a refiner sharpens what stage 1 imagined, block by block, and keeps a session together
(model/README.md section 10.3).

It noises the latents of a block to a middle level and takes them back to clean in a few steps, seeing the
session's first frame and what it has made last. Stage 1 never sees the result: it goes on from its own
latents.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .network.refiner import RefinerConfig, RefinerNetwork, Rotation
from .noise import draw_noise
from .state import KeysValues, RefinerState
from .storage.weights import digest_weights

SEED = 42  # of the noise of every session, as published
FLOATS = (torch.float32, torch.bfloat16)


class Encoder(Protocol):
    """Prompts to features: `codecs.text.TextEncoder`, or `codecs.gemma3.Gemma3TextEncoder`."""

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, W) and mask (B, L) bool of B prompts."""
        ...


@dataclass(frozen=True)
class Pass:
    """A pass of the network over one block, at any level."""

    network: RefinerNetwork
    text: Tensor
    mask: Tensor
    window: Rotation
    past: tuple[KeysValues, ...] | None

    def __call__(self, latents: Tensor, sigma: float | Tensor) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """Velocity like `latents`, and what the blocks leave. sigma: one level, or (B,) of each row."""
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        return self.network(latents, levels, self.text, self.mask, self.window, self.past)


class Refiner:
    """Latents of a few frames to sharper ones. It owns weights and nothing else; what it carries is a
    `RefinerState`.
    """

    def __init__(self, network: RefinerNetwork, text_encoder: Encoder) -> None:
        self.network = network.eval().requires_grad_(False)
        self.text_encoder = text_encoder
        self.config: RefinerConfig = network.config

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.network.proj_in.weight.device

    @cached_property
    def fingerprint(self) -> str:
        """Identity: SHA-256 over settings and weights, of large tensors an even sample, of blocks the first:
        the others may not be in memory.
        """
        network, digest = self.network, hashlib.sha256(repr(self.config).encode())
        parts = (network.proj_in, network.caption_projection, network.time_embed, network.proj_out)
        return digest_weights(digest, *parts, next(iter(network.transformer_blocks))).hexdigest()

    def start(self, image_latent: Tensor, prompts: list[str]) -> RefinerState:
        """Opens one session per first latent frame (B, c, 1, H, W), clean, with its prompt."""
        return self.open(image_latent, *self.text_encoder.encode(list(prompts)))

    def open(self, image_latent: Tensor, features: Tensor, mask: Tensor) -> RefinerState:
        """`start` with prompts as the text encoder gives them, (B, L, W) and (B, L)."""
        latent, mask = image_latent.to(self.device), mask.to(self.device)
        text = self.network.read_text(features.to(self.device))
        _, sink = Pass(self.network, text, mask, self._places(0, 1, latent), None)(latent, 0.0)
        return RefinerState(
            window=sink,
            text=text,
            mask=mask,
            frames=torch.zeros(len(latent), dtype=torch.int64, device=self.device),
            generators=torch.Generator().manual_seed(SEED).get_state().repeat(len(latent), 1),
            weights=self.fingerprint,
        )

    def refine(self, latents: Tensor, state: RefinerState) -> tuple[Tensor, Callable[[], RefinerState]]:
        """Refines latents (B, c, n, H, W) of frames that follow one another, together.

        Under the streaming rule n is `config.block`; a whole clip at once is the bidirectional one.

        Returns:
            refined latents, float32, and a call that makes the next state: one more pass, which the frames do
            not wait for.
        """
        noise, generators = draw_noise(state.generators, latents.shape[1:])
        run = self.prepare_pass(state, latents)
        refined = sample(run, latents.float().to(self.device), noise.to(self.device), self.config.sigmas)
        next_state = replace(state, generators=generators)
        return refined, partial(remember, refined, run, next_state, self.config.window)

    def prepare_pass(self, state: RefinerState, like: Tensor) -> Pass:
        """What all passes over a block of latents like `like` share."""
        seen = frames_seen(state, like)
        # Only distances in time count, so places are counted from where the window begins. But the first
        # frame of a session lasts less than others do: until frames have left the window it begins with it.
        has_slid = state.frames > seen - 1
        windows = [self._places(begin, seen + like.shape[2], like) for begin in (0, 1)]
        if (has_slid == has_slid[0]).all():
            window = windows[int(has_slid[0])]
        else:
            window = Rotation(*(torch.stack(pair)[has_slid.long()] for pair in zip(*windows, strict=True)))
        return Pass(self.network, state.text, state.mask, window, state.window)

    def accept(self, state: RefinerState, grid: tuple[int, int]) -> RefinerState:
        """`state` on this refiner's device and in its dtype.

        Raises:
            ValueError: another refiner made it, or no session can be so; says what was found where.
        """
        if state.weights != self.fingerprint:
            raise ValueError(
                f"got a state of the refiner {state.weights[:12]}; this is {self.fingerprint[:12]}: open the "
                "world with the refiner that the state was saved with"
            )
        self._check(state, grid[0] * grid[1])
        dtype = self.network.proj_in.weight.dtype

        def move(t: Tensor) -> Tensor:
            return t.to(self.device, dtype if t.is_floating_point() else t.dtype)

        return replace(state.map(move), generators=state.generators.cpu())

    def _check(self, state: RefinerState, tokens: int) -> None:
        config, batch = self.config, len(state.frames)
        if len(state.window) != config.num_layers:
            raise ValueError(f"got refiner.window of {len(state.window)} blocks; wanted {config.num_layers}")
        length = state.window[0].key.shape[2] if state.window[0].key.ndim == 4 else 0
        if length % tokens or not 1 <= length // tokens <= config.window:
            raise ValueError(
                f"got refiner.window of {length} tokens; wanted {tokens} for each of 1 to {config.window} "
                "frames"
            )
        heads = (batch, config.num_attention_heads, length, config.attention_head_dim)
        for i, block in enumerate(state.window):
            for part, t in (("key", block.key), ("value", block.value)):
                if t.shape != heads or t.dtype not in FLOATS:
                    found = f"{t.dtype} {tuple(t.shape)}"
                    raise ValueError(f"got refiner.window.{i}.{part} of {found}; wanted floats of {heads}")
        words = state.text.shape
        if len(words) != 3 or words[2] != config.width or state.mask.shape != words[:2]:
            raise ValueError(
                f"got refiner.text of {tuple(words)} with a mask of {tuple(state.mask.shape)}; wanted "
                f"(B, L, {config.width}) and (B, L)"
            )
        if state.mask.dtype != torch.bool or state.frames.dtype != torch.int64:
            raise ValueError(f"got refiner.mask of {state.mask.dtype}, frames of {state.frames.dtype}")
        if (state.frames < length // tokens - 1).any():
            raise ValueError(
                f"got refiner.frames {state.frames.tolist()}; wanted as many as its window holds"
            )

    def _places(self, begin: int, frames: int, like: Tensor) -> Rotation:
        height, width = like.shape[-2:]
        return self.network.rotate_to(range(begin, begin + frames), (height, width), self.device)


def sample(run: Pass, latents: Tensor, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Stage 1's latents, noised to the first level, back to clean in one Euler step per level."""
    x = torch.lerp(latents, noise, sigmas[0])
    for sigma, lower in pairwise(sigmas):
        velocity, _ = run(x, sigma)
        x = torch.lerp(x - sigma * velocity, x, lower / sigma)
    return x


def remember(refined: Tensor, run: Pass, state: RefinerState, size: int) -> RefinerState:
    """The state with the newest frames at the end of its window of `size` frames: one pass over them, clean.
    The sink stays.
    """
    _, left = run(refined, 0.0)
    sink, newest = _tokens(refined), (size - 1) * _tokens(refined)

    def slide(old: Tensor, new: Tensor) -> Tensor:
        recent = torch.cat([old[:, :, sink:], new], 2)
        return torch.cat([old[:, :, :sink], recent[:, :, max(0, recent.shape[2] - newest) :]], 2)

    window = tuple(
        KeysValues(slide(old.key, new.key), slide(old.value, new.value))
        for old, new in zip(state.window, left, strict=True)
    )
    return replace(state, window=window, frames=state.frames + refined.shape[2])


def frames_seen(state: RefinerState, like: Tensor) -> int:
    """Latent frames in a window, the sink among them."""
    return state.window[0].key.shape[2] // _tokens(like)


def forget(state: RefinerState, like: Tensor) -> RefinerState:
    """The state of a session that has gone on without being refined: the sink is left."""
    sink = tuple(block.map(lambda t: t[:, :, : _tokens(like)]) for block in state.window)
    return replace(state, window=sink, frames=torch.zeros_like(state.frames))


def _tokens(latents: Tensor) -> int:
    return latents.shape[-2] * latents.shape[-1]
