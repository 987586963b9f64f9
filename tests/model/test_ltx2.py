"""The LTX-2 autoencoder against diffusers' own: the published architecture at a thirty-second of its width,
random weights.
"""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKLLTX2Video

from sana_wm_env.model.codecs.ltx2 import LTX2Autoencoder

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {
    "latent_channels": 4,
    "block_out_channels": (8, 16, 32, 64),
    "decoder_block_out_channels": (8, 16, 32),
}


@pytest.fixture(scope="module")
def reference() -> AutoencoderKLLTX2Video:
    torch.manual_seed(0)
    whole = AutoencoderKLLTX2Video(**SMALL).eval().requires_grad_(False)
    whole.latents_mean.normal_()
    whole.latents_std.uniform_(0.5, 2)
    return whole


@pytest.fixture(scope="module")
def autoencoder(reference) -> LTX2Autoencoder:
    ours = LTX2Autoencoder(SMALL).eval().requires_grad_(False)
    ours.load_state_dict(reference.state_dict())  # strict: the names of the published files
    return ours


def latents(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, frames, 2, 2, generator=torch.Generator().manual_seed(1))


def whole_decode(reference, x: torch.Tensor) -> torch.Tensor:
    raw = x * reference.latents_std[:, None, None, None] + reference.latents_mean[:, None, None, None]
    return reference.decode(raw, causal=True).sample


def in_pieces(autoencoder, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    video, state = [], None
    for piece in x.split(sizes, 2):
        frames, state = autoencoder.decode(piece, state)
        video.append(frames)
    return torch.cat(video, 2)


def test_names_and_sizes_are_the_published_ones():
    with torch.device("meta"):
        published = LTX2Autoencoder()
    names = published.state_dict()
    assert len(names) == 184
    assert sum(t.numel() for name, t in names.items() if "latents_" not in name) == 1_222_479_601
    assert sum(t.numel() for name, t in names.items() if name.startswith("decoder.")) == 528_380_720
    assert names["decoder.up_blocks.0.upsamplers.0.conv.conv.weight"].shape == (4096, 1024, 3, 3, 3)
    assert (published.latent_channels, published.spatial_stride) == (128, 32)


@pytest.mark.parametrize("sizes", [[5], [1, 3, 1], [1] * 5])
def test_decoding_in_pieces_equals_the_causal_decode_of_the_clip(reference, autoencoder, sizes):
    x = latents(5)
    wanted = whole_decode(reference, x)
    assert wanted.shape == (1, 3, 33, 64, 64) and wanted.std() > 0.01
    assert (in_pieces(autoencoder, x, sizes) - wanted).abs().max() <= 1e-4


def test_the_state_has_the_published_size(autoencoder):
    _, state = autoencoder.decode(latents(1))
    shapes = [(t.shape[1], *t.shape[3:]) for t in state]
    counts = {shape: shapes.count(shape) for shape in shapes}
    # the published sizes are 32 times as wide, on a grid of 22 x 40
    assert counts == {(4, 2, 2): 1, (32, 2, 2): 11, (16, 4, 4): 11, (8, 8, 8): 11, (4, 16, 16): 11}
    assert all(t.shape[:1] + t.shape[2:3] == (1, 2) for t in state)
    assert all(
        t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in state
    )  # none keeps a larger tensor alive


def test_a_state_is_never_written_and_goes_on_twice_the_same(autoencoder):
    x = latents(3)
    _, middle = autoencoder.decode(x[:, :, :2])
    before = [t.clone() for t in middle]
    first, _ = autoencoder.decode(x[:, :, 2:], middle)
    autoencoder.decode(x[:, :, 2:] + 1, middle)  # another branch
    again, _ = autoencoder.decode(x[:, :, 2:], middle)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, middle, strict=True))


