"""The LTX-2 video autoencoder: 8 frames and 32x32 pixels become one latent cell (model/README.md section
10.1).

The layers are those of diffusers, under the names of the published files. What is ours is the streaming
decode: a walk over the decoder in which every causal convolution takes the last two frames of its previous
input from an explicit value and leaves its own behind. diffusers can only decode a clip as a whole.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

TEMPORAL_STRIDE = 8
KEPT = 2  # frames before the current one that a 3x3x3 convolution sees
Layers = Any  # of diffusers: no type tells what is inside them


class LTX2Autoencoder(nn.Module):
    """Video in [-1, 1] <-> normalised latents, with the interface of `model.autoencoder.Autoencoder`.

    Args:
        settings: arguments of diffusers' AutoencoderKLLTX2Video, such as the `config.json` beside its
            weights; {} is the published size.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: the settings describe a decoder that cannot stream.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, settings: Mapping[str, Any] | None = None):
        super().__init__()
        try:
            from diffusers import AutoencoderKLLTX2Video  # pyright: ignore[reportPrivateImportUsage]  # lazy exports
        except ImportError:
            raise ImportError(
                "the LTX-2 autoencoder needs diffusers: pip install 'sana-wm-env[hub]'"
            ) from None
        whole = cast(
            Layers,
            AutoencoderKLLTX2Video.from_config({"_class_name": "AutoencoderKLLTX2Video", **(settings or {})}),
        )
        _check_streams(whole)
        self.encoder, self.decoder = whole.encoder, whole.decoder
        self.register_buffer("latents_mean", whole.latents_mean)
        self.register_buffer("latents_std", whole.latents_std)
        self.latent_channels = int(whole.config.latent_channels)
        # not diffusers' spatial_compression_ratio, which without a value in the settings counts the temporal
        # stage as well
        self.spatial_stride = int(
            whole.config.patch_size * 2 ** sum(kind != "temporal" for kind in whole.config.downsample_type)
        )
        self.scaling_factor = float(whole.config.scaling_factor)

    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, 1 + 8k, H, W) in [-1, 1] -> latents (B, C, 1 + k, H/32, W/32): the mode of the
        posterior.

        Raises:
            ValueError: another number of frames, or sides that are no multiples of 32.
        """
        _, _, frames, height, width = video.shape
        stride = self.spatial_stride
        if frames % TEMPORAL_STRIDE != 1 or height % stride or width % stride:
            raise ValueError(
                f"got a video of {frames} frames of {height}x{width}; wanted 8k + 1 frames (1, 9, 17, ...) "
                "and both sides multiples of "
                f"{stride}"
            )
        # 2C channels: means, then log-variances, which the mode does without
        return self.normalise(self.encoder(video, causal=True).chunk(2, 1)[0])

    def decode(
        self, latents: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Latents (B, C, T, h, w) -> video (B, 3, F, 32h, 32w) and the state for the next call.

        Without a state the first latent opens a clip and gives 1 frame; every other latent gives 8. Decoding
        in pieces equals decoding whole. The state is the last two input frames of every convolution in the
        order in which they run: 45 tensors (B, c, 2, y, x) of the decoder's dtype and its own memory, never
        written afterwards. The official decoder also carries a flag per upsampler, "first frame dropped";
        there is none here, because all of them are up as soon as there is a state. So rows of a batch may
        stand anywhere in their clips.

        Raises:
            ValueError: a state of another number of tensors or of another batch.
        """
        if state is not None and (len(state) != self._kept_tensors or len(state[0]) != len(latents)):
            rows = len(state[0]) if state else 0
            raise ValueError(
                f"got {len(latents)} rows of latents and a decoder state of {len(state)} tensors with {rows} "
                "rows; wanted the "
                f"{self._kept_tensors} tensors that the previous decode of the same rows returned"
            )
        walk, decoder = _Walk(state), self.decoder
        x = walk.convolve(decoder.conv_in, self.denormalise(latents))
        for block in decoder.mid_block.resnets:
            x = walk.residual(block, x)
        for stage in decoder.up_blocks:
            x = walk.upsample(stage.upsamplers[0], x)
            for block in stage.resnets:
                x = walk.residual(block, x)
        x = walk.convolve(decoder.conv_out, decoder.conv_act(decoder.norm_out(x)))
        return _unpatch(x, decoder.patch_size), tuple(walk.after)

    def normalise(self, raw: Tensor) -> Tensor:
        """Raw latents (B, C, T, h, w) -> about zero mean, unit variance."""
        return (raw - _per_channel(self.latents_mean)) * self.scaling_factor / _per_channel(self.latents_std)

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latents * _per_channel(self.latents_std) / self.scaling_factor + _per_channel(
            self.latents_mean
        )

    @property
    def _kept_tensors(self) -> int:
        stages = self.decoder.up_blocks
        return (
            2 + 2 * len(self.decoder.mid_block.resnets) + sum(1 + 2 * len(stage.resnets) for stage in stages)
        )


