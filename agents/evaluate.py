"""Scores an agent over many episodes: `sana-wm agents evaluate`.

Episode i is played with seed `seed + i`, by the environment and by the agent, so episodes are independent: a
run that was cut off resumes where it stopped, and two agents meet the same rooms and goals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from scipy.stats import binomtest

from sana_wm_env.evaluation.metrics import Estimate, estimate_mean
from sana_wm_env.evaluation.report import Notebook, plain, versions
from sana_wm_env.files import write_json
from sana_wm_env.outputs import Output, check_outputs
from sana_wm_env.progress import Progress, progress
from sana_wm_env.settings import check_settings

from .agent import Agent, unwrapped
from .choose import AgentConfig, EnvConfig
from .planning.planner import Planner

Record = dict[str, Any]


@dataclass(frozen=True)
class EvaluateConfig:
    """Agent, environment and episodes to measure, and the file of the report."""

    who: AgentConfig = field(default_factory=AgentConfig)
    where: EnvConfig = field(default_factory=EnvConfig)
    episodes: int = 50
    seed: int = 0
    """episode i is played with seed + i"""
    json: Path | None = None
    """the report; episodes that are done are kept in FILE.part until all are"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, episodes="[1, inf)", seed="[0, inf)")


def play(agent: Agent, env: gym.Env, seed: int, on_step: Callable[[Any, dict], None] | None = None) -> Record:
    """Plays one episode.

    Args:
        agent: is reset.
        env: an environment of this package, wrapped or not.
        seed: of the environment and of the agent.
        on_step: is given observation and info of the reset and of every step.

    Returns:
        `return`, `chunks`, `path_m` (length of the camera's way), `turned_rad` (the same of its turning),
        `success` where the task knows it, and what the agent reports.
    """
    inner = unwrapped(env)
    observation, info = env.reset(seed=seed)
    agent.reset(seed)
    total, path_m, turned_rad, over = 0.0, 0.0, 0.0, False
    newest = np.eye(4)
    while not over:
        if on_step is not None:
            on_step(observation, info)
        observation, reward, terminated, truncated, info = env.step(agent.act(observation, inner))
        total, over = total + float(reward), terminated or truncated
        way = np.concatenate([newest[None], info["c2w"]])
        path_m += float(np.linalg.norm(np.diff(way[:, :3, 3], axis=0), axis=1).sum())
        turned_rad += float(_angles(way).sum())
        newest = info["c2w"][-1]
    if on_step is not None:
        on_step(observation, info)
    record = {
        "seed": seed,
        "return": total,
        "chunks": info["chunk_index"],
        "path_m": path_m,
        "turned_rad": turned_rad,
    }
    if "is_success" in info:
        record["success"] = info["is_success"]
    return record | (agent.report() if isinstance(agent, Planner) else {})


def _angles(c2w: np.ndarray) -> np.ndarray:
    """Radians from each pose (F + 1, 4, 4) to the next."""
    rotation = c2w[:, :3, :3]
    cosine = (np.einsum("fij,fij->f", rotation[:-1], rotation[1:]) - 1) / 2
    return np.arccos(np.clip(cosine, -1, 1))


def success_rate(successes: Iterable[bool]) -> dict[str, Any]:
    """Share of successes with its 95 % interval after Wilson (1927)."""
    each = list(successes)
    interval = binomtest(sum(each), len(each)).proportion_ci(method="wilson")
    return {
        "mean": sum(each) / len(each),
        "low": float(interval.low),
        "high": float(interval.high),
        "episodes": len(each),
    }


def summarise(records: list[Record]) -> dict[str, dict[str, Any]]:
    """Means over episodes with 95 % intervals: Wilson's for success, Student's t for all else."""
    summary = {}
    for name in ("return", "imagined_return", "chunks", "path_m", "turned_rad"):
        if all(name in record for record in records):
            summary[name] = estimate_mean(np.array([record[name] for record in records])).to_dict()
    if all("success" in record for record in records):
        summary["success"] = success_rate(record["success"] for record in records)
    if all("plan_seconds" in record for record in records):
        plans, seconds = (sum(record[name] for record in records) for name in ("plans", "plan_seconds"))
        summary["planning"] = {
            "plans": plans,
            "seconds": seconds,
            "plans_per_second": plans / seconds if seconds else None,
            "imagined_chunks_per_plan": sum(record["imagined_chunks"] for record in records) / plans,
        }
    return summary


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Formats summaries by name as text."""
    columns = ("success", "return", "imagined_return", "chunks", "path_m")
    shown = [column for column in columns if any(column in row for row in rows.values())]
    planning = any("planning" in row for row in rows.values())
    width = max(24, *(len(name) + 2 for name in rows))
    lines = [
        " " * width
        + "".join(f"{column:>24}" for column in shown)
        + (f"{'plans per second':>20}" if planning else "")
    ]
    for name, row in rows.items():
        cells = "".join(f"{_cell(row.get(column)):>24}" for column in shown)
        rate = row.get("planning", {}).get("plans_per_second")
        lines.append(
            f"{name:<{width}}{cells}" + ((f"{rate:>20.2f}" if rate else f"{'-':>20}") if planning else "")
        )
    return "\n".join(lines)


def _cell(value: dict[str, Any] | Estimate | None) -> str:
    value = value.to_dict() if isinstance(value, Estimate) else value
    if value is None or value["mean"] is None:
        return "-"
    return f"{value['mean']:.2f}" + (
        "" if value["low"] is None else f" [{value['low']:.2f}, {value['high']:.2f}]"
    )


def play_episodes(
    agent: Agent, env: gym.Env, seeds: Iterable[int], notebook: Notebook, key: str, bar: Progress
) -> list[Record]:
    """Plays one episode per seed, unless the notebook has it. Returns the records."""
    records = []
    for seed in seeds:
        if f"{key} {seed}" not in notebook.records:
            notebook.add(f"{key} {seed}", play(agent, env, seed))
        records.append(notebook.records[f"{key} {seed}"])
        bar.update()
    return records


def run(config: EvaluateConfig) -> None:
    """Plays the episodes, prints the table, writes the report."""
    check_outputs(Output("--json", config.json, (".json",)))
    env = config.where.make()
    agent = config.who.make(unwrapped(env), config.where)
    notebook = Notebook(config.json, plain(config))
    seeds = range(config.seed, config.seed + config.episodes)
    with progress(total=config.episodes, unit="episode", desc=config.who.agent) as bar:
        records = play_episodes(agent, env, seeds, notebook, config.who.agent, bar)
    env.close()
    summary = summarise(records)
    print(table({f"{config.who.agent} in {config.where.env}": summary}))
    if config.json is not None:
        write_json(
            config.json,
            {"config": plain(config), "versions": versions(), "summary": summary, "episodes": records},
        )
        print(f"wrote {config.json}")
    notebook.close()
