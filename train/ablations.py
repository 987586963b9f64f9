"""Ablations on rooms: networks that differ in one thing each, trained alike, with several seeds.

The paper's questions (tables 3 and 4, section 3.2) asked in small. Key scale and hybrid attention: small
networks from scratch. Camera branches: the trained network, which has learned to look where it is going,
loses a branch and is trained on for a while; from scratch no network of this budget would have come to use
its cameras. Then, of the trained world, the sink and the number of sampling steps. `sana-wm train ablations`
trains what is missing, prints a table and draws it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.evaluation.episodes import draw_episodes
from sana_wm_env.evaluation.fidelity import measure_fidelity
from sana_wm_env.evaluation.metrics import estimate_mean
from sana_wm_env.extras import check_installed
from sana_wm_env.files import write_json, write_text, write_whole
from sana_wm_env.model.config import TransformerConfig
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import STREAMING_SHIFT, STREAMING_SIGMAS, shifted_sigmas
from sana_wm_env.model.world import WorldModel
from sana_wm_env.outputs import Output, check_outputs
from sana_wm_env.progress import progress
from sana_wm_env.settings import check_settings

from .bidirectional import BidirectionalConfig
from .data.latents import LatentClips, Sessions, Window, room_clips
from .export import ExportConfig, assemble
from .flow import FlowStage
from .levels import LEVELS
from .loop import LoopConfig, train

SMALL = TransformerConfig(
    depth=4, width=96, heads=2, in_channels=48, mlp_ratio=2.0, text_width=64, text_tokens=32, input_size=8
)
UCPE, PLUCKER = "out_proj_cam", "plucker_proj"
LEVELS_SCORED = (0.5, 0.7, 0.85, 0.95)
UNDISTILLED_STEPS = (4, 20, 40)


@dataclass(frozen=True)
class Variant:
    """One thing that is different.

    Attributes:
        label: what it is, in words.
        settings: of the network, where it is trained from scratch.
        silent: projections that are zero and stay it: paths that are not there.
        trained: begins with the trained network.
    """

    label: str
    settings: dict = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    trained: bool = False


VARIANTS = {
    "as designed": Variant("keys over sqrt(D S), one softmax block in four"),
    "keys over sqrt(D)": Variant("transitions may grow", {"key_scale": "dim"}),
    "all delta rule": Variant("no softmax block", {"softmax_every": 0}),
    "UCPE + Plücker": Variant("as designed", trained=True),
    "UCPE only": Variant("no Plücker path", silent=(PLUCKER,), trained=True),
    "Plücker only": Variant("no UCPE branch", silent=(UCPE,), trained=True),
    "no camera": Variant("neither", silent=(UCPE, PLUCKER), trained=True),
}


@dataclass(frozen=True)
class AblationsConfig(BidirectionalConfig):
    """Trains networks that differ in one thing each, and measures the trained world's sink and steps.

    Attributes:
        seeds: networks per variant.
        variants: which; all if not given. Several processes may share the work by naming different ones.
        init_from: the trained network, of a stage or a world, that the camera variants begin with.
        further: steps that those are trained on.
        validation: clip files beyond those that are trained on.
        few_step: stage of the trained world that is asked about its sink and its steps.
        undistilled: stage that it was distilled from.
        episodes: held-out episodes for that; 0 for none.
        out: folder of results.
    """

    stage: ClassVar[str] = "ablations"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=300, preview=0, ema=0.98))
    seeds: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)
    init_from: str = "bidirectional"
    further: int = 60
    validation: int = 2
    few_step: str = "distill"
    undistilled: str = "causal"
    episodes: int = 16
    out: Path = Path("runs/ablations")

    def __post_init__(self) -> None:
        super().__post_init__()
        any_number = "[0, inf)"
        check_settings(self, seeds="[1, inf)", further=any_number, validation="[1, inf)", episodes=any_number)
        if unknown := set(self.variants) - set(VARIANTS):
            raise ValueError(f"unknown variants {sorted(unknown)}; known are {', '.join(VARIANTS)}")


class VariantStage(FlowStage):
    """Flow matching of a network in which something is missing."""

    def __init__(self, config: AblationsConfig, variant: Variant):
        self.variant = variant
        super().__init__(replace(config, shards=config.shards + config.validation))
        for name, weight in self.network.named_parameters():
            if any(part in name for part in variant.silent):
                weight.requires_grad_(False).zero_()
        self.held_out = self.clips
        self.clips = LatentClips(
            room_clips(config.runs / "data", {"clips": config.shards}),
            config.size,
            config.text,
            config.loop.device,
        )

    def transformer(self) -> TransformerConfig:
        return super().transformer() if self.variant.trained else replace(SMALL, **self.variant.settings)

    @torch.no_grad()
    def score(self, model: Transformer) -> dict[str, float]:
        """Loss on clips that were not trained on, and what it becomes when the cameras are another clip's."""
        device = self.config.loop.device
        generator = torch.Generator(device).manual_seed(5)
        index = torch.arange(len(self.clips.lengths), len(self.held_out.lengths), device=device)
        clips = len(index)
        sums = {"loss": 0.0, "wrong cameras": 0.0}
        for rows in index.split(32):
            sessions = Sessions(rows, torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool))
            window = self.held_out.window(sessions, self.config.frames)
            swapped = replace(window, camera=window.camera.roll(1, 0), plucker=window.plucker.roll(1, 0))
            noise = torch.randn(window.latents.shape, generator=generator, device=device)
            for sigma in LEVELS_SCORED:
                for name, shown in (("loss", window), ("wrong cameras", swapped)):
                    sums[name] += (
                        len(rows) / clips * self._error(model, shown, noise, sigma) / len(LEVELS_SCORED)
                    )
        return sums

    def _error(self, model: Transformer, window: Window, noise: Tensor, sigma: float) -> float:
        noisy = torch.lerp(window.latents, noise, sigma)
        noisy[:, :, 0] = window.latents[:, :, 0]
        timestep = torch.full((len(noisy), noisy.shape[2]), LEVELS * sigma, device=noisy.device)
        timestep[:, 0] = 0
        error = self.velocity(model, noisy, timestep, window) - (noise - window.latents)
        return error[:, :, 1:].square().mean().item()


