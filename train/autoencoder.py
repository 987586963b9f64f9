"""Stage 1: the causal video autoencoder, on groups of frames from rooms or from your own videos."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from sana_wm_env.model.codecs.autoencoder import TEMPORAL_STRIDE, Autoencoder, AutoencoderConfig, group
from sana_wm_env.model.world import WorldModel
from sana_wm_env.settings import check_settings

from .data.packed import packed_tars, read_packed
from .data.rooms import clip_file, read_clip_file, write_clip_files
from .loop import LoopConfig, train
from .precision import compute_dtype
from .processes import rank, start_processes
from .stage import Stage

NOISE = 0.1


@dataclass(frozen=True)
class AutoencoderStageConfig:
    """Trains the autoencoder of a world; see LoopConfig for what all stages share.

    Attributes:
        world: name of the world; the run lives in runs/WORLD/autoencoder.
        runs: folder of all runs.
        data: folder of your own packed clips (`sana-wm data pack`), all of which are kept in memory; rooms if
            not given.
        start_from: world, by bundled name or by folder, whose autoencoder this one begins with; with --steps
            0 it is taken as it is.
        shards: clip files of rooms to train on, rendered into runs/data where they are missing.
        size: height and width of the frames.
    """

    world: str = "rooms"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000))
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    runs: Path = Path("runs")
    data: Path | None = None
    start_from: str = ""
    shards: int = 64
    size: tuple[int, int] = (64, 64)

    def __post_init__(self) -> None:
        check_settings(self, shards="[0, inf)", size="[8, 4096]")


class AutoencoderStage(Stage):
    """Reconstruction of three neighbouring groups of 8 frames, the first of them a single repeated frame half
    of the time.

    A little noise on the latents, relative to their spread, keeps the decoder smooth: what the transformer
    writes will never be exact.
    """

    model: Autoencoder

    def __init__(self, config: AutoencoderStageConfig):
        torch.manual_seed(config.loop.seed)
        self.config = config
        self.model = _initial_autoencoder(config).to(config.loop.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch declares no memory_format
        self.clips = _own_clips(config.data, config.size) if config.data else _room_clips(config)
        self.dtype = compute_dtype(config.loop.precision, config.loop.device)
        if config.loop.compile:
            self.model.encoder.compile()
            self.model.decoder.compile()

    def draw(self, batch: int, generator: torch.Generator, groups: int = 3) -> Tensor:
        """(batch, groups, 24, H, W) in [-1, 1] from random clips and places."""
        device = self.config.loop.device
        rows = []
        for _ in range(batch):
            clips = self.clips[int(torch.randint(len(self.clips), (), generator=generator, device=device))]
            latest = clips.shape[1] - TEMPORAL_STRIDE * groups
            clip, start, still = (
                int(torch.randint(high, (), generator=generator, device=device))
                for high in (len(clips), latest + 1, 2)
            )
            frames = clips[clip, start : start + TEMPORAL_STRIDE * groups]
            if still:
                frames = torch.cat(
                    [
                        frames[TEMPORAL_STRIDE - 1 : TEMPORAL_STRIDE].expand(TEMPORAL_STRIDE, -1, -1, -1),
                        frames[TEMPORAL_STRIDE:],
                    ]
                )
            rows.append(frames)
        video = torch.stack(rows).to(device).permute(0, 4, 1, 2, 3)  # (B, 3, F, H, W)
        return group(video.float() / 127.5 - 1)

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Returns the reconstruction error (a scalar) of `batch` triples of groups; PSNR and spread to
        log.
        """
        groups = self.draw(batch, generator)
        with self.narrow():
            raw = self.model.encode_groups(groups).float()
        spread = raw.detach().std((0, 1, 3, 4), keepdim=True)
        noisy = raw + NOISE * spread * torch.randn(raw.shape, generator=generator, device=raw.device)
        with self.narrow():
            output = self.model.decode_groups(noisy, torch.cat([noisy[:, :1], noisy[:, :-1]], 1)).float()
        error = output - groups
        squared = error.square().mean()
        # the pull on the mean square of the latents fixes their scale, which the reconstruction leaves free
        loss = squared + 0.2 * error.abs().mean() + 1e-4 * (raw.square().mean() - 1).square()
        return loss, {"psnr": (10 * torch.log10(4 / squared)).item(), "latent_std": raw.std().item()}

    def narrow(self) -> torch.autocast:
        """Convolutions in the dtype of the loop's `precision`."""
        return torch.autocast(
            torch.device(self.config.loop.device).type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    @torch.no_grad()
    def preview(self, model: Autoencoder) -> Tensor:
        """Four clips: the true last frame of each group above its reconstruction."""
        groups = self.draw(4, torch.Generator(self.config.loop.device).manual_seed(1))
        raw = model.encode_groups(groups)
        output = model.decode_groups(raw, torch.cat([raw[:, :1], raw[:, :-1]], 1)).clamp(-1, 1)
        pairs = torch.stack([groups, output], 1)[:, :, :, -3:]  # (4, 2, T, 3, H, W)
        picture = pairs.permute(3, 0, 1, 4, 2, 5).flatten(1, 3).flatten(2, 3)  # (3, 4*2*H, T*W)
        return ((picture + 1) * 127.5).round().to(torch.uint8).cpu()


def _initial_autoencoder(config: AutoencoderStageConfig) -> Autoencoder:
    """A new autoencoder, or the one of another world."""
    if not config.start_from:
        return Autoencoder(config.model)
    autoencoder = cast(Autoencoder, WorldModel.load(config.start_from).autoencoder)
    return autoencoder.train().requires_grad_(True)


def _room_clips(config: AutoencoderStageConfig) -> list[Tensor]:
    """Frames (32, F, H, W, 3) of every clip file, rendered if need be."""
    folder = config.runs / "data"
    write_clip_files(folder, "clips", config.shards, config.size, config.loop.device)
    return [read_clip_file(clip_file(folder, "clips", index)).frames for index in range(config.shards)]


def _own_clips(folder: Path, size: tuple[int, int]) -> list[Tensor]:
    """Frames (1, F, H, W, 3) of every packed clip. ValueError if they have another size than asked for."""
    clips = [torch.from_numpy(clip.frames)[None] for tar in packed_tars(folder) for clip in read_packed(tar)]
    if wrong := {tuple(clip.shape[2:4]) for clip in clips} - {tuple(size)}:
        (height, width), *_ = wrong
        raise ValueError(
            f"got clips of {height} x {width} pixels in {folder}; wanted {size[0]} x {size[1]}: add --size "
            f"{height} {width}"
        )
    return clips


def run(config: AutoencoderStageConfig) -> None:
    """Trains, then measures the normalisation of the latents and writes the result beside the checkpoint."""
    start_processes()
    stage, out = AutoencoderStage(config), config.runs / config.world / "autoencoder"
    train(stage, config.loop, out)
    model = stage.model
    if rank() > 0:
        return
    if config.loop.steps:  # what was taken as it is keeps its normalisation
        _normalise(stage, model)
    torch.save({"config": asdict(model.config), "weights": model.state_dict()}, result_path(out))


@torch.no_grad()
def _normalise(stage: AutoencoderStage, model: Autoencoder) -> None:
    """Measures the spread of the latents on 256 groups."""
    groups = stage.draw(256, torch.Generator(stage.config.loop.device).manual_seed(2), groups=1)
    model.fit_normalisation(torch.cat([model.encode_groups(part) for part in groups.split(16)]))


def result_path(out: Path) -> Path:
    return Path(out) / "autoencoder.pt"


def load_trained(out: Path, device: str) -> Autoencoder:
    """Loads the autoencoder that the stage left in its folder. Raises FileNotFoundError that says what to run
    first.
    """
    if not result_path(out).exists():
        raise FileNotFoundError(f"{result_path(out)} does not exist: run `sana-wm train autoencoder` first")
    saved = torch.load(result_path(out), map_location=device, weights_only=True)
    model = Autoencoder(AutoencoderConfig(**saved["config"]))
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch declares no memory_format
    model.load_state_dict(saved["weights"])
    return model.eval().requires_grad_(False)