def test_rows_may_stand_anywhere_in_their_clips(autoencoder):
    x = latents(3, batch=2)
    _, early = autoencoder.decode(x[:1, :, :1])
    _, late = autoencoder.decode(x[1:, :, :2])
    both = tuple(torch.cat(pair) for pair in zip(early, late, strict=True))
    new = torch.cat([x[:1, :, 1:2], x[1:, :, 2:]])
    together, _ = autoencoder.decode(new, both)
    alone = torch.cat([autoencoder.decode(new[:1], early)[0], autoencoder.decode(new[1:], late)[0]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_decode_without_its_state_is_another(reference, autoencoder):
    x = latents(2)
    wanted = whole_decode(reference, x)[:, :, 1:]
    _, state = autoencoder.decode(x[:, :, :1])
    forgot = tuple(torch.zeros_like(t) for t in state)
    assert (autoencoder.decode(x[:, :, 1:], forgot)[0] - wanted).abs().max() > 0.01


@pytest.mark.parametrize("frames", [1, 9])
def test_encoding_is_the_normalised_mode(reference, autoencoder, frames):
    video = torch.rand(1, 3, frames, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mode = reference.encode(video).latent_dist.mode()
    wanted = (mode - reference.latents_mean[:, None, None, None]) / reference.latents_std[:, None, None, None]
    found = autoencoder.encode(video)
    assert found.shape == (1, 4, 1 + frames // 8, 2, 2)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(autoencoder.denormalise(found), mode, atol=1e-5)
    # the encoder is causal as well: the first latent is that of the first frame alone
    assert torch.allclose(found[:, :, :1], autoencoder.encode(video[:, :, :1]), atol=1e-5)


def test_bad_input_is_refused(autoencoder):
    with pytest.raises(ValueError, match=r"got a video of 8 frames of 64x96; wanted 8k \+ 1 frames"):
        autoencoder.encode(torch.zeros(1, 3, 8, 64, 96))
    with pytest.raises(ValueError, match="multiples of 32"):
        autoencoder.encode(torch.zeros(1, 3, 1, 64, 100))
    _, state = autoencoder.decode(latents(1))
    with pytest.raises(ValueError, match=r"decoder state of 44 tensors .* wanted the 45 tensors"):
        autoencoder.decode(latents(3), state[:-1])
    with pytest.raises(
        ValueError, match="got 2 rows of latents and a decoder state of 45 tensors with 1 rows"
    ):
        autoencoder.decode(latents(3, batch=2), state)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"decoder_causal": False}, "decoder_causal=False"),
        ({"timestep_conditioning": True}, "timestep_conditioning=True"),
        ({"decoder_inject_noise": (True, False, False, False)}, "decoder_inject_noise"),
        ({"upsample_factor": (2, 1, 2)}, "do not begin with an upsampler"),
    ],
)
def test_a_decoder_that_cannot_stream_is_refused(setting, said):
    with pytest.raises(ValueError, match=said), torch.device("meta"):
        LTX2Autoencoder({**SMALL, **setting})


@pytest.mark.slow
def test_the_published_width_decodes_in_pieces_as_whole(tmp_path):
    """528 million weights, 2 GB in float32, on a grid of 2 x 2; in mid-stream the state goes to a file. Run
    it with -s for the figure.
    """
    with torch.device("meta"):
        ours = LTX2Autoencoder()
    decoder = ours.decoder.to_empty(device="cpu").requires_grad_(False)
    torch.manual_seed(0)
    for parameter in decoder.parameters():
        parameter.normal_(std=parameter[0].numel() ** -0.5)  # of a bias: 1
    ours.latents_mean, ours.latents_std = torch.zeros(128), torch.ones(128)
    x = torch.randn(1, 128, 3, 2, 2)
    with torch.inference_mode():
        wanted = decoder(x, causal=True)
        first, state = ours.decode(x[:, :, :1])
        torch.save(state, tmp_path / "state.pt")
        rest, _ = ours.decode(x[:, :, 1:], state)
        restored, _ = ours.decode(x[:, :, 1:], torch.load(tmp_path / "state.pt"))
    difference = (torch.cat([first, rest], 2) - wanted).abs().max()
    print(f"largest difference {difference:.2e} of pixels with std {wanted.std():.3f}")
    assert wanted.shape == (1, 3, 17, 64, 64) and difference <= 1e-4 * min(wanted.std(), 1)
    assert torch.equal(restored, rest)
