"""The bundled text encoder: frozen, tiny, and open to every word.

A word's vector is drawn from a generator seeded with the word's hash, so there is no vocabulary and no weight
file; a sinusoid marks the place in the sentence, which is what tells "a red box, a blue pillar" from its
reverse. The transformer's own projection learns the rest.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.settings import check_settings


@dataclass(frozen=True)
class TextEncoderConfig:
    """width: features per token; tokens: places per prompt, the first of which opens every prompt."""

    width: int = 64
    tokens: int = 32

    def __post_init__(self) -> None:
        check_settings(self, width="[2, 65536]", tokens="[1, 65536]")


class TextEncoder:
    """Prompts to token features. Stateless and deterministic on every platform."""

    def __init__(self, config: TextEncoderConfig):
        self.config = config
        place, rate = np.arange(config.tokens)[:, None], np.arange(config.width // 2)
        angle = place / 50 ** (2 * rate / config.width)
        self._places = torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32))

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> features (B, L, W) float32 and mask (B, L) bool, True where there is a token. Words
        beyond the L - 1st are dropped.

        An empty prompt is the opening token alone; training drops prompts to it, so it stands for "no
        caption".
        """
        features = torch.zeros(
            len(prompts), self.config.tokens, self.config.width, dtype=torch.float32, device="cpu"
        )
        mask = torch.zeros(len(prompts), self.config.tokens, dtype=torch.bool, device="cpu")
        for row, prompt in enumerate(prompts):
            words = ["<prompt>", *re.findall(r"\w+", prompt.lower())][: self.config.tokens]
            vectors = torch.from_numpy(np.stack([_vector(word, self.config.width) for word in words]))
            features[row, : len(words)] = vectors + self._places[: len(words)]
            mask[row, : len(words)] = True
        return features, mask


@lru_cache(maxsize=65536)
def _vector(word: str, width: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)
