"""What few bits cost: the same episodes imagined in each precision, against the truth and against the wide
world.

Every path goes half of its chunks out and comes back the same way, so that each episode also revisits where
it began. Compared in pairs: all variants see the same rooms, paths and noise, and the interval of a
difference is that of differences within episodes.

| variant            | what it is                                                                                   |
|--------------------|----------------------------------------------------------------------------------------------|
| `wide`             | the world as it is, in the dtype that it is run in                                           |
| `float32`          | the same in float32, where `wide` is in bfloat16: how much any other rounding changes        |
| `fp8`, ...         | the published layers in this precision, weights and activations                              |
| `.., ends wide`    | activations of the sampler's first and last step as they are                                 |
| `.., weights only` | all activations as they are, those of the pass over the clean chunk too                      |
| `.., camera`, ...  | one group of layers alone: which of them hurt                                                |
| `.., all layers`   | the published layers and the camera branch, which the recipe leaves out                      |

Letters: N episodes, B of a batch, K chunks, F = 1 + 24 K frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.model.config import WorldConfig
from sana_wm_env.model.kernels.formats import PRECISIONS, Precision
from sana_wm_env.model.quantize import LAYERS, PUBLISHED, count_bytes, quantize
from sana_wm_env.model.storage.worlds import load_config, resolve_world
from sana_wm_env.model.world import WorldModel

from ..camera import relative_to_first
from ..files import write_json
from ..progress import Progress, progress
from ..rooms import default_intrinsics
from ..rooms.paths import CHUNK_FRAMES
from ..rooms.render import render
from ..settings import check_settings
from . import metrics, report
from .episodes import Episodes, Rooms, draw_episodes, open_sessions
from .poses import compare_paths
from .revisit import revisit_consistency, revisit_pairs, sharpness
from .tracking import GAP, track

FIGURES = {
    # name: (title, digits, whether a difference from `wide` is of interest)
    "psnr_db": ("PSNR, dB", 2, True),
    "psnr_to_wide_db": ("PSNR to wide, dB", 2, False),
    "ssim": ("SSIM", 3, True),
    "sharpness_of_wide": ("sharpness / wide", 3, False),
    "rot_err_deg": ("RotErr °", 2, True),
    "trans_err_m": ("TransErr m", 3, True),
    "revisit_psnr_db": ("revisit PSNR, dB", 2, True),
}


@dataclass(frozen=True)
class PrecisionConfig:
    """Precisions and episodes to measure, and the files of the report."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one, with wide weights"""
    precisions: tuple[Precision, ...] = PRECISIONS
    """which are measured"""
    apart: Precision | None = "nvfp4"
    """the one that is taken apart: steps kept wide, groups of layers alone; None for none"""
    rooms: Rooms = "held-out"
    """rooms that training never saw, or those it saw most"""
    episodes: int = 64
    """one room each; at least 2"""
    chunks: int = 4
    """chunks of 24 frames per episode, an even number: half of them out, half of them back"""
    seed: int = 1000
    """episode i takes the room number seed + i"""
    json: Path = Path("precision.json")
    """the report; a page (.md) of the same name goes beside it"""
    batch: int = 8
    """episodes that are imagined at the same time"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, episodes="[2, inf)", chunks="[2, inf)", seed="[0, inf)", batch="[1, inf)")


@dataclass(frozen=True)
class Variant:
    """A way to run a world: precision None for wide."""

    name: str
    precision: Precision | None = None
    layers: tuple[str, ...] = PUBLISHED
    wide_at: tuple[int, ...] = ()
    dtype: torch.dtype | None = None

    def open(self, world: str, device: str) -> WorldModel:
        """The world, quantised as it is loaded where nothing else is asked."""
        if self.layers == PUBLISHED and not self.wide_at:
            return WorldModel.load(world, device, self.dtype, precision=self.precision)
        assert self.precision is not None
        return quantize(WorldModel.load(world, device, self.dtype), self.precision, self.layers, self.wide_at)


def list_variants(config: PrecisionConfig, world: WorldConfig, dtype: torch.dtype) -> list[Variant]:
    """Lists the variants to compare, `wide` first."""
    variants = [Variant("wide")] + (
        [Variant("float32", dtype=torch.float32)] if dtype != torch.float32 else []
    )
    variants += [Variant(precision, precision) for precision in config.precisions]
    if (chosen := config.apart) is None:
        return variants
    steps = tuple(round(1000 * sigma) for sigma in world.sigmas)
    variants.append(Variant(f"{chosen}, ends wide", chosen, wide_at=(steps[0], steps[-2])))
    variants.append(Variant(f"{chosen}, weights only", chosen, wide_at=steps))
    for group in dict.fromkeys(layer.group for layer in LAYERS.values()):
        variants.append(
            Variant(
                f"{chosen}, {group}", chosen, tuple(n for n, layer in LAYERS.items() if layer.group == group)
            )
        )
    return [*variants, Variant(f"{chosen}, all layers", chosen, tuple(LAYERS))]


def go_and_return(episodes: Episodes) -> Episodes:
    """The same rooms, each path followed by itself backwards: K chunks become 2 K, the last frame has the
    pose of the first.
    """
    path = torch.cat([episodes.path, episodes.path.flip(1)[:, 1:]], 1)
    driven = torch.from_numpy(np.stack([relative_to_first(p) for p in path.cpu().numpy()]))[:, 1:].unflatten(
        1, (-1, CHUNK_FRAMES)
    )
    return replace(episodes, path=path, drives={"world": driven})


@torch.inference_mode()
def imagine(world: WorldModel, episodes: Episodes, batch: int, bar: Progress) -> Tensor:
    """Frames uint8 (N, F, H, W, 3) of all episodes, the true first one in front."""
    size, videos = world.config.image_size, []
    for start in range(0, len(episodes.seeds), batch):
        part = episodes[start : start + batch]
        lens = torch.tensor(default_intrinsics(size))
        first = render(part.scenes, part.path[:, :1], lens.expand(len(part.seeds), 4), size).rgb
        state = open_sessions(world, part, part.path[:, 0], first[:, 0], lens)
        frames = [first]
        for drive in part.drives["world"].unbind(1):
            shown, state = world.step(state, drive)
            frames.append(shown)
            bar.update(len(part.seeds))
        videos.append(torch.cat(frames, 1).cpu())
    return torch.cat(videos)


def measure_videos(video: Tensor, truth: Tensor, wide: Tensor, episodes: Episodes) -> dict[str, np.ndarray]:
    """Figures (N,) of `FIGURES` from videos (N, F, H, W, 3): of a variant, of the exact rendering, of the
    wide world.
    """
    lens = torch.tensor(default_intrinsics((video.shape[2], video.shape[3]))).expand(len(video), 4)
    paths = track(video[:, ::GAP], episodes.scenes, episodes.path[:, 0], lens)
    commanded = [relative_to_first(path) for path in episodes.path.cpu().numpy()]
    errors = [compare_paths(path, c2w[::GAP], "none") for path, c2w in zip(paths, commanded, strict=True)]
    revisits = [
        revisit_consistency(v, revisit_pairs(c2w))["psnr_db"] for v, c2w in zip(video, commanded, strict=True)
    ]

    def mean(figure: Callable[..., Tensor], *videos: Tensor) -> np.ndarray:
        """Of each episode, one after the other: a minute in float64 is much larger than its frames."""
        return np.array([float(figure(*each).mean()) for each in zip(*videos, strict=True)])

    seen, true, known = (v[:, 1:] for v in (video, truth, wide))
    return {
        "psnr_db": mean(metrics.psnr, seen, true),
        "psnr_to_wide_db": mean(metrics.psnr, seen, known),
        "ssim": mean(metrics.ssim, seen, true),
        "sharpness_of_wide": mean(sharpness, seen) / mean(sharpness, known),
        "rot_err_deg": np.array([error.rot_err_deg[1:].mean() for error in errors]),
        "trans_err_m": np.array([error.trans_err_m[1:].mean() for error in errors]),
        "revisit_psnr_db": np.array([np.nan if psnr is None else psnr for psnr in revisits]),
    }


def measure_all(
    config: PrecisionConfig, episodes: Episodes
) -> Iterator[tuple[Variant | None, dict[str, np.ndarray], int]]:
    """Yields each variant with its figures and the bytes of its transformer; first None, the exact
    rendering.
    """
    world = WorldModel.load(config.world, config.device)
    size = world.config.image_size
    lens = torch.tensor(default_intrinsics(size)).expand(len(episodes.seeds), 4)
    truth = render(episodes.scenes, episodes.path, lens, size).rgb.cpu()
    variants, wide = list_variants(config, world.config, world.transformer.dtype), None
    with progress(total=len(variants) * len(truth) * config.chunks, unit="chunk", desc="precision") as bar:
        for variant in variants:
            world = variant.open(config.world, config.device)
            video = imagine(world, episodes, config.batch, bar)
            if wide is None:
                wide = video
                yield None, measure_videos(truth, truth, wide, episodes), 0
            yield (
                variant,
                measure_videos(video, truth, wide, episodes),
                count_bytes(world.transformer, world.transformer.dtype),
            )


def summarise(figures: dict[str, np.ndarray], wide: dict[str, np.ndarray]) -> dict[str, dict]:
    """Figure -> its estimate, and where that is of interest the estimate of its difference from `wide`
    within episodes.
    """
    summary = {}
    for name, (_, _, differs) in FIGURES.items():
        summary[name] = {"value": metrics.estimate_mean(figures[name]).to_dict()}
        if differs:
            summary[name]["minus_wide"] = metrics.estimate_mean(figures[name] - wide[name]).to_dict()
    return summary


def table(rows: dict[str, dict]) -> str:
    """One row per variant: mean and half width of the 95 % interval, and behind a comma the difference from
    `wide`.
    """

    def cell(name: str, figures: dict, variant: str) -> str:
        _, digits, differs = FIGURES[name]
        text = report.cell(metrics.Estimate(**figures[name]["value"]), digits)
        if not differs or variant in ("wide", "truth"):
            return text
        difference = metrics.Estimate(**figures[name]["minus_wide"])
        return (
            text
            if difference.mean is None
            else f"{text}, {'+' * (difference.mean >= 0)}{report.cell(difference, digits)}"
        )

    body = [
        [
            name,
            f"{row['bytes'] / 1e6:.2f}" if row["bytes"] else "-",
            *(cell(f, row["figures"], name) for f in FIGURES),
        ]
        for name, row in rows.items()
    ]
    return report.markdown_table(["variant", "weights, MB", *(title for title, *_ in FIGURES.values())], body)


SAYS = (
    "Means over episodes ± 95 % interval; behind the comma the difference from `wide` within episodes, with "
    "its own interval. `truth` is "
    "the exact rendering: the most there is, and the error of the pose estimator itself. Activations and "
    "weights are rounded exactly as "
    "a GPU would round them, whatever computed this."
)


def run(config: PrecisionConfig) -> int:
    """Measures, prints the table, writes report and page. Two runs on one machine write equal reports."""
    if config.chunks % 2:
        raise ValueError(f"got --chunks {config.chunks}; wanted an even number")
    report.check_report(config.json)
    if "streaming" not in load_config(resolve_world(config.world)).variants:
        raise ValueError(f"got the world {config.world!r}, which does not stream; wanted one that does")
    episodes = go_and_return(
        draw_episodes(config.episodes, config.chunks // 2, config.seed, config.rooms, config.device)
    )
    header = {"config": {k: v for k, v in asdict(config).items() if k != "json"}}
    header |= report.provenance(WorldModel.load(config.world, config.device))
    rows: dict[str, dict] = {}
    wide: dict[str, np.ndarray] = {}
    for variant, figures, size in measure_all(config, episodes):
        wide = figures if variant is None or variant.name == "wide" else wide
        rows[variant.name if variant else "truth"] = {"bytes": size, "figures": summarise(figures, wide)}
    write_json(config.json, header | {"variants": rows})
    text = table(rows)
    report.write_page(
        page := config.json.with_suffix(".md"), "Precision", header, [("Figures", f"{SAYS}\n\n{text}")], []
    )
    print(f"{text}\n{SAYS}\nwrote {config.json}, {page}")
    return 0
