"""Gemma-2 as the text encoder of the published worlds (model/README.md section 10.2).

The decoder stack of Gemma-2-2b-it reads an instruction and the prompt; the transformer sees the last hidden
states of the prompt alone. It is needed at a reset only and is twice the size of everything else there, so
features are kept on disk and the model can be released.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sana_wm_env.files import write_whole

from ..storage.weights import CheckpointError

SAMPLES, SAMPLE_BYTES = 64, 4096  # of a weight file, for the fingerprint


@dataclass(frozen=True)
class GemmaConfig:
    """width: features per token, the hidden size of the model; tokens: places per prompt; instruction: what
    stands before every prompt, None for the official text.
    """

    width: int = 2304
    tokens: int = 300
    instruction: str | None = None


class GemmaTextEncoder:
    """Prompts to token features, with the interface of `codecs.text.TextEncoder`. No weight is read before a
    prompt needs it.

    Args:
        config: sizes and instruction.
        model: folder of a Gemma-2 checkpoint in safetensors, as transformers writes it.
        tokenizer: folder of its tokenizer; None if that is the same.
        device: where it runs.
        dtype: of weights and features.
        cache: folder for features, one file per prompt; None for SANA_WM_CACHE, or ~/.cache/sana-wm.
        keep: whether the model stays in memory after a call, see `release`.
    """

    called = "Gemma-2"

    def __init__(
        self,
        config: GemmaConfig,
        model: Path,
        tokenizer: Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        cache: Path | None = None,
        keep: bool = True,
    ):
        self.config, self.model, self.tokenizer = config, Path(model), Path(tokenizer or model)
        self.device, self.dtype, self.keep = torch.device(device), dtype, keep
        self.cache = Path(cache) if cache is not None else default_cache()
        self._loaded: tuple[Any, Any] | None = None

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> features (B, L, W) of the encoder's dtype and mask (B, L) bool, True where there is a
        token; both on the CPU.

        An empty prompt is the null prompt of guidance: the opening token alone, without the instruction.
        Prompts are encoded one by one, so that a prompt's features depend on no other.

        Raises:
            ImportError: transformers is not installed, and a prompt is new.
            CheckpointError: the model does not fit the configuration, or cannot be read.
        """
        rows = [self._encode_one(prompt) for prompt in prompts]
        if not self.keep:
            self.release()
        return torch.stack([features for features, _ in rows]), torch.stack([mask for _, mask in rows])

    def release(self) -> None:
        """Frees the model's memory. The next prompt that is not on disk loads it again."""
        self._loaded = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def instruction(self) -> str:
        """The text before every prompt but the null one."""
        if self.config.instruction is not None:
            return self.config.instruction
        try:
            from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT
        except ImportError:
            raise ImportError(
                "the official instruction comes with diffusers: pip install 'sana-wm-env[hub]'"
            ) from None
        return "\n".join(DEFAULT_CHI_PROMPT)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of an encoder, whatever revision or folder it comes from: SHA-256 over its files, of large
        ones an even sample.
        """
        digest = hashlib.sha256()
        files = {
            *self.model.glob("*.safetensors"),
            *self.model.glob("config.json"),
            *self.tokenizer.glob("tokenizer*"),
            *self.others(),
        }
        for file in sorted(files, key=lambda file: file.name):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as read:
                for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                    read.seek(start)
                    digest.update(read.read(SAMPLE_BYTES))
        return digest.hexdigest()

    def others(self) -> list[Path]:
        """Files beside model and tokenizer that features depend on."""
        return []

    def names(self, prompt: str) -> list[Any]:
        """What features on disk depend on, beside encoder and dtype."""
        return [self.instruction if prompt else "", prompt, self.config.tokens]

    def _encode_one(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Features (L, W) and mask (L,), from disk where they are."""
        what = [*self.names(prompt), str(self.dtype), self.fingerprint]
        file = self.cache / "text" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.safetensors"
        if file.is_file():
            try:
                cached = load_file(file)
                return cached["features"], cached["mask"]
            except (OSError, SafetensorError, KeyError):
                pass  # damaged: made again
        features, mask = self._run(prompt)
        write_whole(file, lambda path: save_file({"features": features, "mask": mask}, path))
        return features, mask

    @torch.no_grad()
    def _run(self, prompt: str) -> tuple[Tensor, Tensor]:
        tokenizer, model = self._load()
        tokens, instruction = self.config.tokens, self.instruction if prompt else ""
        # the instruction without its last token, then as many as remain: the null prompt, which has none,
        # fills the places itself
        length = len(tokenizer(instruction).input_ids) + tokens - 2 if instruction else tokens
        words = tokenizer(
            instruction + prompt,
            max_length=length,
            padding="max_length",
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        hidden = model(
            input_ids=words.input_ids, attention_mask=words.attention_mask, use_cache=False
        ).last_hidden_state
        chosen = [0, *range(length - tokens + 1, length)]  # the opening token, and the last ones
        return hidden[0, chosen].cpu().contiguous(), words.attention_mask[0, chosen].bool().cpu()

    def _load(self) -> tuple[Any, Any]:
        """Tokenizer and decoder stack, from files on this machine."""
        if self._loaded is None:
            try:
                from transformers import AutoModel, AutoTokenizer
            except ImportError:
                raise ImportError(
                    f"the {self.called} text encoder needs transformers: pip install 'sana-wm-env[hub]'"
                ) from None
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, local_files_only=True)
                model, report = AutoModel.from_pretrained(
                    self.model,
                    dtype=self.dtype,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            except (OSError, ValueError, SafetensorError) as error:
                raise CheckpointError(
                    f"{self.model} cannot be read as a {self.called} text encoder: {error}"
                ) from None
            if report["missing_keys"]:  # transformers would draw them at random
                raise CheckpointError(
                    f"{self.model} is not complete: missing {', '.join(sorted(report['missing_keys'])[:8])}"
                )
            if (width := model.config.get_text_config().hidden_size) != self.config.width:
                raise CheckpointError(
                    f"{self.model} has hidden states of {width} numbers; wanted {self.config.width}, the "
                    "world's text width"
                )
            self._loaded = tokenizer, model.eval().requires_grad_(False).to(self.device)
        return self._loaded


def default_cache() -> Path:
    """Folder for what can be computed again."""
    return Path(os.environ.get("SANA_WM_CACHE") or Path.home() / ".cache" / "sana-wm")
