"""The bundled text encoder."""

import torch

from sana_wm_env.model.codecs.text import TextEncoder, TextEncoderConfig

ENCODER = TextEncoder(TextEncoderConfig(width=16, tokens=6))


def test_same_words_same_features_whatever_the_case_and_the_batch():
    alone, _ = ENCODER.encode(["A red box"])
    among, _ = ENCODER.encode(["", "a red, box!"])
    assert torch.equal(alone[0], among[1])


def test_order_and_words_matter():
    features, _ = ENCODER.encode(["red box", "box red", "blue box"])
    assert not torch.allclose(features[0], features[1]) and not torch.allclose(features[0], features[2])


def test_mask_counts_the_opening_token_and_long_prompts_are_cut():
    features, mask = ENCODER.encode(["", "one two", "one two three four five six seven"])
    assert mask.sum(1).tolist() == [1, 3, 6] and features.shape == (3, 6, 16)
    assert (features[~mask] == 0).all()
