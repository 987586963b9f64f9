"""Episodes as a [Minari](https://minari.farama.org) dataset, for offline learning, and back into frames. Needs the extra `minari`.

    from sana_wm_env.minari import RecordMinari, replay

    env = RecordMinari(gym.make("SanaWM-v0"), "sana-wm/walks-v0", author="me")
    ...                                          # episodes, as with any environment
    env.close()
    dataset = minari.load_dataset("sana-wm/walks-v0")
    assert all(played.exact for played in replay(dataset))

Minari's own `DataCollector` works as well, with `jpeg_encoding=False`: it needs JAX and compresses pictures by default.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

try:
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.storage.datasets_root_dir import get_dataset_path
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("minari", "h5py"):
        raise
    raise ModuleNotFoundError(
        "sana_wm_env.minari wants Minari, which is not installed: pip install 'sana-wm-env[minari]'", name=error.name
    ) from None

MAX_OPTION_BYTES = 60_000
"""Of a reset option: HDF5 keeps attributes of up to 64 KiB."""


class RecordMinari(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Records every episode into a Minari dataset in HDF5: observations without loss, actions, rewards, infos, seed, reset options.

    An episode is on disk after the next `reset` or after `close`, where one that was still running counts as truncated; episodes
    without a step are dropped. A reset without a seed gets one, drawn from the environment's own generator, so that every episode can
    be replayed by itself: a program that is seeded once records the same episodes each time, though not those it sees unrecorded.

    Args:
        env: the environment; what was made by `gymnasium.make` can be recovered from the dataset.
        dataset_id: a new name in Minari's form, such as "sana-wm/walks-v0". It lies below `MINARI_DATASETS_PATH`.
        about: what `minari.create_dataset_from_buffers` takes to describe a dataset: author, author_email, description, algorithm_name,
            code_permalink. Minari warns about those that are missing.

    Raises:
        ValueError: there is such a dataset.
    """

    def __init__(self, env: gym.Env, dataset_id: str, **about: Any):
        gym.utils.RecordConstructorArgs.__init__(self, dataset_id=dataset_id, **about)
        gym.Wrapper.__init__(self, env)
        if get_dataset_path(dataset_id).exists():
            raise ValueError(f"got the dataset {dataset_id!r}, which exists; wanted a new name, such as the next version")
        self.dataset_id, self.about = dataset_id, about
        self.dataset: minari.MinariDataset | None = None
        self._seed: int | None = None
        self._options: dict[str, Any] | None = None
        self._seen: list[tuple[Any, dict[str, Any]]] = []
        self._done: list[tuple[Any, float, bool, bool]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, and stores the one before.

        Raises:
            ValueError: an option too large to be stored; the running episode goes on.
        """
        for name, value in (options or {}).items():
            if (size := np.asarray(value).nbytes) > MAX_OPTION_BYTES:
                raise ValueError(
                    f"got the reset option {name!r} of {size} bytes; wanted {MAX_OPTION_BYTES} at most, which is what HDF5 keeps beside an "
                    "episode: give an image as a path"
                )
        if seed is None:
            seed = int(self.np_random.integers(2**63))
        obs, info = self.env.reset(seed=seed, options=options)
        self._store()
        self._seed, self._options, self._seen, self._done = seed, options, [(obs, info)], []
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps and keeps what happened."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._seen.append((obs, info))
        self._done.append((np.array(action), float(reward), terminated, truncated))
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        """Stores the episode and closes the environment."""
        try:
            self._store()
        finally:
            self.env.close()

    def _store(self) -> None:
        if not self._done:
            return
        observations, infos = (_columns(column) for column in zip(*self._seen, strict=True))
        actions, rewards, terminations, truncations = (list(column) for column in zip(*self._done, strict=True))
        truncations[-1] = truncations[-1] or not terminations[-1]
        episode = EpisodeBuffer(None, self._seed, self._options or None, observations, actions, rewards, terminations, truncations, infos)
        self._seen, self._done = [], []
        if self.dataset is None:
            self.dataset = minari.create_dataset_from_buffers(
                self.dataset_id, [episode], self.env, data_format="hdf5", jpeg_encoding=False, **{"eval_env": self.env.spec, **self.about}
            )
        else:
            self.dataset.update_dataset_from_buffer([episode])


class Replay(NamedTuple):
    """How a recorded episode came out when it was played again.

    Attributes:
        episode: its number in the dataset.
        steps: how many.
        difference: the largest in any entry of any observation: grey levels, where observations are frames.
        reward_difference: the largest of any reward.
    """

    episode: int
    steps: int
    difference: float
    reward_difference: float

    @property
    def exact(self) -> bool:
        """Every observation and every reward was the same to the last bit."""
        return self.difference == self.reward_difference == 0


def replay(dataset: minari.MinariDataset, env: gym.Env | None = None, episodes: Sequence[int] | None = None) -> Iterator[Replay]:
    """Plays recorded episodes again from their seeds, reset options and actions.

    On the CPU the bundled world comes out exactly; between devices, or between versions of torch, frames may differ by some grey levels.

    Args:
        dataset: with seeds, as `RecordMinari` and `minari.DataCollector` (`jpeg_encoding=False`) leave them.
        env: where to play; made from the dataset if not given, and then closed at the end.
        episodes: their numbers in the dataset; None for all.

    Raises:
        ValueError: an episode without a seed.
    """
    numbers = [int(number) for number in (dataset.episode_indices if episodes is None else episodes)]
    stored = dataset.storage.get_episode_metadata(numbers)
    playing = dataset.recover_environment() if env is None else env
    try:
        for about, recorded in zip(stored, dataset.iterate_episodes(numbers), strict=True):
            if about.get("seed") is None:
                raise ValueError(
                    f"got episode {recorded.id} without a seed; wanted one that was recorded with it: nothing else says how it began"
                )
            seen, _ = playing.reset(seed=about["seed"], options=about.get("options"))
            difference, reward_difference = _difference(recorded.observations, 0, seen), 0.0
            for step, action in enumerate(recorded.actions):
                seen, reward, *_ = playing.step(action)
                difference = max(difference, _difference(recorded.observations, step + 1, seen))
                reward_difference = max(reward_difference, abs(float(reward) - float(recorded.rewards[step])))
            yield Replay(recorded.id, len(recorded), difference, reward_difference)
    finally:
        if env is None:
            playing.close()


def _columns(rows: Sequence[Any]) -> Any:
    """A list of dicts as a dict of lists, however deep: how Minari keeps them."""
    return {key: _columns([row[key] for row in rows]) for key in rows[0]} if isinstance(rows[0], dict) else list(rows)


def _difference(recorded: Any, index: int, seen: Any) -> float:
    if isinstance(seen, dict):
        return max(_difference(recorded[key], index, seen[key]) for key in seen)
    return float(np.abs(np.asarray(recorded[index], np.float64) - seen).max())
