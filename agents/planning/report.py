"""Measures planning with a world model: `sana-wm agents planning`.

Each agent plays the same rooms and goals in up to three settings:

| setting | plans in                                        | acts in   | says                                        |
|---------|-------------------------------------------------|-----------|---------------------------------------------|
| `model` | the world model                                 | the model | whether search and objective work           |
| `mixed` | the model, from a true frame every few chunks   | the truth | the worth of the model for acting in truth  |
| `truth` | copies of the truth                             | the truth | upper bound: a perfect model                |

Planners are told their objective: with "reward" they know where the goal lies (by pose, no network runs),
with "frames" or "latents" they see its picture and nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sana_wm_env.evaluation.report import Notebook, plain, versions
from sana_wm_env.files import write_json
from sana_wm_env.model.world import WorldModel
from sana_wm_env.outputs import Output, check_outputs
from sana_wm_env.progress import progress
from sana_wm_env.settings import check_settings

from ..agent import unwrapped
from ..choose import PLANNERS, AgentConfig, AgentName, EnvConfig
from ..evaluate import play_episodes, summarise, table
from .imagination import OwnImagination, TrueImagination
from .planner import PlannerConfig

Setting = Literal["model", "mixed", "truth"]


@dataclass(frozen=True)
class PlanningConfig:
    """Agents and settings to measure, and the file of the report."""

    agents: tuple[AgentName, ...] = ("random", "still", "go-to-goal", "cem", "mppi")
    objectives: tuple[Literal["reward", "frames", "latents"], ...] = ("reward", "frames")
    """of the planners; the truth has no latents"""
    settings: tuple[Setting, ...] = ("model", "mixed", "truth")
    anchor_every: tuple[int, ...] = (1,)
    """chunks from one true frame to the next in the setting "mixed"; a row for each"""
    task: Literal["goal", "follow"] = "goal"
    episodes: int = 20
    seed: int = 0
    """episode i is played with seed + i by everyone"""
    chunks: int = 8
    """chunks after which an episode is cut short"""
    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    device: str = "cpu"
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """of the objective "reward" """
    imagined_candidates: int = 16
    """in place of --candidates, of the objectives that imagine"""
    imagined_iterations: int = 3
    """in place of --iterations, of the objectives that imagine"""
    speed_candidates: int = 8
    """candidates that are imagined together and one after the other, for their speed; 0 to leave it out"""
    json: Path | None = None
    """the report; episodes that are done are kept in FILE.part until all are"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        counts = ("anchor_every", "episodes", "chunks", "imagined_candidates", "imagined_iterations")
        intervals = dict.fromkeys(counts, "[1, inf)")
        check_settings(self, seed="[0, inf)", speed_candidates="[0, inf)", **intervals)


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    setting: Setting
    who: AgentConfig
    where: EnvConfig

    @property
    def name(self) -> str:
        """Unique in a report."""
        who, planner = self.who, self.who.agent in PLANNERS
        anchor = f", anchor {who.anchor_every}" if planner and self.setting == "mixed" else ""
        return f"{self.setting}: {who.agent}" + (f" by {who.objective}{anchor}" if planner else "")


def rows(config: PlanningConfig) -> list[Row]:
    """Lists the rows that are asked for and possible."""
    report_rows = []
    imagining = replace(
        config.planner, candidates=config.imagined_candidates, iterations=config.imagined_iterations
    )
    for setting in config.settings:
        name = f"SanaWM-{'' if setting == 'model' else 'Rooms'}{config.task.title()}-v0"
        where = EnvConfig(env=name, chunks=config.chunks, world=config.world, device=config.device)
        for agent in config.agents:
            if agent == "ppo":
                raise ValueError(
                    "got the agent ppo; wanted scripts and planners: sana-wm agents transfer is for policies"
                )
            if agent not in PLANNERS:
                report_rows += [Row(setting, AgentConfig(agent=agent), where)] if setting != "mixed" else []
                continue
            for objective in config.objectives:
                if objective == "latents" and setting == "truth":
                    continue
                who = AgentConfig(
                    agent=agent,
                    objective=objective,
                    plan_in="truth" if setting == "truth" else "model",
                    planner=config.planner if objective == "reward" else imagining,
                )
                anchors = config.anchor_every if setting == "mixed" else (1,)
                report_rows += [Row(setting, replace(who, anchor_every=every), where) for every in anchors]
    return report_rows


def speed(config: PlanningConfig) -> dict[str, Any]:
    """Measures the seconds of one chunk of some candidates, in one forward and one after the other."""
    env: Any = (
        EnvConfig(env="SanaWM-v0", chunks=config.chunks, world=config.world, device=config.device)
        .make()
        .unwrapped
    )
    env.reset(seed=config.seed)
    actions = (
        np.random.default_rng(config.seed).uniform(-1, 1, (config.speed_candidates, 1, 6)).astype(np.float32)
    )
    seconds: dict[str, list[float]] = {"together": [], "one_by_one": []}
    for _ in range(2):  # alternately, and the better of two, because other work on a machine comes and goes
        for name, imagination in (("together", OwnImagination()), ("one_by_one", TrueImagination())):
            began = time.perf_counter()
            imagination(env, actions, "last")
            seconds[name].append(time.perf_counter() - began)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "candidates": config.speed_candidates,
        "seconds": best,
        "speed_up": best["one_by_one"] / best["together"],
    }


def run(config: PlanningConfig) -> None:
    """Plays all rows, prints the table, writes the report."""
    check_outputs(Output("--json", config.json, (".json",)))
    asked, seeds = rows(config), range(config.seed, config.seed + config.episodes)
    notebook = Notebook(config.json, plain(config))
    world = None
    records = {}
    with progress(total=len(asked) * config.episodes, unit="episode") as bar:
        for row in asked:
            bar.set_description(row.name)
            if row.setting == "mixed" and world is None:
                world = WorldModel.load(config.world, config.device)
            env = row.where.make()
            agent = row.who.make(unwrapped(env), row.where, world)
            records[row.name] = play_episodes(agent, env, seeds, notebook, row.name, bar)
            env.close()
    summaries = {name: summarise(each) for name, each in records.items()}
    print(table(summaries))
    report = {"config": plain(config), "versions": versions(), "rows": summaries, "episodes": records}
    if config.speed_candidates:
        report["imagine"] = speed(config)
        figures = report["imagine"]
        print(
            f"{figures['candidates']} candidates together are imagined {figures['speed_up']:.2f} times as "
            "fast as one after the other"
        )
    if config.json is not None:
        write_json(config.json, report)
        print(f"wrote {config.json}")
    notebook.close()
