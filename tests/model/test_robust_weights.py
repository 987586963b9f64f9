"""Weights, latents and goldens in .safetensors as they break: named in one sentence, in bounded time and
memory.
"""

import json
import random
import resource
import struct
import time
from pathlib import Path

import pytest
import tally
import torch
from safetensors.torch import load_file, save, save_file
from tiny_worlds import AUTOENCODER, CONFIG

from sana_wm_env import cli
from sana_wm_env.model.codecs.autoencoder import Autoencoder
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.storage.tensors import open_tensors, read_tensors
from sana_wm_env.model.storage.worlds import save_world
from sana_wm_env.model.world import WorldModel
from sana_wm_env.train.data import latents, rooms
from sana_wm_env.train.flow import initial_weights

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(6, dtype=torch.int64)}


def with_header(header: object, body: bytes = bytes(96)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(**changes: object) -> dict:
    return {"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]} | changes}


WHOLE = save(TENSORS)
BROKEN = {
    "empty": b"",
    "text": b"no tensors here, only words",
    "zip": b"PK\x03\x04" + bytes(100),
    "cut in the size": WHOLE[:5],
    "cut in the header": WHOLE[:40],
    "cut in the tensors": WHOLE[:-7],
    "longer": WHOLE + b"x",
    "header of 2**63 bytes": struct.pack("<Q", 2**63) + WHOLE[8:],
    "header of all bytes": struct.pack("<Q", 2**64 - 1) + WHOLE[8:],
    "header of 90 MB": struct.pack("<Q", 90_000_000) + WHOLE[8:],
    "header of nothing": struct.pack("<Q", 0) + WHOLE[8:],
    "no JSON": with_header(b"{" * 100),
    "nested": with_header(b"[" * 100_000),
    "a list": with_header([1]),
    "unknown dtype": with_header(entry(dtype="F31")),
    "dtype a number": with_header(entry(dtype=5)),
    "negative shape": with_header(entry(shape=[-3, 4])),
    "shape too large": with_header(entry(shape=[3, 5])),
    "absurd shape": with_header(entry(shape=[2**40, 2**40])),
    "shape overflows": with_header(entry(shape=[2**63, 2, 2**62])),
    "offsets backwards": with_header(entry(data_offsets=[48, 0])),
    "offsets outside": with_header(entry(data_offsets=[0, 2**50])),
    "offsets text": with_header(entry(data_offsets="all")),
    "no offsets": with_header({"a": {"dtype": "F32", "shape": [3, 4]}}),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "NaN": save(TENSORS | {"a": torch.full((3, 4), torch.nan)}),
    "infinity": save(TENSORS | {"a": torch.full((3, 4), torch.inf, dtype=torch.float16)}),
    "another name": save({"c": TENSORS["a"]}),
    "nothing": save({}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_holds_no_tensors_is_named(kind, tmp_path):
    (tmp_path / "x").write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=r"(?s)got .*x.*: make it anew") as caught:
        read_tensors(tmp_path / "x", "make it anew", TENSORS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises((ValueError, OSError), match="got"):
        read_tensors(tmp_path / "none", "make it anew")


def mutated(content: bytes, drawn: random.Random) -> bytes:
    """Something changed in the header, mostly, or in the tensors; or cut off."""
    changed = bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(drawn.randrange(1, 5)):
        place, kind = drawn.randrange(drawn.choice([8, header, len(changed)])), drawn.randrange(5)
        place = min(place, len(changed) - 1)
        if kind == 0:
            changed[place] ^= 1 << drawn.randrange(8)
        elif kind == 1:
            changed[place] = drawn.randrange(256)
        elif kind == 2 and len(changed) > 100:
            del changed[place : place + drawn.choice([1, 9])]
        elif kind == 3:
            changed[place:place] = drawn.choice([b"9" * 30, b"[", b"-", b"\0" * 8])
        elif drawn.randrange(3) == 0 and place > 8:
            del changed[place:]
    return bytes(changed)


def fuzz(content: bytes, path: Path, read, count: int) -> None:
    """Every change is read or refused by name, within a second and 200 MiB."""
    drawn, refused = random.Random(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        path.write_bytes(mutated(content, drawn))
        began = time.process_time()
        try:
            read()
        except (ValueError, FileNotFoundError) as error:
            assert path.name in str(error), error
            refused += 1
        assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert refused
    tally.count(refused, count - refused)


def test_changed_tensors_are_read_or_refused(tmp_path):
    fuzz(WHOLE, tmp_path / "x", lambda: read_tensors(tmp_path / "x", "again", TENSORS), 500)


@pytest.mark.heavy
def test_thousands_of_changed_tensors_are_read_or_refused(tmp_path):
    fuzz(WHOLE, tmp_path / "x", lambda: read_tensors(tmp_path / "x", "again", TENSORS), 5000)


# ---- worlds


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    save_world(folder, CONFIG, Transformer(CONFIG.transformer), Autoencoder(AUTOENCODER))
    return folder


@pytest.fixture
def broken_world(world, tmp_path) -> Path:
    for file in world.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("file", ["transformer.safetensors", "autoencoder.safetensors"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_world_of_broken_weights_is_refused_by_name(kind, file, broken_world, capsys):
    (broken_world / file).write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=f"{file}|does not fit|complete"):
        WorldModel.load(broken_world)
    line = f"generate --world {broken_world} --actions w-24 --out {broken_world}/o.mp4"
    for given in (line, f"checkpoint inspect {broken_world / file}"):
        code, error = cli.main(given.split()), capsys.readouterr().err
        assert code in (0, 1, 2) and "shows where" not in error and error.count("\n") <= 1, error
    assert not (broken_world / "o.mp4").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named(value, broken_world):
    tensors = load_file(broken_world / "transformer.safetensors")
    name = next(name for name in tensors if name.endswith("out_proj_cam.weight"))
    tensors[name].view(-1)[3] = value
    save_file(tensors, broken_world / "transformer.safetensors")
    with pytest.raises(ValueError, match=f"NaN or infinity in {name}"):
        WorldModel.load(broken_world)


@pytest.mark.parametrize("file", ["transformer.safetensors", "autoencoder.safetensors"])
def test_changed_weights_are_read_or_refused(file, broken_world):
    def read():
        try:
            WorldModel.load(broken_world)
        except ValueError as error:
            raise ValueError(f"{error} {file}") from None  # what does not fit is named by its keys

    fuzz((broken_world / file).read_bytes(), broken_world / file, read, 100)


# ---- files of runs


@pytest.mark.parametrize("kind", BROKEN)
def test_files_of_runs_that_broke_say_how_to_get_new_ones(kind, tmp_path):
    clips, encoded = rooms.clip_file(tmp_path, "clips", 0), latents.latents_path(tmp_path, "clips", 0)
    weights = tmp_path / "w.safetensors"
    readers = {
        clips: (lambda: rooms.read_clip_file(clips), "rendered anew"),
        encoded: (lambda: latents.room_clips(tmp_path, {"clips": 1}), "encoded anew"),
        weights: (lambda: initial_weights(tmp_path, str(weights)), "wanted the weights"),
    }
    if kind in ("another name", "nothing"):
        del readers[weights]  # names are compared with the network's, later
    for path, (read, cure) in readers.items():
        path.write_bytes(BROKEN[kind])
        with pytest.raises(ValueError, match=rf"(?s)got .*{path.name}.*{cure}"):
            read()


def test_what_is_missing_in_a_file_is_said_by_its_opener(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    for use in (lambda f: f.get_tensor("c"), lambda f: f.metadata()["about"], lambda f: f.get_slice("c")):
        with (
            pytest.raises(ValueError, match="damaged or another kind"),
            open_tensors(tmp_path / "x", "c") as f,
        ):
            use(f)


def test_goldens_that_broke_are_named(tmp_path, capsys):
    for kind, data in BROKEN.items():
        (tmp_path / "g.safetensors").write_bytes(data)
        assert cli.main(["parity", str(tmp_path / "g.safetensors")]) == 2, kind
        error = capsys.readouterr().err
        assert "shows where" not in error and error.count("\n") == 1 and "g.safetensors" in error, kind
        tally.count(refused=1)
