"""Measures whether what is learned in imagination holds in truth: `sana-wm agents transfer`.

Scripts and policies of all stages of training play the same rooms twice: in the imagined world and in the
true one. Two questions: is a policy that was trained in imagination any good in truth, and does the imagined
return rank policies as the true one does?
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from sana_wm_env.evaluation.report import Notebook, plain, versions
from sana_wm_env.extras import check_installed
from sana_wm_env.files import write_json, write_whole
from sana_wm_env.outputs import Output, check_outputs, name_beside
from sana_wm_env.progress import progress
from sana_wm_env.settings import check_settings

from ..agent import Agent, unwrapped
from ..choose import AgentConfig, AgentName, EnvConfig
from ..evaluate import Record, play_episodes, summarise, table
from .ppo import PPOAgent
from .train_ppo import Returns

WORLDS = {"imagined": "SanaWM-v0", "true": "SanaWM-Rooms-v0"}
BOOTSTRAP = 2000


@dataclass(frozen=True)
class TransferConfig:
    """Policies and episodes to measure, and the file of the report."""

    runs: tuple[Path, ...]
    """folders that sana-wm agents train wrote"""
    per_run: int = 4
    """policies of each run, evenly spread from the first to the last; the last if it is 1"""
    scripts: tuple[AgentName, ...] = ("random", "still", "orbit", "look-around", "lawnmower")
    episodes: int = 32
    seed: int = 0
    """episode i is played with seed + i by everyone, in both worlds"""
    chunks: int = 5
    """chunks of an episode; as in training"""
    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    device: str = "cpu"
    image_size: int | None = None
    """side of the frames of the exact rooms, for thumbnails at a tenth of the cost: 16"""
    json: Path = Path("transfer.json")
    """the report; its picture lies beside it as .png, and episodes that are done in FILE.part until all
    are
    """

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(
            self,
            per_run="[1, inf)",
            episodes="[2, inf)",
            seed="[0, inf)",
            chunks="[1, inf)",
            image_size="[8, 4096]",
        )


def policies(config: TransferConfig) -> dict[str, Path]:
    """Finds policies by name: `<run> <steps>`. ValueError for a run without any."""
    files = {}
    for run in config.runs:
        snapshots = sorted(run.glob("policy-*.zip"))
        if not snapshots:
            raise ValueError(
                f"got the run {str(run)!r}, which holds no policy-*.zip; wanted a folder that "
                "sana-wm agents train wrote"
            )
        count = min(config.per_run, len(snapshots))
        chosen = sorted({round(i) for i in np.linspace(len(snapshots) - 1, 0, count)})
        files |= {f"{run.name} {int(snapshots[i].stem.split('-')[1])}": snapshots[i] for i in chosen}
    return files


def rank_correlation(imagined: np.ndarray, true: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Spearman's rank correlation of mean returns, with a 95 % interval by bootstrap over episodes.

    Args:
        imagined: (P, E) returns of P policies in E episodes.
        true: the same episodes in the true world.
        seed: of the bootstrap.
    """

    def rank(columns: np.ndarray) -> np.ndarray:  # (B, E) -> (B,)
        first, second = (
            rankdata(returns[:, columns].mean(2), axis=0) for returns in (imagined, true)
        )  # (P, B), ties share a rank
        first, second = first - first.mean(0), second - second.mean(0)
        with np.errstate(invalid="ignore"):  # NaN where all means are equal
            return (first * second).sum(0) / np.sqrt((first**2).sum(0) * (second**2).sum(0))

    episodes = imagined.shape[1]
    drawn = rank(np.random.default_rng(seed).integers(episodes, size=(BOOTSTRAP, episodes)))
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    values = {"mean": float(rank(np.arange(episodes)[None])[0]), "low": float(low), "high": float(high)}
    return {name: value if np.isfinite(value) else None for name, value in values.items()} | {
        "policies": len(imagined)
    }


