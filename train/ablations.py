"""What the design's choices are worth, on rooms: small networks that differ in one thing each, trained alike, with several seeds.

The paper's questions (tables 3 and 4, section 3.2) asked in small: camera branches, key scale, hybrid attention; then, of the trained
world, the sink and the number of sampling steps. `sana-wm train ablations` trains what is missing, prints a table and draws it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sana_wm_env.evaluation.fidelity import measure, plan
from sana_wm_env.model.config import TransformerConfig
from sana_wm_env.model.sampler import STREAMING_SIGMAS, shift
from sana_wm_env.model.transformer import Transformer
from sana_wm_env.model.world import WorldModel

from .bidirectional import BidirectionalConfig, FlowStage
from .latents import LatentClips, Sessions, Window, room_clips
from .levels import LEVELS
from .loop import LoopConfig, train
from .pack import PackConfig, assemble

SMALL = TransformerConfig(depth=4, width=96, heads=2, in_channels=48, mlp_ratio=2.0, text_width=64, text_tokens=32, input_size=8)
UCPE, PLUCKER = "out_proj_cam", "plucker_proj"
LEVELS_SCORED = (0.5, 0.7, 0.85, 0.95)
UNDISTILLED_STEPS = 20


@dataclass(frozen=True)
class Variant:
    """One thing that is different: settings of the network, and projections that stay at zero, as they begin: paths that are not there."""

    says: str
    settings: dict = field(default_factory=dict)
    silent: tuple[str, ...] = ()


VARIANTS = {
    "as designed": Variant("UCPE and Plücker, keys over sqrt(D S), one softmax block in four"),
    "UCPE only": Variant("no Plücker path", silent=(PLUCKER,)),
    "Plücker only": Variant("no UCPE branch", silent=(UCPE,)),
    "no camera": Variant("neither", silent=(UCPE, PLUCKER)),
    "keys over sqrt(D)": Variant("transitions may grow", {"key_scale": "dim"}),
    "all delta rule": Variant("no softmax block", {"softmax_every": 0}),
}


@dataclass(frozen=True)
class AblationsConfig(BidirectionalConfig):
    """Trains small networks that differ in one thing each, and asks the trained world about its sink and its steps.

    Attributes:
        seeds: networks per variant.
        variants: which; all if not given. Several processes may share the work by naming different ones.
        validation: last shards of clips, which are not trained on.
        few_step: stage of the trained world that is asked about its sink and its steps.
        episodes: held-out episodes for that; 0 for none.
        out: folder of results.
    """

    stage: ClassVar[str] = "ablations"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=300, preview=0, ema=0.98))
    seeds: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)
    validation: int = 8
    few_step: str = "distill"
    episodes: int = 16
    out: Path = Path("runs/ablations")

    def __post_init__(self) -> None:
        if unknown := set(self.variants) - set(VARIANTS):
            raise ValueError(f"unknown variants {sorted(unknown)}; known are {', '.join(VARIANTS)}")


class VariantStage(FlowStage):
    """Flow matching of a small network in which something is missing, on all shards but the last ones."""

    def __init__(self, config: AblationsConfig, variant: Variant):
        self.variant = variant
        super().__init__(config)
        for name, weight in self.network.named_parameters():
            if any(part in name for part in variant.silent):
                assert not weight.any(), f"{name} should begin at zero"
                weight.requires_grad_(False)
        self.held_out = self.clips
        shards = {"clips": config.shards - config.validation}
        self.clips = LatentClips(room_clips(config.runs / "data", shards), config.size, config.text, config.loop.device)

    def transformer(self) -> TransformerConfig:
        return replace(SMALL, **self.variant.settings)

    @torch.no_grad()
    def score(self, model: Transformer, most: int = 128) -> dict[str, float]:
        """Loss on clips that were not trained on, and what it becomes when the cameras are another clip's."""
        device = self.config.loop.device
        generator = torch.Generator(device).manual_seed(5)
        index = torch.arange(len(self.clips.lengths), len(self.held_out.lengths), device=device)[-most:]
        clips = len(index)
        sums = {"loss": 0.0, "wrong cameras": 0.0}
        for rows in index.split(32):
            sessions = Sessions(rows, torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool))
            window = self.held_out.window(sessions, self.config.frames)
            swapped = replace(window, camera=window.camera.roll(1, 0), plucker=window.plucker.roll(1, 0))
            noise = torch.randn(window.latents.shape, generator=generator, device=device)
            for sigma in LEVELS_SCORED:
                for name, shown in (("loss", window), ("wrong cameras", swapped)):
                    sums[name] += len(rows) / clips * self._error(model, shown, noise, sigma) / len(LEVELS_SCORED)
        return sums

    def _error(self, model: Transformer, window: Window, noise: Tensor, sigma: float) -> float:
        noisy = torch.lerp(window.latents, noise, sigma)
        noisy[:, :, 0] = window.latents[:, :, 0]
        timestep = torch.full((len(noisy), noisy.shape[2]), LEVELS * sigma, device=noisy.device)
        timestep[:, 0] = 0
        error = self.velocity(model, noisy, timestep, window) - (noise - window.latents)
        return error[:, :, 1:].square().mean().item()


