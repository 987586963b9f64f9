"""`sana-wm download`: the files of a published checkpoint, after saying what they are, how large, and under
which licence.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from sana_wm_env.model.config import preset
from sana_wm_env.model.memory import GB, nearest, need, ways_to_run
from sana_wm_env.model.storage.hub import (
    DEFAULT_REVISION,
    INSTALL,
    REPOSITORIES,
    Part,
    is_downloaded,
    parse_id,
    parts_of,
)
from sana_wm_env.model.storage.layouts import published_world
from sana_wm_env.model.storage.worlds import CheckpointError

from ..extras import check_installed
from ..machine import free_memory


@dataclass(frozen=True)
class DownloadConfig:
    """Fetches what the environment reads of a published checkpoint into the cache of huggingface_hub.
    HF_HUB_OFFLINE=1 is respected.
    """

    repository: Annotated[str, tyro.conf.Positional]
    """owner/name, or owner/name@revision with a tag or a commit"""
    dry_run: bool = False
    """only say what would be fetched; of a repository that is known here without a connection"""
    optional: bool = False
    """also parts that no environment reads, such as the refiner"""
    device: str | None = None
    """where it is to run (default: cuda if there is one, else cpu); what has no room there is refused"""
    anyway: bool = False
    """fetch it although it has no room on this machine's device, for another machine"""


def run(config: DownloadConfig) -> int:
    """Prints the list, and fetches unless it is a dry run."""
    name, revision = parse_id(config.repository)
    known = parts_of(name)
    parts = [part for part in known if config.optional or not part.optional]
    if not known:
        parts = [
            Part(
                "all files", name, ("*",), _hub_bytes(name, revision, ["*"]), "not known here: read its card"
            )
        ]
    revisions = {part.repository: revision if part.repository == name else DEFAULT_REVISION for part in parts}
    wanted = [part for part in parts if not (known and is_downloaded(part, revisions[part.repository]))]
    print(_listing(name, parts, wanted, [part for part in known if part not in parts]))
    no_room = memory_refusal(name, config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    no_disk = disk_refusal(sum(part.nbytes for part in wanted))
    if config.dry_run:
        print(
            "\n".join(f"would be refused: {reason}" for reason in (no_room, no_disk) if reason)
            or "it would be fetched"
        )
        return 0
    check_installed("huggingface_hub", f"fetching {name}")
    if no_room and not config.anyway:
        raise CheckpointError(f"{no_room}. --anyway fetches it for another machine")
    if no_disk:
        raise CheckpointError(no_disk)
    # of all parts, not only of those that seem to lack: one that was broken off goes on
    patterns = {
        repository: [file for part in parts if part.repository == repository for file in part.files]
        for repository in revisions
    }
    exact = sum(
        _hub_bytes(repository, revisions[repository], files) for repository, files in patterns.items()
    )
    if reason := disk_refusal(exact):
        raise CheckpointError(reason)
    print(f"fetching {exact:,} bytes, by the hub's own count")
    folders = {
        repository: Path(_snapshot(repository, revisions[repository], files))
        for repository, files in patterns.items()
    }
    if name in folders:
        print(f"in {folders[name]}\nworld='{name}@{folders[name].name}' opens this very commit")
    return 0


def memory_refusal(name: str, device: str) -> str | None:
    """Returns why a published world cannot run on a device, even with its parts offloaded, and what can; None
    if it can or is no world.
    """
    if name not in REPOSITORIES:
        return None
    world, free = published_world(name, preset("2.6b")), free_memory(device)
    way, least = min(
        ways_to_run(need(world, getattr(torch, world.dtype)), device).items(), key=lambda item: item[1]
    )
    if least <= free:
        return None
    return (
        f"{name} needs at least {least / GB:.1f} GB on {device} ({way}), where {free / GB:.1f} GB are free; "
        f"{nearest(free, device)}, with nothing to fetch"
    )


def disk_refusal(size: int) -> str | None:
    """Returns why so many bytes cannot be kept, None if they can."""
    if size <= (free := free_disk()):
        return None
    return (
        f"{size / GB:.1f} GB are to be fetched and {free / GB:.1f} GB are free in {cache_folder()}: "
        "make room, or set HF_HOME to another disk"
    )


def free_disk() -> int:
    """Bytes that the cache of huggingface_hub may grow by."""
    return shutil.disk_usage(cache_folder()).free


def cache_folder() -> Path:
    """Returns the folder where huggingface_hub keeps files, or the nearest existing one above it."""
    home = os.environ.get("HF_HOME") or Path(os.path.expanduser("~")) / ".cache" / "huggingface"
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _listing(name: str, parts: list[Part], wanted: list[Part], left_out: list[Part]) -> str:
    lines = [f"{name}:"]
    for part in parts:
        here = "" if part in wanted else ", on this machine already"
        more = f" or more: {part.more}" if part.more else ""
        lines += [
            f"  {part.what:<22}{part.nbytes / GB:>6.1f} GB{more}{here}",
            f"    files    {', '.join(part.files)} of {part.repository}",
            f"    licence  {part.licence}",
        ]
    lines += [
        f"  left out: {part.what}, {part.nbytes / GB:.0f} GB, {part.licence} (--optional)"
        for part in left_out
    ]
    to_fetch = sum(part.nbytes for part in wanted)
    lines.append(
        f"to fetch: {to_fetch / GB:.1f} GB (sizes are nominal), {free_disk() / GB:.1f} GB of disk are free "
        f"in {cache_folder()}"
    )
    return "\n".join(lines)


def _hub_bytes(repository: str, revision: str, patterns: list[str]) -> int:
    """Bytes that are still to be fetched, as the hub lists them."""
    return sum(
        file.file_size
        for file in _snapshot(repository, revision, patterns, dry_run=True)
        if file.will_download
    )


def _snapshot(repository: str, revision: str, patterns: list[str], dry_run: bool = False) -> Any:
    """snapshot_download; CheckpointError in one line for what can go wrong on the way."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import GatedRepoError
    except ImportError:
        raise CheckpointError(f"got {repository}; fetching it needs huggingface_hub: {INSTALL}") from None
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"got {repository} with HF_HUB_OFFLINE set; unset it to fetch, nothing was asked of the hub"
        )
    try:
        return snapshot_download(repository, revision=revision, allow_patterns=patterns, dry_run=dry_run)
    except GatedRepoError:
        raise CheckpointError(
            f"{repository} wants its licence accepted: do so at https://huggingface.co/{repository}, then "
            "`hf auth login`"
        ) from None
    except OSError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise CheckpointError(f"{repository}@{revision} cannot be fetched: {cause}") from None
