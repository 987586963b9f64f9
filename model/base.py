"""What a world is made of, and what every way of running it shares: loading, opening sessions, pictures in and out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from .cameras import STRIDE
from .codecs.parts import AnyAutoencoder, AnyTextEncoder, open_autoencoder, open_text_encoder
from .config import Variant, WorldConfig
from .cores import apart, run_apart
from .fit import Need, check_fits, need
from .kernels.formats import Precision
from .kernels.select import SMALL_WIDTH, choose_dtype
from .network.transformer import Transformer
from .quantize import find_precision
from .state import TextContext, WorldState, tensors_of
from .storage.checkpoint import CheckpointError, check_variant, load_config, load_transformer, resolve_world, stored_precision


class WorldBase:
    """Text encoder, autoencoder and transformer of a world. It owns weights and nothing else; a session is an immutable `WorldState`."""

    runs: ClassVar[tuple[Variant, ...]]

    def __init__(
        self,
        config: WorldConfig,
        transformer: Transformer,
        autoencoder: AnyAutoencoder,
        text_encoder: AnyTextEncoder,
        variant: Variant | None = None,
    ) -> None:
        self.config = config
        self.variant: Variant = variant or self.runs[0]
        if self.variant not in self.runs:
            raise ValueError(f"got the variant {variant!r}; a {type(self).__name__} runs {' or '.join(self.runs)}")
        self.transformer = transformer.eval().requires_grad_(False).prepare()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.text_encoder = text_encoder

    @classmethod
    def load(
        cls,
        world: str | Path = "rooms",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        offload: Mapping[str, str] | None = None,
        variant: Variant | None = None,
        precision: Precision | None = None,
    ) -> Self:
        """Load a bundled world by name, a local one by folder, or a downloaded one by repository.

        Args:
            world: which one, see `resolve_world`.
            device: where the transformer runs, and whatever `offload` does not name.
            dtype: of all weights; None for what the world names. In a world that names "auto" float32 and bfloat16 are the transformer's
                alone, None takes what is fastest on the device, see `choose_dtype`, and everything else is float32.
            offload: another device for "autoencoder" or "text", such as {"autoencoder": "cuda:1", "text": "cpu"}; "text": "release" runs
                the text encoder on `device` and frees its memory after every start.
            variant: one of `config.variants`; by default the first that this class runs.
            precision: "fp8", "nvfp4", "mxfp8" or "int8" for a quantised transformer, see `quantize`; None for what the world holds.

        Raises:
            CheckpointError: something is missing, does not fit, or finds no room; it says what, before any weight is read where it can.
            ImportError: the world needs diffusers or transformers, and they are not installed.
            ValueError: `offload` names something else, or the device cannot multiply in this precision.
        """
        load = partial(cls._load, world, device, dtype, offload, variant or cls.runs[0], precision)
        return run_apart(load) if torch.device(device).type == "cpu" else load()

    @classmethod
    def _load(
        cls,
        world: str | Path,
        device: str | torch.device,
        dtype: torch.dtype | None,
        offload: Mapping[str, str] | None,
        variant: Variant,
        precision: Precision | None,
    ) -> Self:
        places = {"autoencoder": str(device), "text": str(device), **(offload or {})}
        if set(places) != {"autoencoder", "text"} or places["autoencoder"] == "release":
            raise ValueError(f"got offload={offload!r}; wanted a device for 'autoencoder' or 'text', or 'text': 'release'")
        release = places["text"] == "release"
        folder = resolve_world(world)
        config = load_config(folder)
        check_variant(config, variant)
        chosen = None
        if config.dtype == "auto" and dtype in (None, torch.float32, torch.bfloat16):
            dtype, chosen = torch.float32, dtype or choose_dtype("auto", device)
        dtype = dtype or getattr(torch, config.dtype)
        check_fits(config, dtype, str(device), offload, precision or stored_precision(folder, config, variant))
        try:
            text_encoder = open_text_encoder(folder, config, dtype, device if release else places["text"], keep=not release)
            autoencoder = open_autoencoder(folder, config, dtype, places["autoencoder"])
        except CheckpointError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
        transformer = load_transformer(folder, config, dtype, device, variant, precision)
        world = cls(config, transformer, autoencoder, text_encoder, variant)
        if chosen and chosen != dtype:
            world.fingerprint  # noqa: B018  # of the weights before: whoever computes in another dtype opens the same states
            transformer.to(chosen).prepare()
        return world

    @property
    def device(self) -> torch.device:
        """Where the transformer runs, and states lie."""
        return self.transformer.pos_embed.device

    @property
    def threads(self) -> int | None:
        """Torch threads that a forward is worth on a CPU: one for a small network, None for all there are."""
        return 1 if self.config.transformer.width <= SMALL_WIDTH else None

    @property
    def latents_per_step(self) -> int:
        """Latent frames of a chunk."""
        return self.config.transformer.chunk

    @property
    def frames_per_step(self) -> int:
        """RGB frames of a chunk."""
        return STRIDE * self.latents_per_step

    @cached_property
    def needed(self) -> Need:
        """Bytes that one session takes, stage by stage."""
        return need(self.config, self.transformer.dtype, find_precision(self.transformer))

    @cached_property
    def fingerprint(self) -> str:
        """What tells worlds apart: SHA-256 over the configuration and the weights, of large tensors an even sample.

        Sampled because it is taken whenever a world is loaded; it finds another training, not a tampered file. What a session does not
        depend on does not count: what else the world can do, and the usual dtype (that of the weights does).
        """
        settings = {name: value for name, value in self.config.to_dict().items() if name not in ("variants", "dtype")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for part in (self.transformer, self.autoencoder):
            for name, tensor in part.state_dict().items():
                values = tensor.flatten()[:: max(1, tensor.numel() // 4096)].contiguous().cpu().view(torch.uint8)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def accept(self, state: WorldState) -> WorldState:
        """`state` on this world's device; ValueError that names both sides where another world imagined it."""
        ours, theirs = (self.config.name, self.fingerprint), (state.world, state.weights)
        if ours != theirs:
            raise ValueError(
                f"got a state of the world {theirs[0]!r} with weights {theirs[1][:12]}; this is {ours[0]!r} with weights {ours[1][:12]}: "
                "load the world that the state was saved in"
            )
        home, dtype = self.autoencoder.latents_mean.device, self.transformer.dtype
        ready = state.text.keys[0].dtype == dtype and all(t.device == self.device for t in tensors_of(state))
        if ready and home == self.device:  # nothing to walk through a second time: a fork takes on many
            return state
        moved = state.map(lambda t: t.to(self.device))
        return replace(
            moved,
            transformer=moved.transformer and moved.transformer.cast(dtype),
            text=moved.text.map(lambda t: t if t.dtype == torch.bool else t.to(dtype)),
            decoder=tuple(t.to(home) for t in state.decoder),
            generators=state.generators.cpu(),
        )

    @apart
    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, C, 1 + k, h, w) of a video, uint8 (B, 1 + 8 k, H, W, 3): what the autoencoder can tell of it."""
        return self.autoencoder.encode(self._as_input(frames))

    @apart
    @torch.inference_mode()
    def start(self, images: Tensor, intrinsics_px: Tensor, prompts: list[str], generators: list[torch.Generator]) -> WorldState:
        """Open one session per image.

        Args:
            images: uint8 (B, H, W, 3), first frames at the world's image size.
            intrinsics_px: (B, 4) fx, fy, cx, cy in pixels of those images.
            prompts: B descriptions; "" for none.
            generators: B CPU generators; their states are read, they themselves are not advanced.

        Raises:
            ValueError: where counts, sizes or dtypes do not fit.
        """
        batch = len(images)
        if images.dtype != torch.uint8 or images.shape != (batch, *self.config.image_size, 3):
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; wanted uint8 (B, {_joined(self.config.image_size)}, 3)")
        if intrinsics_px.shape != (batch, 4) or len(prompts) != batch or len(generators) != batch:
            raise ValueError(
                f"{batch} images came with intrinsics {tuple(intrinsics_px.shape)}, {len(prompts)} prompts, {len(generators)} generators; "
                f"wanted ({batch}, 4), {batch}, {batch}"
            )
        image_latent = self.autoencoder.encode(self._as_input(images[:, None]))
        _, decoder = self.autoencoder.decode(image_latent)
        return WorldState(
            transformer=None,
            image_latent=image_latent.to(self.device, torch.float32),
            decoder=decoder,
            text=self.encode_prompts(prompts),
            intrinsics_px=intrinsics_px.to(self.device, torch.float64),
            c2w=torch.eye(4, dtype=torch.float64, device=self.device).repeat(batch, 1, 1),
            generators=torch.stack([generator.get_state() for generator in generators]),
            frame=images.to(self.device),
            chunk_index=torch.zeros(batch, dtype=torch.int64, device=self.device),
            world=self.config.name,
            weights=self.fingerprint,
        ).detached()

    @apart
    @torch.inference_mode()
    def decode(self, latents: Tensor, state: WorldState) -> tuple[Tensor, WorldState]:
        """Frames uint8 (B, 8 T, H, W, 3) of new latents (B, C, T, h, w), and the state with decoder and newest frame moved on."""
        video, decoder = self.autoencoder.decode(latents.to(self.autoencoder.latents_mean), state.decoder)
        frames = as_frames(video)
        newest = frames[:, -1].to(self.device, copy=True)  # a view would keep the chunk alive
        return frames, state.changed(decoder=tuple(decoder), frame=newest)

    def _as_input(self, frames: Tensor) -> Tensor:
        mean = self.autoencoder.latents_mean
        return as_video(frames.to(mean.device)).to(mean.dtype)

    def encode_prompts(self, prompts: list[str]) -> TextContext:
        """Keys and values of B prompts."""
        features, mask = self.text_encoder.encode(list(prompts))
        return self.transformer.text_context(features.to(self.device), mask.to(self.device))

    def draw_noise(self, state: WorldState, latents: int) -> tuple[Tensor, Tensor]:
        """Noise (B, C, latents, h, w) and the generators' next states.

        Drawn slot by slot on the CPU, so that a session's noise depends neither on its neighbours nor on the device.
        """
        shape = (self.config.transformer.in_channels, latents, *self.config.grid)
        drawn, states, generator = [], [], torch.Generator()
        for row in state.generators.cpu():
            generator.set_state(row.clone())
            drawn.append(torch.randn(shape, generator=generator))
            states.append(generator.get_state())
        return torch.stack(drawn).to(self.device), torch.stack(states)

    def check_poses(self, state: WorldState, c2w: Tensor, frames: int) -> Tensor:
        """Poses (B, frames, 4, 4) on this world's device, float64. ValueError for another shape, NaN or infinity."""
        wanted = (len(state.image_latent), frames, 4, 4)
        if c2w.shape != wanted:
            raise ValueError(f"poses are {tuple(c2w.shape)}; wanted {wanted}")
        c2w = c2w.to(self.device, torch.float64)
        if not c2w.isfinite().all():
            raise ValueError("poses hold NaN or infinite numbers")
        return c2w


def as_video(frames: Tensor) -> Tensor:
    """Frames uint8 (B, F, H, W, 3) as an autoencoder takes them: float32 (B, 3, F, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3) / 127.5 - 1


def as_frames(video: Tensor) -> Tensor:
    """Video (B, 3, F, H, W) in [-1, 1] as frames uint8 (B, F, H, W, 3)."""
    frames = video.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)  # in place: fresh memory costs more
    return frames.permute(0, 2, 3, 4, 1).contiguous()


def _joined(size: tuple[int, int]) -> str:
    return ", ".join(map(str, size))
