"""Episodes as a [Minari](https://minari.farama.org) dataset, for offline learning, and back into frames.
Needs the extra `minari`.

    from sana_wm_env.minari import RecordMinari, replay

    env = RecordMinari(gym.make("SanaWM-v0"), "sana-wm/walks-v0", author="me")
    ...                                          # episodes, as with any environment
    env.close()
    dataset = minari.load_dataset("sana-wm/walks-v0")
    assert all(played.exact for played in replay(dataset))

Minari's own `DataCollector` works as well, with `jpeg_encoding=False`: it needs JAX and compresses pictures
by default.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

try:
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    from .minari_files import append_episode, create_dataset, open_episode
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("minari", "h5py"):
        raise
    raise ModuleNotFoundError(
        "sana_wm_env.minari wants Minari, which is not installed: pip install 'sana-wm-env[minari]'",
        name=error.name,
    ) from None

from .first_frame import read_image
from .numbers import to_array

STATES = {"WorldState": "sana_wm_env.model.state", "RoomsState": "sana_wm_env.rooms.state"}
MOST = 60_000
"""Bytes of an option that Minari's own attributes hold; HDF5 keeps attributes of up to 64 KiB."""
GROUP = "sana_wm_reset"
"""Group of an episode's HDF5 group that has seed and reset options to the last bit."""