class _Walk:
    """One decode call: what the convolutions saw last, taken from `before` in the order in which they run and
    put into `after`.
    """

    def __init__(self, before: tuple[Tensor, ...] | None):
        self.opens = before is None
        self._before: Iterator[Tensor] = iter(before or ())
        self.after: list[Tensor] = []

    def convolve(self, causal: Layers, x: Tensor) -> Tensor:
        """A 3x3x3 convolution of (B, c, T, y, x); a clip's first frame is its own past."""
        past = x[:, :, :1].expand(-1, -1, KEPT, -1, -1) if self.opens else next(self._before)
        x = torch.cat([past, x], 2)
        self.after.append(x[:, :, -KEPT:].clone())  # a view would keep all of x alive
        return causal.conv(x)  # pads in space alone

    def residual(self, block: Layers, x: Tensor) -> Tensor:
        """norm, SiLU, convolution, twice, plus the input."""
        inner = self.convolve(block.conv1, block.nonlinearity(block.norm1(x)))
        return x + self.convolve(block.conv2, block.nonlinearity(block.norm2(inner)))

    def upsample(self, upsampler: Layers, x: Tensor) -> Tensor:
        """(B, c, T, y, x) -> (B, c/2, 2T, 2y, 2x), less the first frame of a clip."""
        steps = upsampler.stride
        finer = _depth_to_space(self.convolve(upsampler.conv, x), steps)
        if upsampler.residual:
            coarse = _depth_to_space(x, steps)
            finer = finer + coarse.repeat(1, finer.shape[1] // coarse.shape[1], 1, 1, 1)
        return finer[:, :, steps[0] - 1 :] if self.opens else finer


def _depth_to_space(x: Tensor, steps: tuple[int, int, int]) -> Tensor:
    """(B, c·s·p·q, T, y, x) -> (B, c, T·s, y·p, x·q); in a channel's number the offset in time counts most,
    that along the row least.
    """
    x = x.unflatten(1, (-1, *steps))  # (B, c, s, p, q, T, y, x)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _unpatch(x: Tensor, patch: int) -> Tensor:
    """(B, 3·p·p, F, y, x) -> (B, 3, F, y·p, x·p); in a channel's number the column counts more than the row,
    unlike above.
    """
    x = x.unflatten(1, (3, patch, patch))  # (B, 3, column, row, F, y, x)
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _check_streams(whole: Layers) -> None:
    """ValueError if the walk above is not this decoder's own forward."""
    config, decoder = whole.config, whole.decoder
    wanted = {
        "encoder_causal": True,
        "decoder_causal": True,
        "timestep_conditioning": False,
        "patch_size_t": 1,
        "out_channels": 3,
    }
    wrong = [f"{name}={config[name]}" for name, value in wanted.items() if config[name] != value]
    if any("per_channel_scale" in name for name, _ in decoder.named_parameters()):
        wrong.append(f"decoder_inject_noise={config.decoder_inject_noise}")
    if any(stage.conv_in is not None or stage.upsamplers is None for stage in decoder.up_blocks):
        wrong.append("stages that do not begin with an upsampler")
    if wrong:
        raise ValueError(
            f"got an LTX-2 autoencoder with {', '.join(wrong)}; wanted a causal one that can stream, such as "
            "ltx2_causal_vae of "
            "SANA-WM_streaming"
        )