def trained_variant(config: AblationsConfig, name: str, seed: int) -> dict:
    """Score of one network, trained if no result is there yet; {"diverged": step} if its gradient became no number."""
    folder = config.out / f"{name.replace(' ', '-')}-{seed}"
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text())
    own = replace(config, init_from="", sessions=0, loop=replace(config.loop, seed=seed))
    stage = VariantStage(own, VARIANTS[name])
    try:
        result = stage.score(train(stage, own.loop, folder))
    except FloatingPointError as error:
        result = {"diverged": int(str(error).split(":")[0].removeprefix("step "))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return result


def sampling_rows(config: AblationsConfig) -> Iterator[tuple[str, str, list[float]]]:
    """PSNR per held-out episode: of chunk 1 for distilled and undistilled steps, of chunks 8 to 12 with and without the sink."""
    many = tuple(float(shift(1 - i / UNDISTILLED_STEPS, 8.0)) for i in range(UNDISTILLED_STEPS + 1))
    for label, stage, sigmas in (
        ("4 distilled steps", config.few_step, STREAMING_SIGMAS),
        ("4 undistilled steps", "causal", STREAMING_SIGMAS),
        (f"{UNDISTILLED_STEPS} undistilled steps", "causal", many),
    ):
        world = assemble(PackConfig(config.world, config.runs, stage))
        world.config = replace(world.config, sigmas=sigmas)
        yield label, "PSNR of chunk 1, dB", _psnr(world, config.episodes, 1)[:, 0].tolist()
    for label, sink in (("with the sink", True), ("without the sink", False)):
        world = assemble(PackConfig(config.world, config.runs, config.few_step))
        other = Transformer(replace(world.config.transformer, sink=sink))
        other.load_state_dict(world.transformer.state_dict())
        world.transformer = other.eval().requires_grad_(False)
        yield label, "PSNR of chunks 8 to 12, dB", _psnr(world, config.episodes, 12)[:, 7:].mean(1).tolist()


def _psnr(world: WorldModel, episodes: int, chunks: int) -> np.ndarray:
    """(episodes, chunks) on held-out rooms."""
    return measure(world, plan(episodes, chunks, seed=3000)).figures["world", "psnr_db"]


def table(results: dict[str, list[dict]], sampled: dict[str, tuple[str, list[float]]]) -> str:
    """Both tables as Markdown: mean and standard deviation over seeds, then over sessions."""
    lines = ["| variant | | held-out loss | with another clip's cameras |", "|---|---|---|---|"]
    for name, rows in results.items():
        fallen = [row["diverged"] for row in rows if "diverged" in row]
        if fallen:
            cells = [f"diverged at step {', '.join(map(str, fallen))} ({len(fallen)} of {len(rows)})", ""]
        else:
            cells = [_spread([row[key] for row in rows]) for key in ("loss", "wrong cameras")]
        lines.append(f"| {name} | {VARIANTS[name].says} | {cells[0]} | {cells[1]} |")
    if sampled:
        lines += ["", "| trained world | measured | mean over sessions |", "|---|---|---|"]
        lines += [f"| {label} | {what} | {_spread(values)} |" for label, (what, values) in sampled.items()]
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
    figure.savefig(path, dpi=150)


def run(config: AblationsConfig) -> None:
    """Trains what is missing, writes ablations.md and ablations.png, and prints the table."""
    jobs = [(name, seed) for name in config.variants for seed in range(config.seeds)]
    results: dict[str, list[dict]] = {name: [] for name in config.variants}
    for name, seed in tqdm(jobs, desc="ablations", unit="network"):
        results[name].append(trained_variant(config, name, seed))
    sampled = {}
    if config.episodes:
        sampled = {label: (what, values) for label, what, values in sampling_rows(config)}
    text = table(results, sampled)
    (config.out / "ablations.md").write_text(text + "\n")
    plot(results, config.out / "ablations.png")
    print(text)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"