class RecordMinari(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Records every episode into a Minari dataset in HDF5: observations without loss, actions, rewards,
    infos, seed, reset options.

    An episode is on disk after the next `reset` or after `close`, where one that was still running counts as
    truncated; episodes without a step are dropped. A reset without a seed gets one, drawn from the
    environment's own generator, so that every episode can be replayed by itself: a program that is seeded
    once records the same episodes each time, though not those it sees unrecorded. A program that is killed
    leaves the episodes that were on disk, and no half one.

    Args:
        env: the environment; what was made by `gymnasium.make` can be recovered from the dataset.
        dataset_id: a new name in Minari's form, such as "sana-wm/walks-v0". It lies below
            `MINARI_DATASETS_PATH`.
        about: what `minari.create_dataset_from_buffers` takes to describe a dataset: author, author_email,
            description, algorithm_name, code_permalink. Minari warns about those that are missing.

    Reset options are kept to the last bit, whatever they are: a picture named by its path as the picture,
    None, arrays, saved sessions. A task or `reward_fn` that a spec cannot name is recorded without spec, with
    one warning; to play such a dataset again give `replay` the environment.

    Raises:
        ValueError: there is such a dataset, or the name is not in Minari's form.
    """

    def __init__(self, env: gym.Env, dataset_id: str, **about: Any):
        gym.utils.RecordConstructorArgs.__init__(self, dataset_id=dataset_id, **about)
        gym.Wrapper.__init__(self, env)
        try:
            parse_dataset_id(dataset_id)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"got the dataset {dataset_id!r}; wanted a name in Minari's form, such as "
                f"sana-wm/walks-v0 ({error})"
            ) from None
        if get_dataset_path(dataset_id).exists():
            raise ValueError(
                f"got the dataset {dataset_id!r}, which exists; wanted a new name, such as the next version"
            )
        self.dataset_id, self.about = dataset_id, about
        self._exists = False
        self._spec = _spec_of(env)
        self._running: _Episode | None = None
        self._unstored: list[_Episode] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, and stores the one before.

        Raises:
            ValueError: an option that cannot be stored; the running episode goes on.
        """
        kept = encode_options(options)
        if seed is None:
            seed = int(self.np_random.integers(2**63))
        obs, info = self.env.reset(seed=seed, options=options)
        self._finish()
        self._running = _Episode(int(seed), kept, [(obs, info)], [])
        self._store()
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps and keeps what happened."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._running is not None:
            driven = to_array(action, "an action").astype(np.float32)
            self._running.seen.append((obs, info))
            self._running.done.append((driven, float(reward), terminated, truncated))
        return obs, reward, terminated, truncated, info

    @property
    def dataset(self) -> minari.MinariDataset | None:
        """The dataset with the episodes that are on disk; None before the first."""
        return minari.load_dataset(self.dataset_id) if self._exists else None

    def close(self) -> None:
        """Stores the episode and closes the environment."""
        self._finish()
        try:
            self._store()
        finally:
            self.env.close()

    def _finish(self) -> None:
        if self._running is not None and self._running.done:
            self._unstored.append(self._running)
        self._running = None

    def _store(self) -> None:
        """Stores finished episodes; one that could not be stored stays here for the next time."""
        while self._unstored:
            episode = self._unstored[0]
            complete = partial(_write_start, seed=episode.seed, options=episode.options)
            if not self._exists:
                self._create(_buffer(episode), complete)
            else:
                append_episode(self.dataset_id, _buffer(episode), complete)
            self._exists = True
            self._unstored.pop(0)

    def _create(self, first: EpisodeBuffer, complete: Callable[[Any], None]) -> None:
        """The dataset with its first episode."""
        origin: dict[str, Any] = {"env": self.env, "eval_env": self._spec}
        if self._spec is None:
            origin = {
                "action_space": self.env.action_space,
                "observation_space": self.env.observation_space,
            }
        with warnings.catch_warnings():
            if self._spec is None:  # our own warning has said so
                warnings.filterwarnings("ignore", "`eval_env` is set to None|env_spec is None")
            create_dataset(self.dataset_id, first, complete, **{**origin, **self.about})


class _Episode(NamedTuple):
    seed: int
    options: dict[str, Any]
    seen: list[tuple[Any, dict[str, Any]]]
    done: list[tuple[Any, float, bool, bool]]


def _buffer(episode: _Episode) -> EpisodeBuffer:
    """As Minari takes it; an episode that has not ended counts as truncated."""
    observations, infos = (_columns(column) for column in zip(*episode.seen, strict=True))
    actions, rewards, terminations, truncations = (list(column) for column in zip(*episode.done, strict=True))
    truncations[-1] = truncations[-1] or not terminations[-1]
    return EpisodeBuffer(
        seed=episode.seed if episode.seed < 2**63 else None,
        options=_readable(episode.options),
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        infos=infos,
    )


def encode_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """Returns reset options as values that can be stored: plain ones, arrays, and saved sessions as bytes.

    A picture that is named by a path is read now: the file may change.

    Raises:
        ValueError: an option that is none of these; names it.
    """
    encoded: dict[str, Any] = {}
    given: dict[str, Any] = dict(options or {})
    for name, value in given.items():
        if name == "image" and isinstance(value, str | Path):
            encoded[name] = read_image(value)
        elif value is None or isinstance(value, bool | int | float | str):
            encoded[name] = value
        elif hasattr(value, "save") and type(value).__name__ in STATES:
            with tempfile.TemporaryDirectory() as folder:
                value.save(Path(folder) / "state")
                content = np.frombuffer((Path(folder) / "state").read_bytes(), np.uint8)
            encoded[name] = (type(value).__name__, content)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            encoded[name] = value.copy()
        else:
            encoded[name] = to_array(
                value, f"the reset option {name!r}", "what can be stored beside an episode"
            )
    return encoded


def decode_options(encoded: dict[str, Any]) -> dict[str, Any]:
    """Returns the reset options again: the inverse of `encode_options`."""
    options = {}
    for name, value in encoded.items():
        if isinstance(value, tuple):
            kind, content = value
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "state").write_bytes(content.tobytes())
                value = getattr(import_module(STATES[kind]), kind).load(Path(folder) / "state")
        options[name] = value
    return options


def _spec_of(env: gym.Env) -> Any:
    """The spec of an environment that can be made again from it; else None, with a warning."""
    try:
        spec = env.spec
        if spec is not None:
            spec.to_json()
            return spec
        reason = "it was not made by gymnasium.make"
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
    gym.logger.warn(
        f"the dataset will not say how to make its environment ({reason}); give it to replay(dataset, env)"
    )
    return None


