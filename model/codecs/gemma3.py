"""Gemma-3 and the connectors of LTX-2: the text encoder of the published refiner (model/README.md section
10.3).

All 49 layers' hidden states of a prompt are normalised, projected, and read by a small transformer whose
registers fill the places that the prompt leaves. What is kept on disk is its result, 8 MB of a prompt, and
the 14 billion numbers that made it can be released.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.layouts import read_settings
from ..storage.weights import CheckpointError, WeightFiles, load
from .gemma import GemmaConfig, GemmaTextEncoder

CONNECTOR_WEIGHTS = "diffusion_pytorch_model.safetensors"


class Gemma3TextEncoder(GemmaTextEncoder):
    """Prompts to what the refiner's network reads, with the interface of `GemmaTextEncoder`.

    Args:
        model: folder of a Gemma-3 checkpoint in safetensors, as transformers writes it.
        connectors: folder of LTX-2's connectors, as diffusers writes it.
        **options: of `GemmaTextEncoder`.
    """

    called = "Gemma-3"

    def __init__(self, model: Path, connectors: Path, tokens: int = 1024, **options: Any):
        self.connectors = Path(connectors)
        width = int(read_settings(self.connectors / "config.json").get("caption_channels", 3840))
        super().__init__(GemmaConfig(width, tokens, instruction=""), model, **options)

    def others(self) -> list[Path]:
        return sorted(self.connectors.glob("*.json")) + sorted(self.connectors.glob("*.safetensors"))

    def names(self, prompt: str) -> list[Any]:
        return ["connectors", prompt.strip(), self.config.tokens]

    @torch.no_grad()
    def _run(self, prompt: str) -> tuple[Tensor, Tensor]:
        from diffusers.pipelines.ltx2.connectors import per_layer_masked_mean_norm

        tokenizer, (model, connectors) = self._load()
        words = tokenizer(
            [prompt.strip()],
            padding="max_length",
            padding_side="left",
            max_length=self.config.tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        mask = words.attention_mask
        hidden = model(
            input_ids=words.input_ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        normalised = per_layer_masked_mean_norm(torch.stack(hidden, -1), mask.sum(-1), self.device)
        projected = connectors.text_proj_in(normalised.to(self.dtype))
        hides = (mask.to(self.dtype) - 1)[:, None, None] * torch.finfo(self.dtype).max
        features, hides = connectors.video_connector(projected, hides)
        kept = hides[0, 0, 0] > -1e-6  # without registers padding stays padding
        return (features[0] * kept[:, None]).cpu().contiguous(), kept.cpu()

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            tokenizer, model = super()._load()
            self._loaded = tokenizer, (model, open_connectors(self.connectors, self.dtype, self.device))
        return self._loaded


def open_connectors(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """LTX-2's connector of pictures, `text_proj_in` and `video_connector`; that of sound is neither built nor
    read.

    Raises:
        ImportError: diffusers is not installed.
        CheckpointError: files that are missing or do not fit.
    """
    try:
        from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    except ImportError:
        raise ImportError("the refiner's connectors need diffusers: pip install 'sana-wm-env[hub]'") from None
    settings = read_settings(folder / "config.json")
    if settings.get("per_modality_projections"):
        raise CheckpointError(f"{folder} has the connectors of LTX-2.3; wanted those of LTX-2.0")
    with torch.device("meta"):
        connectors: Any = LTX2TextConnectors.from_config({"_class_name": "LTX2TextConnectors", **settings})
    del connectors.audio_connector
    files = WeightFiles(tuple(sorted(folder.glob("*.safetensors"))) or (folder / CONNECTOR_WEIGHTS,))
    load(connectors, files, dtype, device, ignored=lambda name: "audio" in name)
    return connectors.eval().requires_grad_(False)
