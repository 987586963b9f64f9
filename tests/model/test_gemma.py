"""The Gemma-2 text encoder with a tiny random model: which tokens are chosen, what is kept on disk, what is
refused.
"""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from tiny_gemma import INSTRUCTION, WIDTH, WORDS, write_tiny_gemma
from transformers import AutoModel

from sana_wm_env.model.codecs.gemma import GemmaConfig, GemmaTextEncoder
from sana_wm_env.model.storage.weights import CheckpointError

CONFIG = GemmaConfig(width=WIDTH, tokens=8, instruction=INSTRUCTION)
BOS, COLON = 2, 4 + WORDS.index(":")


def number(words: str) -> list[int]:
    return [4 + WORDS.index(word) for word in words.split()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture
def encoder(model, tmp_path) -> GemmaTextEncoder:
    return GemmaTextEncoder(CONFIG, model, dtype=torch.float32, cache=tmp_path)


def hidden(model, numbers: list[int]) -> torch.Tensor:
    """Last hidden states of these tokens with nothing after them."""
    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return network(input_ids=torch.tensor([numbers])).last_hidden_state[0]


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("a red box", 3),
        ("a tall red box , a wide green door", 6),  # two words too many
    ],
)
def test_the_opening_token_the_last_of_the_instruction_and_the_prompt_are_kept(encoder, model, prompt, kept):
    features, mask = encoder.encode([prompt])
    words = [4 + WORDS.index(word) if word in WORDS else 3 for word in prompt.split()]
    read = [BOS, *number("describe the scene . Prompt :"), *words[:kept]]
    assert read[6] == COLON
    wanted = hidden(model, read)[[0, *range(6, len(read))]]  # <bos>, ":", words
    assert features.shape == (1, 8, WIDTH) and mask.shape == (1, 8) and mask.dtype == torch.bool
    assert mask[0].tolist() == [True] * (2 + kept) + [False] * (6 - kept)
    assert torch.allclose(features[0, : 2 + kept], wanted, atol=1e-5)


def test_the_null_prompt_has_no_instruction(encoder, model):
    features, mask = encoder.encode([""])
    assert mask[0].tolist() == [True] + [False] * 7
    assert torch.allclose(features[0, :1], hidden(model, [BOS]), atol=1e-5)


def test_a_prompt_does_not_depend_on_its_neighbours(encoder, tmp_path, model):
    both, _ = encoder.encode(["a red box", "a tall wide green pillar"])
    alone, _ = GemmaTextEncoder(CONFIG, model, dtype=torch.float32, cache=tmp_path / "other").encode(
        ["a tall wide green pillar"]
    )
    assert torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])


def test_what_was_encoded_once_needs_no_model(encoder, model, tmp_path):
    first = encoder.encode(["a red box", ""])
    again = GemmaTextEncoder(CONFIG, model, dtype=torch.float32, cache=tmp_path)
    found = again.encode(["a red box", ""])
    assert again._loaded is None
    assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))
    assert (
        sorted(path.suffix for path in (tmp_path / "text").iterdir()) == [".safetensors"] * 2
    )  # and no half-written file


def test_a_damaged_file_is_made_again(encoder, model, tmp_path):
    first, _ = encoder.encode(["a red box"])
    (file,) = (tmp_path / "text").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(
        GemmaTextEncoder(CONFIG, model, dtype=torch.float32, cache=tmp_path).encode(["a red box"])[0], first
    )


def test_another_model_instruction_length_or_dtype_shares_nothing_on_disk(encoder, model, tmp_path):
    encoder.encode(["a red box"])
    other = write_tiny_gemma(tmp_path / "other", seed=1)
    changed = [
        GemmaTextEncoder(CONFIG, other, dtype=torch.float32, cache=tmp_path),
        GemmaTextEncoder(GemmaConfig(WIDTH, 8, "the scene : "), model, dtype=torch.float32, cache=tmp_path),
        GemmaTextEncoder(GemmaConfig(WIDTH, 9, INSTRUCTION), model, dtype=torch.float32, cache=tmp_path),
        GemmaTextEncoder(CONFIG, model, dtype=torch.bfloat16, cache=tmp_path),
    ]
    for count, another in enumerate(changed, 2):
        another.encode(["a red box"])
        assert len(list((tmp_path / "text").iterdir())) == count
    # the same files elsewhere are the same encoder
    moved = shutil.copytree(model, tmp_path / "moved")
    assert GemmaTextEncoder(CONFIG, moved).fingerprint == encoder.fingerprint


def test_release_frees_the_model_and_the_next_new_prompt_loads_it(encoder, model, tmp_path):
    encoder.encode(["a red box"])
    assert encoder._loaded is not None
    encoder.release()
    assert encoder._loaded is None
    encoder.encode(["a green box"])
    assert encoder._loaded is not None
    brief = GemmaTextEncoder(CONFIG, model, dtype=torch.float32, cache=tmp_path, keep=False)
    brief.encode(["a blue box"])
    assert brief._loaded is None


def test_the_official_instruction(model):
    pytest.importorskip("diffusers")
    lines = GemmaTextEncoder(GemmaConfig(), model).instruction.split("\n")
    assert len(lines) == 8 and lines[-1] == "User Prompt: "


def test_a_model_that_does_not_fit_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="hidden states of 16 numbers; wanted 2304"):
        GemmaTextEncoder(GemmaConfig(instruction=INSTRUCTION), model, cache=tmp_path).encode(["a red box"])
    broken = shutil.copytree(model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"broken is not complete: missing layers\.1\.mlp\.up_proj\.weight"
    ):
        GemmaTextEncoder(CONFIG, broken, cache=tmp_path).encode(["a red box"])
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="broken cannot be read as a Gemma-2 text encoder"):
        GemmaTextEncoder(CONFIG, broken, cache=tmp_path).encode(["a red box"])
    (broken / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    with pytest.raises(CheckpointError, match="broken cannot be read"):
        GemmaTextEncoder(CONFIG, broken, cache=tmp_path).encode(["a red box"])
