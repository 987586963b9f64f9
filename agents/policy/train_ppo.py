"""Trains a policy by proximal policy optimisation through Stable-Baselines3 (extra `rl`).

`sana-wm agents train` trains in any environment of the package, an imagined one or the truth, and goes on
where it was cut off.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from sana_wm_env.outputs import Output, check_outputs
from sana_wm_env.progress import Progress, progress

from sana_wm_env.sb3 import SB3VecEnv  # isort: skip  # says how to install what is missing, so it comes first

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor

from sana_wm_env.base import CameraEnv
from sana_wm_env.evaluation.report import plain, versions
from sana_wm_env.files import replacing, write_json
from sana_wm_env.settings import check_settings

from ..choose import EnvConfig
from .ppo import PPOAgent as PPOAgent
from .view import View

TRAINING_SEEDS = 10**9
"""Seeds of training environments begin here, far from those of evaluations."""


class SeenThrough(VecEnvWrapper):
    """Dict observations as a `View` shows them, actions as it moves them."""

    def __init__(self, venv: VecEnv, view: View, env: CameraEnv):
        assert isinstance(venv.observation_space, gym.spaces.Dict)
        super().__init__(venv, view.space(venv.observation_space), view.action_space())
        self.view, self.inner = view, env

    def reset(self) -> Any:
        """The first observations."""
        return self.view.see(cast(dict[str, Any], self.venv.reset()))

    def step_async(self, actions: np.ndarray) -> None:
        """Takes actions (n, moving axes)."""
        self.venv.step_async(self.view.act(actions, self.inner))

    def step_wait(self) -> Any:
        """The next observations, those before a reset included."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self.view.see(info["terminal_observation"])
        return self.view.see(cast(dict[str, Any], observations)), rewards, dones, infos


@dataclass(frozen=True)
class TrainConfig:
    """Training of a policy, and the folder of its files."""

    where: EnvConfig = field(default_factory=EnvConfig)
    view: View = field(default_factory=View)
    out: Path = Path("runs/ppo")
    """folder of policy.zip, policy-<steps>.zip, returns.csv and config.json; the same command resumes from
    them
    """
    steps: int = 4096
    """chunks, over all environments; whole updates, so it may become a few more"""
    seed: int = 0
    envs: int = 8
    """environments at a time; imagined ones share one set of weights and one forward"""
    rollout: int = 16
    """chunks per environment between updates"""
    learning_rate: float = 1e-3
    epochs: int = 10
    """passes over the chunks of an update"""
    batch: int = 64
    discount: float = 0.95
    entropy: float = 0.0
    """weight of the entropy bonus"""
    width: int = 64
    """of the two layers of policy and value"""
    snapshot_every: int = 1024
    """chunks between policies that are kept"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(
            self,
            steps="[1, inf)",
            seed="[0, inf)",
            envs="[1, inf)",
            rollout="[2, inf)",
            learning_rate="(0, inf)",
            epochs="[1, inf)",
            batch="[2, inf)",
            discount="[0, 1]",
            entropy="[0, inf)",
            width="[1, inf)",
            snapshot_every="[1, inf)",
        )


def make_envs(config: TrainConfig) -> VecEnv:
    """The training environments, as Stable-Baselines3 wants them, seen through the view."""
    where = config.where
    if where.imagined:  # one set of weights
        arguments: dict[str, Any] = where.arguments() | {
            "max_episode_steps": where.chunks,
            "autoreset_mode": "SameStep",
        }
        vector: Any = gym.make_vec(where.env, num_envs=config.envs, **arguments)
        single = vector.slots[0]
    else:
        vector = SyncVectorEnv([where.make] * config.envs, autoreset_mode=AutoresetMode.SAME_STEP)
        single = vector.envs[0].unwrapped
    return SeenThrough(VecMonitor(SB3VecEnv(vector)), config.view, single)


class Keeper(BaseCallback):
    """Keeps policy and returns after every update, and a snapshot now and then."""

    def __init__(self, config: TrainConfig, bar: Progress):
        super().__init__()
        self.config, self.bar, self.returns = config, bar, Returns(config.out / "returns.csv")

    def _on_training_start(self) -> None:
        self.returns.cut(self.num_timesteps)
        self.bar.update(self.num_timesteps - self.bar.n)

    def _on_rollout_start(self) -> None:
        self.keep()  # after the update on the chunks before

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.add(self.num_timesteps, float(info["episode"]["r"]))
        self.bar.update(self.num_timesteps - self.bar.n)
        return True

    def keep(self) -> None:
        """Writes policy and returns, each whole or not at all."""
        folder, steps = self.config.out, self.num_timesteps
        self.returns.write()
        _save(self.model, folder / "policy.zip")
        newest = max((int(path.stem.split("-")[1]) for path in folder.glob("policy-*.zip")), default=-1)
        if newest < 0 or steps // self.config.snapshot_every > newest // self.config.snapshot_every:
            _save(self.model, folder / f"policy-{steps:07}.zip")


class Returns:
    """Returns of training episodes by the chunk at which they ended: rows `steps,return`."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [(int(row["steps"]), float(row["return"])) for row in csv.DictReader(file)]

    def cut(self, steps: int) -> None:
        """Forgets what came after the policy that training goes on with."""
        self.rows = [row for row in self.rows if row[0] <= steps]

    def add(self, steps: int, value: float) -> None:
        """One finished episode."""
        self.rows.append((steps, value))

    def write(self) -> None:
        """To the file."""
        with replacing(self.path) as part, part.open("w", newline="") as file:
            csv.writer(file).writerows([("steps", "return"), *self.rows])


