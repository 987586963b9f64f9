"""The parts of a world, and what every way of running it shares: loading, opening sessions, pictures in and
out.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .camera_inputs import STRIDE
from .codecs.open import AnyAutoencoder, AnyTextEncoder, open_autoencoder, open_text_encoder
from .codecs.refiner import find_refiner, open_refiner
from .config import Variant, WorldConfig
from .contexts import TextContext
from .cores import Deferred, apart, run_apart
from .kernels.formats import Precision
from .kernels.select import SMALL_WIDTH, choose_dtype
from .memory import Need, check_fits, need
from .network.transformer import Transformer
from .noise import draw_noise
from .quantize import find_precision
from .refiner import Refiner, forget
from .state import RefinerState, WorldState
from .state_check import check_layout, check_state
from .storage.weights import digest_weights
from .storage.worlds import (
    CheckpointError,
    check_variant,
    load_config,
    load_transformer,
    resolve_world,
    stored_precision,
)
from .template import Templates
from .tree import tensors_of

OFFLOADED = ("autoencoder", "text", "refiner")


class WorldBase:
    """Text encoder, autoencoder and transformer of a world, and a refiner where one is asked for. It owns
    weights and nothing else; a session is an immutable `WorldState`.
    """

    runs: ClassVar[tuple[Variant, ...]]

    def __init__(
        self,
        config: WorldConfig,
        transformer: Transformer,
        autoencoder: AnyAutoencoder,
        text_encoder: AnyTextEncoder,
        variant: Variant | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        self.config = config
        self.variant: Variant = variant or self.runs[0]
        if self.variant not in self.runs:
            raise ValueError(
                f"got the variant {variant!r}; a {type(self).__name__} runs {' or '.join(self.runs)}"
            )
        self.transformer = transformer.eval().requires_grad_(False).prepare()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.text_encoder = text_encoder
        self.refiner = refiner

    @classmethod
    def load(
        cls,
        world: str | Path = "tiny-rooms",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        offload: Mapping[str, str] | None = None,
        variant: Variant | None = None,
        precision: Precision | None = None,
        refiner: str | Path | None = None,
    ) -> Self:
        """Load a bundled world by name, a local one by folder, or a downloaded one by repository.

        Args:
            world: which one, see `resolve_world`.
            device: where the transformer runs, and whatever `offload` does not name.
            dtype: of all weights; None for what the world names. In a world that names "auto" float32 and
                bfloat16 are the transformer's alone, None takes what is fastest on the device, see
                `choose_dtype`, and everything else is float32.
            offload: another device for "autoencoder", "text" or "refiner", such as {"autoencoder": "cuda:1",
                "text": "cpu"}; "text": "release" runs the text encoder on `device` and frees its memory after
                every start; "refiner": "blocks" leaves the refiner's blocks in their files, and takes one
                after the other onto `device`.
            variant: one of `config.variants`; by default the first that this class runs.
            precision: "fp8", "nvfp4", "mxfp8" or "int8" for a quantised transformer, see `quantize`; None for
                what the world holds.
            refiner: None for stage 1 alone, "auto" for the refiner that the world comes with, or the folder
                of one; see `open_refiner`.

        Raises:
            CheckpointError: something is missing, does not fit, or finds no room; it says what, before any
                weight is read where it can.
            ImportError: the world needs diffusers or transformers, and they are not installed.
            ValueError: `offload` names something else, or the device cannot multiply in this precision.
        """
        load = partial(cls._load, world, device, dtype, offload, variant or cls.runs[0], precision, refiner)
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
        refiner: str | Path | None,
    ) -> Self:
        check_offload(offload)
        places = dict.fromkeys(OFFLOADED, str(device)) | dict(offload or {})
        release = places["text"] == "release"
        folder = resolve_world(world)
        config = load_config(folder)
        check_variant(config, variant)
        chosen = None
        if config.dtype == "auto" and dtype in (None, torch.float32, torch.bfloat16):
            dtype, chosen = torch.float32, dtype or choose_dtype("auto", device)
        wide: torch.dtype = dtype or getattr(torch, config.dtype)
        second = None if refiner is None else find_refiner(folder, refiner)
        stored = precision or stored_precision(folder, config, variant)
        check_fits(config, wide, str(device), offload, stored, second and second.config)
        try:
            text_encoder = open_text_encoder(
                folder, config, wide, device if release else places["text"], keep=not release
            )
            autoencoder = open_autoencoder(folder, config, wide, places["autoencoder"])
        except CheckpointError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
        transformer = load_transformer(folder, config, wide, device, variant, precision)
        opened = second and open_refiner(second, text_encoder, wide, device, places["refiner"], release)
        loaded = cls(config, transformer, autoencoder, text_encoder, variant, opened)
        if chosen and chosen != wide:
            # of the weights before: whoever computes in another dtype opens the same states
            loaded.fingerprint  # noqa: B018
            transformer.to(chosen).prepare()
            if opened:
                opened.fingerprint  # noqa: B018
                opened.network.to(chosen)
        return loaded

    @property
    def device(self) -> torch.device:
        """Device of the transformer and of states."""
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
        refiner = self.refiner and self.refiner.config
        return need(self.config, self.transformer.dtype, find_precision(self.transformer), refiner)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of a world: SHA-256 over the configuration and the weights, of large tensors an even
        sample.

        Sampled because it is taken whenever a world is loaded; it finds another training, not a tampered
        file. Variants, the usual dtype and how sessions at home begin are left out, as sessions do not depend
        on them; the dtype of the weights counts.
        """
        settings = {
            name: value
            for name, value in self.config.to_dict().items()
            if name not in ("variants", "dtype", "looks_around")
        }
        if settings["transformer"]["num_sink_blocks"] == 1:  # as all worlds were before there was a choice
            del settings["transformer"]["num_sink_blocks"]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        return digest_weights(digest, self.transformer, self.autoencoder).hexdigest()

    @cached_property
    def _templates(self) -> Templates:
        return Templates(self.config, self.autoencoder)

    def accept(self, state: WorldState) -> WorldState:
        """`state` on this world's device, after every check: see `check_state`.

        Raises:
            ValueError: another world imagined it (both are named), or no session of this one can be so.
        """
        check_state(state, self.latents_per_step)
        ours, theirs = (self.config.name, self.fingerprint), (state.world, state.weights)
        if ours != theirs:
            raise ValueError(
                f"got a state of the world {theirs[0]!r} with weights {theirs[1][:12]}; this is {ours[0]!r} "
                f"with weights {ours[1][:12]}: "
                "load the world that the state was saved in"
            )
        check_layout(state, self._templates.after(int(state.chunks.min())))
        home, dtype = self.autoencoder.latents_mean.device, self.transformer.dtype
        refiner = self._accept_refiner(state)
        ready = state.text.keys[0].dtype == dtype and all(t.device == self.device for t in tensors_of(state))
        if ready and home == self.device:  # nothing to walk through a second time: a fork takes on many
            return state if refiner is state.refiner else replace(state, refiner=refiner)
        moved = replace(state, refiner=None).map(lambda t: t.to(self.device))
        return replace(
            moved,
            refiner=refiner,
            transformer=moved.transformer and moved.transformer.cast(dtype),
            text=moved.text.map(lambda t: t if t.dtype == torch.bool else t.to(dtype)),
            decoder=tuple(t.to(home) for t in state.decoder),
            generators=state.generators.cpu(),
        )

    def _accept_refiner(self, state: WorldState) -> RefinerState | None:
        """What this world goes on refining with. Without a refiner that is nothing: stage 1 goes on alone."""
        if self.refiner is None:
            return None
        if state.refiner is None:
            raise ValueError(
                "got a state of a session that was not refined, whose prompt is not known any more; open the "
                "world with refiner=None, or begin a session with the refiner"
            )
        return self.refiner.accept(state.refiner, self.config.grid)

    @apart
    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, C, 1 + k, h, w) of a video, uint8 (B, 1 + 8 k, H, W, 3): what the autoencoder can tell
        of it.
        """
        return self.autoencoder.encode(self._as_input(frames))

    @apart
    @torch.inference_mode()
    def start(
        self, images: Tensor, intrinsics_px: Tensor, prompts: list[str], generators: list[torch.Generator]
    ) -> WorldState:
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
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; wanted uint8 (B, "
                f"{_joined(self.config.image_size)}, 3)"
            )
        if intrinsics_px.shape != (batch, 4) or len(prompts) != batch or len(generators) != batch:
            raise ValueError(
                f"{batch} images came with intrinsics {tuple(intrinsics_px.shape)}, {len(prompts)} prompts, "
                f"{len(generators)} generators; "
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
            observed=torch.zeros(batch, dtype=torch.int64, device=self.device),
            world=self.config.name,
            weights=self.fingerprint,
            refiner=self.refiner and self.refiner.start(image_latent, prompts),
        ).detached()

    @apart
    @torch.inference_mode()
    def decode(self, latents: Tensor, state: WorldState, refine: bool = True) -> tuple[Tensor, WorldState]:
        """Frames uint8 (B, 8 T, H, W, 3) of new latents (B, C, T, h, w), and the state with decoder and
        newest frame moved on.

        refine: whether a refiner, where there is one, has its turn first. A session that goes on without
        keeps its first frame alone of what the refiner has seen.
        """
        latents, state = self.refine(latents, state) if refine else (latents, self.skip(latents, state))
        video, decoder = self.autoencoder.decode(latents.to(self.autoencoder.latents_mean), state.decoder)
        frames = as_frames(video)
        newest = frames[:, -1].to(self.device, copy=True)  # a view would keep the chunk alive
        return frames, state.changed(decoder=tuple(decoder), frame=newest)

    def skip(self, latents: Tensor, state: WorldState) -> WorldState:
        """The state of a session whose new latents are not refined, like `decode` with refine=False."""
        return state if state.refiner is None else state.changed(refiner=forget(state.refiner, latents))

    @apart
    @torch.inference_mode()
    def refine(self, latents: Tensor, state: WorldState) -> tuple[Tensor, WorldState]:
        """Latents as the refiner makes them of new ones (B, C, T, h, w), and the state with its part moved
        on; both as they were where there is no refiner. `decode` calls it.
        """
        if self.refiner is None or state.refiner is None:
            return latents, state
        refined, next_state = self.refiner.refine(latents, state.refiner)
        remember = torch.inference_mode()(next_state)  # wherever it runs
        return refined, state.changed(refiner=Deferred(remember) if self.device.type == "cpu" else remember())

    def _as_input(self, frames: Tensor) -> Tensor:
        mean = self.autoencoder.latents_mean
        return as_video(frames.to(mean.device)).to(mean.dtype)

    def encode_prompts(self, prompts: list[str]) -> TextContext:
        """Keys and values of B prompts."""
        features, mask = self.text_encoder.encode(list(prompts))
        return self.transformer.text_context(features.to(self.device), mask.to(self.device))

    def draw_noise(self, state: WorldState, latents: int) -> tuple[Tensor, Tensor]:
        """Noise (B, C, latents, h, w) and the generators' next states.

        Drawn slot by slot on the CPU, so that a session's noise depends neither on its neighbours nor on the
        device.
        """
        shape = (self.config.transformer.in_channels, latents, *self.config.grid)
        noise, generators = draw_noise(state.generators, shape)
        return noise.to(self.device), generators

    def check_poses(self, state: WorldState, c2w: Tensor, frames: int) -> Tensor:
        """Poses (B, frames, 4, 4) on this world's device, float64. ValueError for another shape, NaN or
        infinity.
        """
        wanted = (len(state.image_latent), frames, 4, 4)
        if c2w.shape != wanted:
            raise ValueError(f"poses are {tuple(c2w.shape)}; wanted {wanted}")
        c2w = c2w.to(self.device, torch.float64)
        if not c2w.isfinite().all():
            raise ValueError("poses hold NaN or infinite numbers")
        return c2w


def check_offload(offload: Any) -> None:
    """ValueError for parts that stay where the transformer is, and for a word that is no place of a part."""
    words = {("text", "release"), ("refiner", "blocks")}
    if offload is not None and (
        not isinstance(offload, Mapping)
        or set(offload) - set(OFFLOADED)
        or any(
            place in ("release", "blocks") and (part, place) not in words for part, place in offload.items()
        )
    ):
        raise ValueError(
            f"got offload={offload!r}; wanted a device for 'autoencoder', 'text' or 'refiner', "
            "'text': 'release', or 'refiner': 'blocks'"
        )


def as_video(frames: Tensor) -> Tensor:
    """Frames uint8 (B, F, H, W, 3) as an autoencoder takes them: float32 (B, 3, F, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).to(torch.float32) / 127.5 - 1


def as_frames(video: Tensor) -> Tensor:
    """Video (B, 3, F, H, W) in [-1, 1] as frames uint8 (B, F, H, W, 3)."""
    frames = (
        video.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    )  # in place: fresh memory costs more
    return frames.permute(0, 2, 3, 4, 1).contiguous()


def _joined(size: tuple[int, int]) -> str:
    return ", ".join(map(str, size))