def trained_variant(config: AblationsConfig, name: str, seed: int) -> dict:
    """Score of one network, trained if no result is there yet; {"diverged": step} if its gradient became no
    number.
    """
    folder = config.out / f"{name.replace(' ', '-')}-{seed}"
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text())
    variant, loop = VARIANTS[name], replace(config.loop, seed=seed)
    if variant.trained:
        loop = replace(
            loop,
            steps=config.further,
            optim=replace(loop.optim, warmup=min(loop.optim.warmup, config.further // 10)),
        )
    settings = replace(config, init_from=config.init_from if variant.trained else "", sessions=0, loop=loop)
    stage = VariantStage(settings, variant)
    try:
        train(stage, settings.loop, folder)
        result = stage.score(stage.network)
    except FloatingPointError as error:
        result = {"diverged": int(str(error).split(":")[0].removeprefix("step "))}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result)
    return result


def sampling_rows(config: AblationsConfig) -> Iterator[tuple[str, str, list[float]]]:
    """PSNR per held-out episode: of chunk 1 for distilled and undistilled steps, of chunks 8 to 12 with and
    without the sink.
    """
    undistilled = [
        (f"{n} undistilled steps", config.undistilled, shifted_sigmas(n, STREAMING_SHIFT))
        for n in UNDISTILLED_STEPS
    ]
    for label, stage, sigmas in (("4 distilled steps", config.few_step, STREAMING_SIGMAS), *undistilled):
        world = assemble(ExportConfig(config.world, config.runs, stage))
        world = WorldModel(
            replace(world.config, sigmas=sigmas), world.transformer, world.autoencoder, world.text_encoder
        )
        yield label, "PSNR of chunk 1, dB", _psnr(world, config.episodes, 1)[:, 0].tolist()
    for label, sink in (("with the sink", True), ("without the sink", False)):
        world = assemble(ExportConfig(config.world, config.runs, config.few_step))
        other = Transformer(replace(world.config.transformer, sink=sink))
        other.load_state_dict(world.transformer.state_dict())
        world = WorldModel(world.config, other, world.autoencoder, world.text_encoder)
        yield label, "PSNR of chunks 8 to 12, dB", _psnr(world, config.episodes, 12)[:, 7:].mean(1).tolist()


def _psnr(world: WorldModel, episodes: int, chunks: int) -> np.ndarray:
    """(episodes, chunks) on held-out rooms."""
    asked = draw_episodes(episodes, chunks, seed=3000)
    asked = replace(asked, drives={"world": asked.drives["world"]})
    return measure_fidelity(world, asked).figures["world", "psnr_db"]


def table(results: dict[str, list[dict]], sampled: dict[str, tuple[str, list[float]]]) -> str:
    """Both tables as Markdown: mean and standard deviation over seeds; then means over sessions with 95 %
    intervals.

    The sessions are the same ones in every row, so that the difference to the first row of a measurement is
    known better than either.
    """
    lines = [
        "| variant | | begins with | held-out loss | with another clip's cameras |",
        "|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        fallen = [row["diverged"] for row in rows if "diverged" in row]
        if fallen:
            cells = [f"diverged at step {', '.join(map(str, fallen))} ({len(fallen)} of {len(rows)})", ""]
        else:
            cells = [_spread([row[key] for row in rows]) for key in ("loss", "wrong cameras")]
        start = "the trained network" if VARIANTS[name].trained else "nothing"
        lines.append(f"| {name} | {VARIANTS[name].label} | {start} | {cells[0]} | {cells[1]} |")
    if sampled:
        lines += [
            "",
            "| trained world | measured | mean | above the first row of its kind |",
            "|---|---|---|---|",
        ]
        first: dict[str, list[float]] = {}
        for label, (what, values) in sampled.items():
            difference = np.subtract(values, first.setdefault(what, values))
            lines.append(
                f"| {label} | {what} | {_interval(values)} | "
                f"{_interval(difference) if values is not first[what] else ''} |"
            )
    return "\n".join(lines)


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """Bars of the held-out loss with the right and with wrong cameras, a dot per seed."""
    import matplotlib.pyplot as plt

    shown = {name: [row for row in rows if "loss" in row] for name, rows in results.items()}
    shown = {name: rows for name, rows in shown.items() if rows}
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(shown) + 1.2), layout="constrained")
    for offset, key in ((-0.18, "loss"), (0.18, "wrong cameras")):
        values = [[row[key] for row in rows] for rows in shown.values()]
        places = [n + offset for n in range(len(shown))]
        axes.barh(places, [mean(v) for v in values], height=0.34, label=key)
        for place, dots in zip(places, values, strict=True):
            axes.plot(dots, [place] * len(dots), "k.", markersize=4)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.set_xlabel("mean squared error of the velocity, held-out rooms")
    axes.legend()
    write_whole(path, lambda part: figure.savefig(part, dpi=150, format="png"))


def run(config: AblationsConfig) -> None:
    """Trains what is missing, writes ablations.md and ablations.png, and prints the table."""
    check_outputs(Output("--out", config.out, folder=True))
    check_installed("matplotlib", "the picture of the ablations")
    jobs = [(name, seed) for name in config.variants for seed in range(config.seeds)]
    results: dict[str, list[dict]] = {name: [] for name in config.variants}
    for name, seed in progress(jobs, desc="ablations", unit="network"):
        results[name].append(trained_variant(config, name, seed))
    sampled = (
        {label: (what, values) for label, what, values in sampling_rows(config)} if config.episodes else {}
    )
    text = table(results, sampled)
    write_text(config.out / "ablations.md", text + "\n")
    plot(results, config.out / "ablations.png")
    print(text)


def _interval(values: Sequence[float] | np.ndarray) -> str:
    result = estimate_mean(np.asarray(values))
    if result.mean is None or result.high is None:
        return f"{result.mean:.2f}"
    return f"{result.mean:.2f} ± {result.high - result.mean:.2f}"


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"