def _readable(options: dict[str, Any]) -> dict[str, Any] | None:
    """Those options that Minari's own attributes can hold, for other readers."""
    small = {
        name: value
        for name, value in options.items()
        if (isinstance(value, bool | int | float | str) and len(str(value)) < MOST)
        or (isinstance(value, np.ndarray) and value.nbytes < MOST)
    }
    return {k: v for k, v in small.items() if not isinstance(v, int) or abs(v) < 2**63} or None


def _write_start(episode: Any, seed: int, options: dict[str, Any]) -> None:
    """Puts seed and options into the HDF5 group of an episode."""
    plain = {name: value for name, value in options.items() if not isinstance(value, tuple | np.ndarray)}
    group = episode.create_group(GROUP)
    group.attrs["seed"] = str(seed)
    group.create_dataset("plain", data=json.dumps(plain))
    for name, value in options.items():
        if isinstance(value, tuple):
            group.create_dataset(f"{value[0]} {name}", data=value[1])
        elif isinstance(value, np.ndarray):
            group.create_dataset(f"array {name}", data=value, compression="gzip" if value.ndim else None)


def _read_start(dataset: minari.MinariDataset, number: int) -> tuple[int, dict[str, Any]] | None:
    """Seed and options of an episode; None where they were recorded by something else."""
    with open_episode(Path(dataset.storage.data_path), number) as episode:
        group: Any = episode.get(GROUP)
        if group is None:
            return None
        encoded = json.loads(group["plain"][()])
        for key in group:
            kind, _, name = key.partition(" ")
            if name:
                encoded[name] = group[key][()] if kind == "array" else (kind, group[key][()])
        return int(group.attrs["seed"]), decode_options(encoded)


class Replay(NamedTuple):
    """The differences of a recorded episode played again.

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


def replay(
    dataset: minari.MinariDataset, env: gym.Env | None = None, episodes: Sequence[int] | None = None
) -> Iterator[Replay]:
    """Plays recorded episodes again from their seeds, reset options and actions.

    On the CPU the bundled world comes out exactly; between devices, or between versions of torch, frames may
    differ by some grey levels.

    Args:
        dataset: with seeds, as `RecordMinari` and `minari.DataCollector` (`jpeg_encoding=False`) leave them.
        env: where to play; made from the dataset if not given, and then closed at the end.
        episodes: their numbers in the dataset; None for all.

    Raises:
        ValueError: an episode without a seed.
    """
    numbers = [int(number) for number in (dataset.episode_indices if episodes is None else episodes)]
    stored = dataset.storage.get_episode_metadata(numbers)
    if env is None and dataset.env_spec is None:
        raise ValueError(
            "got a dataset without the spec of its environment (a reward_fn or task that a "
            "spec cannot name?); "
            "wanted replay(dataset, env)"
        )
    playing = dataset.recover_environment() if env is None else env
    try:
        for metadata, recorded in zip(stored, dataset.iterate_episodes(numbers), strict=True):
            start = _read_start(dataset, int(recorded.id)) or (metadata.get("seed"), metadata.get("options"))
            if start[0] is None:
                raise ValueError(
                    f"got episode {recorded.id} without a seed; wanted one that was recorded with it: "
                    "nothing else says how it began"
                )
            seen, _ = playing.reset(seed=start[0], options=start[1])
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
    return (
        {key: _columns([row[key] for row in rows]) for key in rows[0]}
        if isinstance(rows[0], dict)
        else list(rows)
    )


def _difference(recorded: Any, index: int, seen: Any) -> float:
    if isinstance(seen, dict):
        return max(_difference(recorded[key], index, seen[key]) for key in seen)
    return float(np.abs(np.asarray(recorded[index], np.float64) - seen).max())
