"""Plays one episode, prints its course and writes a video: `sana-wm agents run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sana_wm_env.outputs import Output, check_outputs, name_beside
from sana_wm_env.progress import progress
from sana_wm_env.recorder import RecordChunks
from sana_wm_env.settings import check_settings

from .agent import unwrapped
from .choose import AgentConfig, EnvConfig
from .evaluate import play


@dataclass(frozen=True)
class RunConfig:
    """Agent and environment of the episode, and the file of the video."""

    who: AgentConfig = field(default_factory=AgentConfig)
    where: EnvConfig = field(default_factory=EnvConfig)
    seed: int = 0
    """of the environment and of the agent"""
    out: Path = Path("agent.mp4")
    """the video; poses, actions and rewards are written beside it as .npz"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, seed="[0, inf)")


def run(config: RunConfig) -> None:
    """Plays the episode, prints its course, writes the video."""
    check_outputs(
        Output("--out", config.out, (".mp4",)),
        Output("the sidecar of --out", name_beside(config.out, ".npz")),
    )
    lines: list[str] = []
    with (
        RecordChunks(config.where.make(render_mode="rgb_array_list"), config.out) as env,
        progress(unit="chunk", desc=config.who.agent) as bar,
    ):
        agent = config.who.make(unwrapped(env), config.where)

        def note(observation: Any, info: dict[str, Any]) -> None:
            entries = {name: value for name, value in info.items() if isinstance(value, float | bool)}
            lines.append(
                f"chunk {info['chunk_index']:2}: "
                + ", ".join(_format_entry(name, value) for name, value in entries.items())
            )
            bar.update(info["chunk_index"] > 0)

        record = play(agent, env, config.seed, note)
    print("\n".join(lines))
    print(", ".join(_format_entry(name, value) for name, value in record.items()))
    print(f"wrote {config.out} and {config.out.with_suffix('.npz')}")


def _format_entry(name: str, value: Any) -> str:
    return f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
