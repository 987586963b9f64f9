"""The bundled autoencoder: shapes, causality, streaming decode."""

import pytest
import torch

from sana_wm_env.model.codecs.autoencoder import Autoencoder, AutoencoderConfig, group, ungroup


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(
        AutoencoderConfig(latent_channels=8, fine=16, coarse=16, encoder_blocks=1, decoder_blocks=1)
    )
    for parameter in model.parameters():  # no layer left silent by its initial zeros
        torch.nn.init.normal_(parameter, std=0.1)
    model.latents_mean.normal_()
    model.latents_std.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def test_shapes_and_frame_counts(autoencoder):
    latents = autoencoder.encode(torch.randn(2, 3, 25, 16, 24))
    assert latents.shape == (2, 8, 4, 2, 3)
    video, _ = autoencoder.decode(latents)
    assert video.shape == (2, 3, 25, 16, 24)


def test_decoding_in_pieces_equals_decoding_whole(autoencoder):
    latents = torch.randn(2, 8, 7, 2, 2)
    whole, last = autoencoder.decode(latents)
    first, state = autoencoder.decode(latents[:, :, :1])
    pieces = [first]
    for part in (latents[:, :, 1:4], latents[:, :, 4:5], latents[:, :, 5:]):
        video, state = autoencoder.decode(part, state)
        pieces.append(video)
    assert first.shape[2] == 1 and pieces[1].shape[2] == 24
    assert torch.allclose(torch.cat(pieces, 2), whole, atol=1e-5) and torch.equal(
        state.previous, last.previous
    )


def test_it_is_causal(autoencoder):
    video = torch.randn(1, 3, 17, 16, 16)
    changed = video.clone()
    changed[:, :, 9:] += 1
    before, after = autoencoder.encode(video), autoencoder.encode(changed)
    assert torch.allclose(before[:, :, :2], after[:, :, :2], atol=1e-6) and not torch.allclose(
        before[:, :, 2], after[:, :, 2], atol=1e-3
    )


def test_normalisation_gives_unit_latents(autoencoder):
    raw = 3 + 2 * torch.randn(64, 2, 8, 2, 2)
    mean, std = autoencoder.latents_mean.clone(), autoencoder.latents_std.clone()
    autoencoder.fit_normalisation(raw)
    normal = autoencoder.normalise(raw)
    assert normal.mean().abs() < 1e-3 and normal.std().sub(1).abs() < 1e-2
    assert torch.allclose(autoencoder.denormalise(normal), raw, atol=1e-5)
    autoencoder.latents_mean.copy_(mean)
    autoencoder.latents_std.copy_(std)


def test_grouping_is_undone():
    video = torch.randn(2, 3, 16, 4, 4)
    assert torch.equal(ungroup(group(video)), video)


@pytest.mark.parametrize(("frames", "height"), [(24, 16), (25, 12)])
def test_illegal_sizes_are_refused_with_the_legal_ones(autoencoder, frames, height):
    with pytest.raises(ValueError, match="17 and 25" if frames == 24 else "multiples of 8"):
        autoencoder.encode(torch.zeros(1, 3, frames, height, 16))
