"""A Minari dataset on disk, in HDF5, with a file for every episode, to which the main file links.

Minari appends to one file and rewrites its metadata in place: a program that is killed meanwhile leaves a
dataset that nobody can open. Here every file appears whole, and the number of episodes changes last, so that
there are those of before or one more. Minari reads it like any other dataset.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import minari
from gymnasium.spaces import Discrete
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage.datasets_root_dir import get_dataset_path

from .files import replacing, write_json

MAIN, METADATA, GROUP = "main_data.hdf5", "metadata.json", "episode_{}"
Complete = Callable[[Any], None]
"""Adds to the HDF5 group of an episode what Minari does not keep."""


def create_dataset(dataset_id: str, first: EpisodeBuffer, complete: Complete, **about: Any) -> None:
    """Creates a dataset with its first episode, whole or not at all.

    Args:
        dataset_id: a new name.
        first: episode.
        complete: see `Complete`.
        about: what `minari.create_dataset_from_buffers` takes.
    """
    target = get_dataset_path(dataset_id)
    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    with _room_beside() as room:
        with _datasets_in(room):
            made = minari.create_dataset_from_buffers(
                dataset_id, [first], data_format="hdf5", jpeg_encoding=False, **about
            )
        data = Path(made.storage.data_path)
        _file_episode(data, data, 0, complete)
        with h5py.File(data / MAIN, "w", track_order=True) as file:
            _link(file, 0)
        data.parent.rename(target)


def append_episode(dataset_id: str, episode: EpisodeBuffer, complete: Complete) -> None:
    """Appends an episode to a dataset that `create_dataset` made."""
    data = get_dataset_path(dataset_id) / "data"
    metadata = json.loads((data / METADATA).read_text())
    number = metadata["total_episodes"]
    with _room_beside() as room:
        none = Discrete(1)  # spaces stand in metadata that nobody reads
        alone = MinariStorage.new(room / "data", none, none, jpeg_encoding=False)
        alone.update_episodes([episode])
        _file_episode(room / "data", data, number, complete)
    with replacing(data / MAIN) as part:
        shutil.copyfile(data / MAIN, part)
        with h5py.File(part, "a") as file:
            _link(file, number)
    metadata["total_episodes"] += 1
    metadata["total_steps"] += len(episode.rewards)
    metadata["dataset_size"] = round(sum(file.stat().st_size for file in data.iterdir()) / 1e6, 1)
    write_json(data / METADATA, metadata)


@contextmanager
def open_episode(data: Path, number: int) -> Iterator[Any]:
    """The HDF5 group of an episode below the data folder of any dataset, to be read."""
    with h5py.File(data / MAIN, "r") as file:
        yield file[GROUP.format(number)]


def _file_episode(source: Path, target: Path, number: int, complete: Complete) -> None:
    """Makes the only episode of a main file number so and so of a dataset, in a file of its own."""
    with h5py.File(source / MAIN, "a") as file:
        group: Any = file[GROUP.format(0)]
        group.attrs["id"] = number
        complete(group)
    (source / MAIN).replace(target / _name(number))


def _link(main: h5py.File, number: int) -> None:
    if GROUP.format(number) in main:  # a store that was interrupted before the number of episodes changed
        del main[GROUP.format(number)]
    main[GROUP.format(number)] = h5py.ExternalLink(_name(number), GROUP.format(0))


def _name(number: int) -> str:
    return f"{GROUP.format(number)}.hdf5"


@contextmanager
def _room_beside() -> Iterator[Path]:
    """A folder on the file system of the datasets, hidden from Minari, which is gone at the end."""
    with tempfile.TemporaryDirectory(dir=get_dataset_path(), prefix=".", suffix=".part") as room:
        yield Path(room)


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Minari creates datasets in the folder that a variable of the environment names, and nowhere else."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