def train(config: TrainConfig) -> None:
    """Trains, or resumes. A second call after the end does nothing."""
    check_outputs(Output("--out", config.out, folder=True))
    config.out.mkdir(parents=True, exist_ok=True)
    _remember(config)
    newest, envs = config.out / "policy.zip", make_envs(config)
    if newest.exists():
        model = PPO.load(newest, envs, device="cpu")
        envs.seed(_seed(config.seed, model.num_timesteps))
        print(f"resumes after {model.num_timesteps} chunks")
    else:
        model = PPO(
            "MlpPolicy",
            envs,
            learning_rate=config.learning_rate,
            n_steps=config.rollout,
            batch_size=config.batch,
            n_epochs=config.epochs,
            gamma=config.discount,
            ent_coef=config.entropy,
            policy_kwargs={"net_arch": [config.width, config.width], "log_std_init": -0.5},
            seed=config.seed,
            device="cpu",
        )
        envs.seed(_seed(config.seed, 0))
        cast(Any, model).view = asdict(config.view)  # saved with the model, as all its attributes are
    left = config.steps - model.num_timesteps
    with progress(
        total=config.steps, initial=model.num_timesteps, unit="chunk", desc=f"ppo in {config.where.env}"
    ) as bar:
        keeper = Keeper(config, bar)
        if left > 0:
            model.learn(left, callback=keeper, reset_num_timesteps=False)
            keeper.keep()
    envs.close()
    last = [value for _, value in Returns(config.out / "returns.csv").rows[-64:]]
    print(
        f"return of the last {len(last)} training episodes: {np.mean(last):+.3f}"
        if last
        else "no training episode has ended"
    )
    print(f"wrote {newest}")


def _seed(seed: int, steps: int) -> int:
    """A run that goes on meets new rooms."""
    return TRAINING_SEEDS + 10**6 * seed + steps


def _remember(config: TrainConfig) -> None:
    """Writes config.json, or refuses to mix two trainings in one folder; more steps are welcome."""
    path, now = config.out / "config.json", plain(config)
    if path.exists():
        before = json.loads(path.read_text())["config"]
        if differing := sorted(
            key for key in now if key not in ("steps", "out") and now[key] != before.get(key)
        ):
            key = differing[0]
            raise ValueError(
                f"got {key}={now[key]!r}, and {config.out} was begun with {before.get(key)!r}; wanted the "
                "same, or another --out"
            )
    write_json(path, {"config": now, "versions": versions()})


def _save(model: Any, path: Path) -> None:
    with replacing(path) as part, part.open("wb") as file:  # by a name it would append .zip
        model.save(file)
