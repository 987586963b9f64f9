"""How close the variants of a world come to the truth, in held-out rooms: python tests/benchmarks/variants.py
[--sheet F.png].

The same rooms, paths and noise for each variant, so that differences are paired. `--other` takes the
transformer of the clip variants from a stage of a training run, to compare what is bundled with what else was
trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from sana_wm_env.commands.generate import Schedule, imagined
from sana_wm_env.contact_sheet import contact_sheet
from sana_wm_env.evaluation import metrics
from sana_wm_env.evaluation.episodes import Episodes, draw_episodes
from sana_wm_env.model.clip import ClipModel
from sana_wm_env.model.config import VARIANTS, Variant
from sana_wm_env.model.sampler import CLIP_SHIFT, shifted_sigmas
from sana_wm_env.model.world import WorldModel
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.render import render
from sana_wm_env.train.export import ExportConfig, trained


@dataclass(frozen=True)
class VariantsConfig:
    """What is compared."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    variants: tuple[Variant, ...] = VARIANTS
    """which of its variants; differences are those to the first"""
    episodes: int = 4
    """held-out rooms, one episode each; at least 2"""
    chunks: int = 1
    """chunks of 24 frames per episode; clips of one chunk are the same under both clip variants"""
    seed: int = 1000
    """episode i takes the held-out room number seed + i"""
    steps: int = 20
    """denoising steps of the clip variants"""
    guidance: tuple[float, ...] = (1.0, 3.0)
    """of the clip variants"""
    other: tuple[str, ...] = ()
    """stages of runs/WORLD whose weights make clips as well, such as bidirectional"""
    runs: Path = Path("runs")
    """folder of all runs"""
    sheet: Path | None = None
    """draw the last frame of each chunk of the first episode, beside the truth, as .png"""


def worlds(config: VariantsConfig) -> Iterator[tuple[str, WorldModel | ClipModel]]:
    """The world as each of its variants, and the clip variants with other weights: label and world."""
    settings = WorldModel.load(config.world).config
    for variant in config.variants:
        kind = WorldModel if variant == "streaming" else ClipModel
        world = kind.load(config.world, variant=variant)
        yield variant, world
        for stage in config.other if variant != "streaming" else ():
            network = trained(ExportConfig(settings.name, config.runs), stage)
            yield (
                f"{variant}, weights of {stage}",
                ClipModel(settings, network, world.autoencoder, world.text_encoder, variant),
            )


def clip(world: WorldModel | ClipModel, episodes: Episodes, truth: Tensor, schedule: Schedule) -> Tensor:
    """Frames uint8 (N, 24 K, H, W, 3) that a world imagines behind the first true ones."""
    intrinsics = torch.tensor(default_intrinsics(world.config.image_size)).expand(len(truth), 4)
    generators = [torch.Generator().manual_seed(seed) for seed in episodes.seeds]
    state = world.start(truth[:, 0], intrinsics, episodes.scenes.captions, generators)
    drive = episodes.drives["world"].flatten(1, 2)
    path = torch.cat([torch.eye(4, dtype=drive.dtype).expand(len(truth), 1, 4, 4), drive], 1)
    return torch.cat(list(imagined(world, state, path, schedule)), 1)


def main(config: VariantsConfig) -> None:
    """Prints PSNR per chunk, and the paired difference to the first variant."""
    episodes = draw_episodes(config.episodes, config.chunks, config.seed)
    size = WorldModel.load(config.world).config.image_size
    intrinsics = torch.tensor(default_intrinsics(size)).expand(config.episodes, 4)
    truth = render(episodes.scenes, episodes.path, intrinsics, size).rgb
    rows, labels, first = [truth[0, 24::24].numpy()], ["truth"], None

    def scores(frames: Tensor) -> Tensor:  # (N, 24 K, H, W, 3) -> (N, K)
        return metrics.psnr(frames, truth[:, 1:]).unflatten(1, (config.chunks, -1)).mean(2)

    def show(label: str, values: Tensor) -> None:
        cells = [metrics.estimate_mean(column.numpy()) for column in values.T]
        print(
            f"{label:<60}" + "".join(f"{c.mean:7.2f} ±{(c.high or c.mean) - c.mean:5.2f}" for c in cells),
            flush=True,
        )

    show("still", scores(truth[:, :1].expand_as(truth[:, 1:])))
    for label, world in worlds(config):
        streams = world.variant == "streaming"
        for guidance in (1.0,) if streams else config.guidance:
            sigmas = world.config.sigmas if streams else shifted_sigmas(config.steps, CLIP_SHIFT)
            frames = clip(world, episodes, truth, Schedule(sigmas, guidance))
            values = scores(frames)
            name = f"{label}, {len(sigmas) - 1} steps" + ("" if streams else f", guidance {guidance:g}")
            show(name, values)
            if first is None:
                first = values
            else:
                show("  minus the first", values - first)
            rows.append(frames[0, 23::24].numpy())
            labels.append(name)
    if config.sheet:
        columns = [f"{1.5 * (k + 1):g} s" for k in range(config.chunks)]
        contact_sheet(rows, labels, columns).save(config.sheet)
        print(f"wrote {config.sheet}")


if __name__ == "__main__":
    main(tyro.cli(VariantsConfig, config=(tyro.conf.OmitArgPrefixes,)))
