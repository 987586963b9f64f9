"""The world model: text encoder, autoencoder, transformer and sampler behind two pure functions, `start` and `step`.

A `WorldModel` owns weights and nothing else. What a session is lies in the immutable `WorldState` that goes in and comes out.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .cameras import STRIDE, camera_inputs
from .checkpoint import CheckpointError, load_config, load_transformer, resolve_world
from .config import WorldConfig
from .parts import AnyAutoencoder, AnyTextEncoder, open_autoencoder, open_text_encoder
from .sampler import sample_chunk
from .state import WorldState as WorldState
from .transformer import Transformer


class WorldModel:
    """Camera-controlled video world (paper sections 3 and 4), batch-first: every row of a batch is a session of its own.

    One step imagines one chunk: `latents_per_step` latent frames, `frames_per_step` RGB frames.
    """

    def __init__(self, config: WorldConfig, transformer: Transformer, autoencoder: AnyAutoencoder, text_encoder: AnyTextEncoder) -> None:
        self.config = config
        self.transformer = transformer.eval().requires_grad_(False)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.text_encoder = text_encoder

    @classmethod
    def load(
        cls,
        world: str | Path = "rooms",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        offload: Mapping[str, str] | None = None,
    ) -> "WorldModel":
        """Load a bundled world by name, a local one by folder, or a downloaded one by repository.

        Args:
            world: which one, see `resolve_world`.
            device: where the transformer runs, and whatever `offload` does not name.
            dtype: of all weights.
            offload: another device for "autoencoder" or "text", such as {"autoencoder": "cuda:1", "text": "cpu"}; "text": "release" runs
                the text encoder on `device` and frees its memory after every start.

        Raises:
            CheckpointError: something is missing or does not fit; it says what, before any weight is read where it can.
            ImportError: the world needs diffusers or transformers, and they are not installed.
            ValueError: `offload` names something else.
        """
        places = {"autoencoder": str(device), "text": str(device), **(offload or {})}
        if set(places) != {"autoencoder", "text"} or places["autoencoder"] == "release":
            raise ValueError(f"got offload={offload!r}; wanted a device for 'autoencoder' or 'text', or 'text': 'release'")
        release = places["text"] == "release"
        folder = resolve_world(world)
        config = load_config(folder)
        try:
            text_encoder = open_text_encoder(folder, config, dtype, device if release else places["text"], keep=not release)
            autoencoder = open_autoencoder(folder, config, dtype, places["autoencoder"])
        except CheckpointError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
        return cls(config, load_transformer(folder, config, dtype, device), autoencoder, text_encoder)

    @property
    def device(self) -> torch.device:
        return self.transformer.pos_embed.device

    @property
    def latents_per_step(self) -> int:
        return self.config.transformer.chunk

    @property
    def frames_per_step(self) -> int:
        return STRIDE * self.latents_per_step

    @cached_property
    def fingerprint(self) -> str:
        """What tells worlds apart: SHA-256 over the configuration and the weights, of large tensors an even sample.

        Sampled because it is taken whenever a world is loaded; it finds another training, not a tampered file.
        """
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
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
        decoder = tuple(t.to(self.autoencoder.latents_mean.device) for t in state.decoder)
        return replace(state.map(lambda t: t.to(self.device)), decoder=decoder, generators=state.generators.cpu())

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
        features, mask = self.text_encoder.encode(list(prompts))
        return WorldState(
            transformer=None,
            image_latent=image_latent.to(self.device, torch.float32),
            decoder=decoder,
            text=self.transformer.text_context(features.to(self.device), mask.to(self.device)),
            intrinsics_px=intrinsics_px.to(self.device, torch.float64),
            c2w=torch.eye(4, dtype=torch.float64, device=self.device).repeat(batch, 1, 1),
            generators=torch.stack([generator.get_state() for generator in generators]),
            frame=images.to(self.device),
            chunk_index=torch.zeros(batch, dtype=torch.int64, device=self.device),
            world=self.config.name,
            weights=self.fingerprint,
        ).detached()

    @torch.inference_mode()
    def step(self, state: WorldState, c2w: Tensor) -> tuple[Tensor, WorldState]:
        """Imagine the next chunk along a camera path.

        Args:
            state: where the sessions stand; unchanged afterwards.
            c2w: (B, frames_per_step, 4, 4) camera-to-world poses of the new raw frames, relative to raw frame 0, OpenCV axes, metres.

        Returns:
            frames uint8 (B, frames_per_step, H, W, 3) and the next state.
        """
        return self.decode(*self.generate_latents(state, c2w))

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: WorldState) -> tuple[Tensor, WorldState]:
        """The second half of `step`: frames of the latents that `generate_latents` returned, and its state with decoder and frame."""
        video, decoder = self.autoencoder.decode(latents.to(self.autoencoder.latents_mean), state.decoder)
        frames = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        frames = frames.permute(0, 2, 3, 4, 1).contiguous()
        newest = frames[:, -1].to(self.device, copy=True)  # a view would keep the chunk alive
        return frames, replace(state, decoder=tuple(decoder), frame=newest)

    @torch.inference_mode()
    def generate_latents(self, state: WorldState, c2w: Tensor) -> tuple[Tensor, WorldState]:
        """`step` without the decode: new latents (B, C, latents_per_step, h, w); the next state but for decoder and frame."""
        c2w = self._checked_poses(state, c2w)
        opens, image = state.transformer is None, state.image_latent
        path = torch.cat([state.c2w[:, None], c2w], 1) if opens else c2w  # before the first chunk the newest pose is raw frame 0
        camera, plucker = camera_inputs(path, state.intrinsics_px, self.config.image_size, self.config.grid, opens)
        cameras = self.transformer.camera_context(camera, plucker, 0 if opens else state.transformer.next_frame)
        noise, generators = self._draw(state)
        if opens:
            noise = torch.cat([image, noise], 2)
        x = sample_chunk(self.transformer, noise, state.text, cameras, state.transformer, image if opens else None, self.config.sigmas)
        after = replace(
            state,
            transformer=self.transformer.commit(x, state.text, cameras, state.transformer),
            c2w=c2w[:, -1].clone(),
            generators=generators,
            chunk_index=state.chunk_index + 1,
        )
        return x[:, :, -self.latents_per_step :], after

    def _draw(self, state: WorldState) -> tuple[Tensor, Tensor]:
        """Noise (B, C, latents_per_step, h, w) and the generators' next states.

        Drawn slot by slot on the CPU, so that a session's noise depends neither on its neighbours nor on the device.
        """
        shape = (self.config.transformer.in_channels, self.latents_per_step, *self.config.grid)
        drawn, states, generator = [], [], torch.Generator()
        for row in state.generators.cpu():
            generator.set_state(row.clone())
            drawn.append(torch.randn(shape, generator=generator))
            states.append(generator.get_state())
        return torch.stack(drawn).to(self.device), torch.stack(states)

    def _checked_poses(self, state: WorldState, c2w: Tensor) -> Tensor:
        wanted = (len(state.image_latent), self.frames_per_step, 4, 4)
        if c2w.shape != wanted:
            raise ValueError(f"poses are {tuple(c2w.shape)}; wanted {wanted}")
        c2w = c2w.to(self.device, torch.float64)
        if not c2w.isfinite().all():
            raise ValueError("poses hold NaN or infinite numbers")
        return c2w


def _joined(size: tuple[int, int]) -> str:
    return ", ".join(map(str, size))
