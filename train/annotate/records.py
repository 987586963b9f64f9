"""What has been done: a record per clip and stage, each a file that appears whole or not at all.

A stage whose record is there is never done again; a run that is killed leaves no half of one. The manifest is
written out of the records, a row per clip and stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.arrays import read_npz
from sana_wm_env.files import write_json, write_text, write_whole

STAGES = ("shots", "masks", "motion", "poses", "scale", "guards", "caption", "sidecar")
SETTINGS, MANIFEST, WORK = "settings.json", "manifest.jsonl", "work"


@dataclass(frozen=True)
class Record:
    """One row of the manifest.

    Attributes:
        clip: key of the clip; of the video, where that did not become clips.
        stage: one of `STAGES`.
        status: "done", or "rejected": then no later stage has a record.
        reason: a word or two to count by, "" if done.
        cause: the sentence: got, wanted, what to do.
        seconds: how long it took.
        values: whatever the stage found out.
    """

    clip: str
    stage: str
    status: str
    reason: str
    cause: str
    seconds: float
    values: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {
            "clip": self.clip,
            "stage": self.stage,
            "status": self.status,
            "reason": self.reason,
            "cause": self.cause,
            "seconds": self.seconds,
            **self.values,
        }


class Records:
    """The records of one output folder.

    Args:
        out: the folder; made if it is not there.
        settings: everything that decides the results.

    Raises:
        ValueError: the folder holds records that were made by other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        self.out, self.work = out, out / WORK
        here = json.loads(json.dumps(settings, default=str))
        kept = out / SETTINGS
        if kept.exists():
            there = json.loads(kept.read_text())
            differ = [name for name in here | there if here.get(name) != there.get(name)]
            if differ:
                raise ValueError(
                    f"got --out {out}, which was begun with other settings ({', '.join(differ)}); wanted "
                    "the same, "
                    "or another folder"
                )
        elif out.exists() and any(out.iterdir()):
            raise ValueError(
                f"got --out {out}, which is there and is no work of this command; wanted a new or empty "
                "folder"
            )
        else:
            write_json(kept, here)

    def folder(self, clip: str) -> Path:
        """Where the files of a clip lie."""
        return self.work / clip

    def find(self, clip: str, stage: str) -> Record | None:
        """The record of a stage of a clip, None if it has not been done."""
        path = self._path(clip, stage)
        return Record(**json.loads(path.read_text())) if path.exists() else None

    def keep(self, record: Record, arrays: Mapping[str, NDArray] | None = None) -> None:
        """Keeps a record, and arrays beside it, which are there first."""
        if arrays:
            write_whole(
                self._path(record.clip, record.stage).with_suffix(".npz"), lambda part: _save(part, arrays)
            )
        write_json(self._path(record.clip, record.stage), vars(record))

    def arrays(self, clip: str, stage: str) -> dict[str, NDArray]:
        """The arrays that a stage has kept."""
        return read_npz(self._path(clip, stage).with_suffix(".npz"))

    def each(self) -> Iterator[Record]:
        """All records, by clip and stage."""
        for folder in sorted(self.work.iterdir()) if self.work.exists() else []:
            for stage in STAGES:
                if (record := self.find(folder.name, stage)) is not None:
                    yield record

    def write_manifest(self) -> Path:
        """Writes a line of JSON per record."""
        lines = [json.dumps(record.row(), allow_nan=False) for record in self.each()]
        write_text(self.out / MANIFEST, "\n".join(lines) + "\n" * bool(lines))
        return self.out / MANIFEST

    def _path(self, clip: str, stage: str) -> Path:
        return self.work / clip / f"{stage}.json"


def _save(part: Path, arrays: Mapping[str, NDArray]) -> None:
    with part.open("wb") as file:  # by a name it would append .npz
        np.savez(file, **arrays)  # type: ignore[arg-type]
