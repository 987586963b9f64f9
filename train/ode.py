"""Stage 4: few steps by regression on the teacher's trajectories, before the student has to live on its own
past.

The released `ode_t43` recipe: a many-step teacher integrates from noise to a clip, five snapshots of its way
are kept, and the chunk-causal student learns to jump from any of them to the end. Every chunk draws its own
snapshot.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_wm_env.files import replacing
from sana_wm_env.model.config import preset
from sana_wm_env.model.network.execution import chunk_sizes
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import frame_timesteps, shift, with_image
from sana_wm_env.model.storage.tensors import read_tensors
from sana_wm_env.progress import progress
from sana_wm_env.settings import check_settings

from .data.latents import LatentClips, Window
from .flow import FlowStage
from .loop import LoopConfig, load_average, train
from .precision import prepare_network
from .processes import barrier, rank, start_processes, world_size
from .streaming import StreamingConfig

ODE_SIGMAS = (1.0, 0.967, 0.908, 0.764, 0.0)
PER_FILE = 16


@dataclass(frozen=True)
class OdeConfig(StreamingConfig):
    """Trains few-step sampling on the trajectories of a many-step teacher, which are written first.

    Attributes:
        teacher: stage that draws the trajectories, under the bidirectional rule.
        trajectories: how many; a multiple of 16.
        teacher_steps: Euler steps of the teacher; snapshots are taken nearest to `sigmas`.
        guidance: w of cond + w (cond - uncond).
    """

    stage: ClassVar[str] = "ode"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=300))
    init_from: str = "causal"
    sigmas: tuple[float, ...] = ODE_SIGMAS
    teacher: str = "bidirectional"
    trajectories: int = 512
    teacher_steps: int = 60
    guidance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, trajectories="[16, inf)", teacher_steps="[1, inf)", guidance="[0, inf)")


@torch.inference_mode()
def teacher_trajectory(
    teacher: Transformer,
    clips: LatentClips,
    window: Window,
    noise: Tensor,
    sigmas: tuple[float, ...],
    steps: int,
    guidance: float,
) -> Tensor:
    """Snapshots (B, K, C, T, h, w) of the teacher's way from noise (B, C, T, h, w) to a clip, at K levels,
    noisiest first.

    The schedule has flow shift 9.95. Levels are met at the grid point nearest to them. The first frame of
    `window` is given.
    """
    text, image = teacher.text_context(window.text, window.text_mask), window.latents[:, :, :1]
    null = teacher.text_context(clips.null.expand(len(noise), -1, -1), clips.null_mask.expand(len(noise), -1))
    cameras = teacher.camera_context(window.camera, window.plucker)
    grid = [float(shift(1 - i / steps, 9.95)) for i in range(steps + 1)]
    wanted = [min(range(steps + 1), key=lambda i, level=level: abs(grid[i] - level)) for level in sigmas]
    x, snapshots = with_image(noise, image), {}
    for i in range(steps + 1):
        if i in wanted:
            snapshots[i] = x
        if i < steps:
            t = frame_timesteps(grid[i], x, image)
            velocity = teacher(x, t, text, cameras)
            if guidance:
                velocity = velocity + guidance * (velocity - teacher(x, t, null, cameras))
            x = with_image(x - (grid[i] - grid[i + 1]) * velocity, image)
    return torch.stack([snapshots[i] for i in wanted], 1)


def write_trajectories(folder: Path, config: OdeConfig, clips: LatentClips) -> None:
    """Writes the files of trajectories that are not there yet, shared among the processes.

    A file holds PER_FILE records: latents (N, K, T, C, h, w) half precision, camera (N, T, 20), plucker (N,
    48, T, h, w), text, text_mask.
    """
    device = config.loop.device
    if config.trajectories % PER_FILE:
        raise ValueError(
            f"{config.trajectories} trajectories do not fill files of {PER_FILE}; give a multiple"
        )
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(config.trajectories // PER_FILE) if not _file(folder, index).exists()]
    barrier()
    if missing:
        teacher = Transformer(preset(config.world))
        teacher.load_state_dict(load_average(config.runs / config.world / config.teacher))
        prepare_network(teacher, config.loop.precision, device).eval().requires_grad_(False)
        for index in progress(missing[rank() :: world_size()], desc="teacher's trajectories", unit="file"):
            generator = torch.Generator(device).manual_seed(1_000_000_007 + index)
            window = clips.window(
                clips.draw(PER_FILE, config.frames, generator, text_drop=0.0), config.frames
            )
            noise = torch.randn(window.latents.shape, generator=generator, device=device)
            way = teacher_trajectory(
                teacher, clips, window, noise, config.sigmas, config.teacher_steps, config.guidance
            )
            record = {
                "latents": way.transpose(2, 3).half(),
                "camera": window.camera,
                "plucker": window.plucker,
                "text": window.text,
                "text_mask": window.text_mask,
            }
            with replacing(_file(folder, index)) as part:
                save_file({name: value.cpu().contiguous() for name, value in record.items()}, part)
    barrier()


class OdeStage(FlowStage):
    rule = "chunk_causal"
    config: OdeConfig

    def __init__(self, config: OdeConfig):
        super().__init__(config)
        folder, count = config.runs / config.world / "trajectories", config.trajectories // PER_FILE
        write_trajectories(folder, config, self.clips)
        names = ("latents", "camera", "plucker", "text", "text_mask")
        anew = "delete it, it is written anew"
        parts = [read_tensors(_file(folder, index), anew, names) for index in range(count)]
        self.records = {
            name: torch.cat([part[name] for part in parts]).to(config.loop.device) for name in parts[0]
        }

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device, sigmas = generator.device, torch.tensor(self.config.sigmas, device=generator.device)
        row = torch.randint(len(self.records["latents"]), (batch,), generator=generator, device=device)
        record = {name: value[row] for name, value in self.records.items()}
        way = record["latents"].float().transpose(2, 3)  # (B, K, C, T, h, w)
        clean = way[:, -1]
        sizes = torch.tensor(chunk_sizes(way.shape[3], self.network.config.chunk), device=device)
        level = torch.randint(
            len(sigmas), (batch, len(sizes)), generator=generator, device=device
        ).repeat_interleave(sizes, 1)  # (B, T)
        level[:, 0] = len(sigmas) - 1  # the given frame is clean
        noisy = way.transpose(1, 3)[
            torch.arange(batch, device=device)[:, None], torch.arange(level.shape[1], device=device), :, level
        ]
        noisy = noisy.transpose(1, 2)  # (B, T, C, h, w) -> (B, C, T, h, w)
        sigma = sigmas[level]
        window = Window(clean, record["camera"], record["plucker"], record["text"], record["text_mask"])
        velocity = self.velocity(self.network, noisy, 1000 * sigma, window)
        predicted = noisy - sigma[:, None, :, None, None] * velocity
        error = (predicted - clean).square().mean((1, 3, 4))  # (B, T)
        scored = (sigma > 0).float()
        return (error * scored).sum() / scored.sum().clamp(min=1), {}


def _file(folder: Path, index: int) -> Path:
    return folder / f"trajectories-{index:05d}.safetensors"


def run(config: OdeConfig) -> None:
    """Writes the teacher's trajectories, then trains to config.loop.steps, or resumes."""
    start_processes()
    train(OdeStage(config), config.loop, config.home)
