"""A random Gemma-2 of 20 thousand weights with a tokenizer of whole words, written as transformers writes the
real one.
"""

from pathlib import Path

import torch

WORDS = [
    "describe",
    "the",
    "scene",
    ".",
    "Prompt",
    ":",
    "a",
    "red",
    "green",
    "blue",
    "box",
    "room",
    "pillar",
    "tall",
    "wide",
    "door",
]
INSTRUCTION = "describe the scene .\nPrompt : "  # 6 tokens and the opening one
WIDTH = 16


def write_tiny_gemma(folder: Path, seed: int = 0) -> Path:
    """Returns `folder`, with model and tokenizer. <bos> is token 2, <pad> is 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special).save_pretrained(folder)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=len(numbers), **sizes, **heads, pad_token_id=0, eos_token_id=1, bos_token_id=2
            )
        ).save_pretrained(folder)
    return folder
