"""Playing one episode for people: `sana-wm agents run` says what happens and writes a video."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sana_wm_env.recorder import RecordChunks

from .choose import AgentConfig, EnvConfig
from .evaluate import play


@dataclass(frozen=True)
class RunConfig:
    """What is played, and where the video goes."""

    who: AgentConfig = field(default_factory=AgentConfig)
    where: EnvConfig = field(default_factory=EnvConfig)
    seed: int = 0
    """of the environment and of the agent"""
    out: Path = Path("agent.mp4")
    """the video; poses, actions and rewards are written beside it as .npz"""


def run(config: RunConfig) -> None:
    """Plays the episode, prints its course, writes the video."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with RecordChunks(config.where.make(render_mode="rgb_array_list"), config.out) as env, tqdm(unit="chunk", desc=config.who.agent) as bar:
        agent = config.who.make(env.unwrapped, config.where)  # type: ignore[arg-type]  # of this package, so a CameraEnv

        def tell(observation: Any, info: dict[str, Any]) -> None:
            told = {name: value for name, value in info.items() if isinstance(value, float | bool)}
            lines.append(f"chunk {info['chunk_index']:2}: " + ", ".join(_said(name, value) for name, value in told.items()))
            bar.update(info["chunk_index"] > 0)

        record = play(agent, env, config.seed, tell)
    print("\n".join(lines))
    print(", ".join(_said(name, value) for name, value in record.items()))
    print(f"wrote {config.out} and {config.out.with_suffix('.npz')}")


def _said(name: str, value: Any) -> str:
    return f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