def draw(
    path: Path,
    curves: dict[str, list[tuple[int, float]]],
    returns: dict[str, dict[str, np.ndarray]],
    rank: dict[str, Any],
) -> None:
    """The picture: returns over training, and true against imagined return of every policy."""
    from matplotlib.figure import Figure  # no window, no state that others share

    figure = Figure(figsize=(11, 4.5))
    left, right = figure.subplots(1, 2)
    colours = {name: f"C{i}" for i, name in enumerate(curves)}
    for name, curve in curves.items():
        if curve:
            steps, values = np.array(curve).T
            window = max(1, len(values) // 8)
            left.plot(
                steps[window - 1 :],
                np.convolve(values, np.ones(window) / window, "valid"),
                color=colours[name],
                label=name,
            )
    left.set(xlabel="chunks", ylabel="return of training episodes, moving average")
    if curves:
        left.legend(fontsize=7)
    for name, each in returns.items():
        run, _, steps = name.rpartition(" ")
        x, y = each["imagined"], each["true"]
        errors = {
            f"{axis}err": 1.96 * values.std() / np.sqrt(len(values)) for axis, values in (("x", x), ("y", y))
        }
        right.errorbar(
            x.mean(),
            y.mean(),
            fmt="o",
            markersize=4,
            elinewidth=0.5,
            color=colours.get(run, "black"),
            **errors,
        )
        label = steps if run in colours else name  # the colour of a policy names its run
        right.annotate(label, (x.mean(), y.mean()), fontsize=6, xytext=(3, 3), textcoords="offset points")
    right.axline((0, 0), slope=1, linewidth=0.7, color="grey", linestyle=":")
    correlation = "undefined" if rank["mean"] is None else f"{rank['mean']:.2f}"
    right.set(
        xlabel="imagined return",
        ylabel="true return",
        title=f"scripts, policies by chunks of training; rank correlation {correlation}",
    )
    figure.tight_layout()
    write_whole(path, lambda part: figure.savefig(part, dpi=130, format="png"))


def run(config: TransferConfig) -> None:
    """Plays all of them in both worlds, prints the table, writes the report and the picture."""
    check_outputs(
        Output("--json", config.json, (".json",)), Output("its picture", name_beside(config.json, ".png"))
    )
    check_installed("matplotlib", "the picture beside the report")
    files = policies(config)
    notebook = Notebook(config.json, plain(config))
    seeds, records = range(config.seed, config.seed + config.episodes), {}
    who: dict[str, Agent] = {}
    places: dict[str, EnvConfig] = {
        world: EnvConfig(
            env=name, task="redness", chunks=config.chunks, world=config.world, device=config.device
        )
        for world, name in WORLDS.items()
    }
    places["true"] = replace(places["true"], image_size=config.image_size)
    with progress(total=2 * config.episodes * (len(files) + len(config.scripts)), unit="episode") as bar:
        for world, place in places.items():
            env = place.make()
            if not who:
                who |= {name: AgentConfig(agent=name).make(unwrapped(env), place) for name in config.scripts}
                who |= {name: PPOAgent.load(path) for name, path in files.items()}
            for name, agent in who.items():
                bar.set_description(f"{name}, {world}")
                records[name, world] = play_episodes(agent, env, seeds, notebook, f"{name}, {world}", bar)
            env.close()
    returns = {name: {world: _returns(records[name, world]) for world in WORLDS} for name in who}
    rank = rank_correlation(
        *(np.stack([each[world] for each in returns.values()]) for world in WORLDS), seed=config.seed
    )
    summaries = {f"{name}, {world}": summarise(each) for (name, world), each in sorted(records.items())}
    print(table(summaries))
    correlation = (
        " ".join(f"{name} {rank[name]:.2f}" for name in ("mean", "low", "high") if rank[name] is not None)
        or "undefined"
    )
    print(f"rank correlation of imagined and true return over {rank['policies']} policies: {correlation}")
    report = {"config": plain(config), "versions": versions(), "rank_correlation": rank, "rows": summaries}
    write_json(
        config.json,
        report | {"episodes": {f"{name}, {world}": each for (name, world), each in records.items()}},
    )
    picture = config.json.with_suffix(".png")
    draw(picture, {run.name: Returns(run / "returns.csv").rows for run in config.runs}, returns, rank)
    print(f"wrote {config.json} and {picture}")
    notebook.close()


def _returns(records: list[Record]) -> np.ndarray:
    return np.array([record["return"] for record in records])
