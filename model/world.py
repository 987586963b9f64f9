"""The world model: text encoder, autoencoder, transformer and sampler behind two pure functions, `start` and `step`.

A `WorldModel` owns weights and nothing else. What a session is lies in the immutable `WorldState` that goes in and comes out.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from .cameras import STRIDE, camera_inputs
from .checkpoint import CheckpointError, check_variant, load_config, load_transformer, resolve_world, stored_precision
from .config import Variant, WorldConfig
from .cores import Deferred, apart, has_spare_core, run_apart, shares, side_by_side
from .fit import Need, check_fits, need
from .kernels.formats import Precision
from .kernels.select import SMALL_WIDTH, choose_dtype
from .parts import AnyAutoencoder, AnyTextEncoder, open_autoencoder, open_text_encoder
from .quantize import find_precision
from .sampler import CLIP_GUIDANCE, Rule, clip_levels, sample_chunk, sample_clip
from .state import CameraContext, TextContext, TransformerState, concatenate, tensors_of
from .state import WorldState as WorldState
from .transformer import Transformer


class WorldModel:
    """Camera-controlled video world (paper sections 3 and 4), batch-first: every row of a batch is a session of its own.

    One step imagines one chunk: `latents_per_step` latent frames, `frames_per_step` RGB frames. That is the variant "streaming"; the
    others imagine whole clips, see `clip_latents`.
    """

    def __init__(
        self,
        config: WorldConfig,
        transformer: Transformer,
        autoencoder: AnyAutoencoder,
        text_encoder: AnyTextEncoder,
        variant: Variant = "streaming",
    ) -> None:
        self.config = config
        self.variant: Variant = variant
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
        variant: Variant = "streaming",
        precision: Precision | None = None,
    ) -> "WorldModel":
        """Load a bundled world by name, a local one by folder, or a downloaded one by repository.

        Args:
            world: which one, see `resolve_world`.
            device: where the transformer runs, and whatever `offload` does not name.
            dtype: of all weights; None for what the world names. In a world that names "auto" float32 and bfloat16 are the transformer's
                alone, None takes what is fastest on the device, see `choose_dtype`, and everything else is float32.
            offload: another device for "autoencoder" or "text", such as {"autoencoder": "cuda:1", "text": "cpu"}; "text": "release" runs
                the text encoder on `device` and frees its memory after every start.
            variant: one of `config.variants`.
            precision: "fp8", "nvfp4", "mxfp8" or "int8" for a quantised transformer, see `quantize`; None for what the world holds.

        Raises:
            CheckpointError: something is missing, does not fit, or finds no room; it says what, before any weight is read where it can.
            ImportError: the world needs diffusers or transformers, and they are not installed.
            ValueError: `offload` names something else, or the device cannot multiply in this precision.
        """
        load = partial(cls._load, world, device, dtype, offload, variant, precision)
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
    ) -> "WorldModel":
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
        for block in transformer.blocks:
            block.mlp.t_conv.to(memory_format=torch.channels_last)  # as the feed-forward multiplies with it, where it is not packed
        world = cls(config, transformer, autoencoder, text_encoder, variant)
        if chosen and chosen != dtype:
            world.fingerprint  # noqa: B018  # of the weights before: whoever computes in another dtype opens the same states
            transformer.to(chosen).prepare()
        return world

    @property
    def device(self) -> torch.device:
        return self.transformer.pos_embed.device

    @property
    def threads(self) -> int | None:
        """Torch threads that a forward is worth on a CPU: one for a small network, None for all there are."""
        return 1 if self.config.transformer.width <= SMALL_WIDTH else None

    @property
    def latents_per_step(self) -> int:
        return self.config.transformer.chunk

    @property
    def frames_per_step(self) -> int:
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
        # (B, H, W, 3) -> (B, 3, 1, H, W)
        video = images.permute(0, 3, 1, 2)[:, :, None].to(self.autoencoder.latents_mean.device) / 127.5 - 1
        image_latent = self.autoencoder.encode(video.to(self.autoencoder.latents_mean.dtype))
        _, decoder = self.autoencoder.decode(image_latent)
        return WorldState(
            transformer=None,
            image_latent=image_latent.to(self.device, torch.float32),
            decoder=decoder,
            text=self._text_context(prompts),
            intrinsics_px=intrinsics_px.to(self.device, torch.float64),
            c2w=torch.eye(4, dtype=torch.float64, device=self.device).repeat(batch, 1, 1),
            generators=torch.stack([generator.get_state() for generator in generators]),
            frame=images.to(self.device),
            chunk_index=torch.zeros(batch, dtype=torch.int64, device=self.device),
            world=self.config.name,
            weights=self.fingerprint,
        ).detached()

    def step(self, state: WorldState, c2w: Tensor) -> tuple[Tensor, WorldState]:
        """Imagine the next chunk along a camera path. On a CPU the rows of a batch are shared out among the cores.

        Args:
            state: where the sessions stand; unchanged afterwards.
            c2w: (B, frames_per_step, 4, 4) camera-to-world poses of the new raw frames, relative to raw frame 0, OpenCV axes, metres.

        Returns:
            frames uint8 (B, frames_per_step, H, W, 3) and the next state.
        """
        c2w = self._checked_poses(state, c2w, self.frames_per_step)
        if len(parts := shares(len(state), self.device)) < 2:
            return self._step(state, c2w)
        frames, states = zip(*side_by_side([partial(self._step, state[part], c2w[part]) for part in parts], self.threads), strict=True)
        return torch.cat(frames), concatenate(states)

    @apart
    @torch.inference_mode()
    def _step(self, state: WorldState, c2w: Tensor) -> tuple[Tensor, WorldState]:
        latents, after = self.generate_latents(state, c2w)
        # with a core to spare the clean pass runs beside the decode, else while the caller thinks
        if begins_early := has_spare_core():
            after.begin()
        frames, after = self.decode(latents, after)
        if not begins_early:
            after.begin()
        return frames, after

    @apart
    @torch.inference_mode()
    def decode(self, latents: Tensor, state: WorldState) -> tuple[Tensor, WorldState]:
        """The second half of `step`: frames of the latents that `generate_latents` returned, and its state with decoder and frame."""
        video, decoder = self.autoencoder.decode(latents.to(self.autoencoder.latents_mean), state.decoder)
        frames = video.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)  # in place: fresh memory costs more
        frames = frames.permute(0, 2, 3, 4, 1).contiguous()
        newest = frames[:, -1].to(self.device, copy=True)  # a view would keep the chunk alive
        return frames, state.changed(decoder=tuple(decoder), frame=newest)

    @apart
    @torch.inference_mode()
    def generate_latents(self, state: WorldState, c2w: Tensor) -> tuple[Tensor, WorldState]:
        """`step` without the decode: new latents (B, C, latents_per_step, h, w); the next state but for decoder and frame."""
        if self.variant != "streaming":
            raise ValueError(f"got a world loaded as the variant {self.variant!r}, which makes clips: wanted 'streaming' for steps")
        c2w = self._checked_poses(state, c2w, self.frames_per_step)
        opens, image = state.transformer is None, state.image_latent
        path = torch.cat([state.c2w[:, None], c2w], 1) if opens else c2w  # before the first chunk the newest pose is raw frame 0
        camera, plucker = camera_inputs(path, state.intrinsics_px, self.config.image_size, self.config.grid, opens)
        cameras = self.transformer.camera_context(camera, plucker, 0 if opens else state.transformer.next_frame)
        noise, generators = self._draw(state, self.latents_per_step)
        if opens:
            noise = torch.cat([image, noise], 2)
        x = sample_chunk(self.transformer, noise, state.text, cameras, state.transformer, image if opens else None, self.config.sigmas)
        commit = partial(self._commit, x, state.text, cameras, state.transformer)
        after = state.changed(
            transformer=Deferred(commit) if self.device.type == "cpu" else commit(),
            c2w=c2w[:, -1].clone(),
            generators=generators,
            chunk_index=state.chunk_index + 1,
        )
        return x[:, :, -self.latents_per_step :], after

    @apart
    @torch.inference_mode()
    def _commit(self, latents: Tensor, text: TextContext, cameras: CameraContext, before: TransformerState | None) -> TransformerState:
        """The clean pass."""
        return self.transformer.commit(latents, text, cameras, before)

    @apart
    @torch.inference_mode()
    def clip_latents(
        self,
        state: WorldState,
        c2w: Tensor,
        sigmas: Sequence[float] | None = None,
        guidance: float = CLIP_GUIDANCE,
        on_step: Callable[[], object] | None = None,
    ) -> Tensor:
        """Imagine a whole clip at once, in many steps: the variants "bidirectional" and "chunk_causal".

        Args:
            state: sessions as `start` opened them; unchanged afterwards.
            c2w: (B, 8 k, 4, 4) poses of the raw frames after the first, as in `step`.
            sigmas: noise levels from 1 to 0, by default those of `sampler.sample_clip`.
            guidance: how far to go from no prompt to the prompt and beyond; 1 for the prompt alone, in half the time.
            on_step: called after every step.

        Returns:
            new latents (B, C, k, h, w). `decode` makes frames of them, 8 of each, all at once or one piece after the other.

        Raises:
            ValueError: the world streams, the sessions have gone on, or the poses do not fit.
        """
        rule = self._clip_rule()
        if state.transformer is not None:
            raise ValueError("got sessions that have gone on; a clip begins at their first frame: wanted them as `start` returns them")
        latents = max(1, c2w.shape[1] // STRIDE)
        c2w = self._checked_poses(state, c2w, STRIDE * latents)
        path = torch.cat([state.c2w[:, None], c2w], 1)
        camera, plucker = camera_inputs(path, state.intrinsics_px, self.config.image_size, self.config.grid)
        cameras = self.transformer.camera_context(camera, plucker)
        noise = torch.cat([state.image_latent, self._draw(state, latents)[0]], 2)
        null = self._text_context([""] * len(state)) if guidance != 1 else None
        x = sample_clip(self.transformer, noise, state.text, cameras, state.image_latent, null, guidance, sigmas, rule, on_step)
        return x[:, :, 1:]

    def clip_steps(self, frames: int, sigmas: Sequence[float] | None = None) -> int:
        """How many steps `clip_latents` takes for `frames` frames after the first: chunks that begin later end later."""
        return len(clip_levels(1 + frames // STRIDE, self.config.transformer.chunk, self._clip_rule(), sigmas)) - 1

    def _clip_rule(self) -> Rule:
        if self.variant == "streaming":
            raise ValueError("got a world that streams; wanted one loaded as the variant 'bidirectional' or 'chunk_causal'")
        return self.variant

    def _text_context(self, prompts: list[str]) -> TextContext:
        features, mask = self.text_encoder.encode(list(prompts))
        return self.transformer.text_context(features.to(self.device), mask.to(self.device))

    def _draw(self, state: WorldState, latents: int) -> tuple[Tensor, Tensor]:
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

    def _checked_poses(self, state: WorldState, c2w: Tensor, frames: int) -> Tensor:
        wanted = (len(state.image_latent), frames, 4, 4)
        if c2w.shape != wanted:
            raise ValueError(f"poses are {tuple(c2w.shape)}; wanted {wanted}")
        c2w = c2w.to(self.device, torch.float64)
        if not c2w.isfinite().all():
            raise ValueError("poses hold NaN or infinite numbers")
        return c2w


def _joined(size: tuple[int, int]) -> str:
    return ", ".join(map(str, size))
