"""Saved sessions are checked like strangers: whatever is wrong is refused, and the running episode goes
on.
"""

import hashlib
import json
import random
import resource
import time
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tally
import torch
from safetensors.torch import load_file, save_file

import sana_wm_env
from sana_wm_env.model.state import WorldState
from sana_wm_env.model.state_check import named_tensors

ACTION = np.array([0.3, 0, 0.5, 0, 0.4, 0], np.float32)


@pytest.fixture(scope="module")
def env():
    env = gym.make("SanaWM-Goal-v0", max_episode_steps=None)
    env.reset(seed=2)
    env.step(ACTION)
    env.step(ACTION)
    return env


@pytest.fixture(scope="module")
def state(env) -> WorldState:
    return env.unwrapped.save_state().detached()


@pytest.fixture(scope="module")
def next_frames(env, state) -> np.ndarray:
    """What the next step of the running episode shows; the episode is put back."""
    frames = env.step(ACTION)[0]["image"]
    env.unwrapped.restore_state(state)
    return frames


def with_tensor(state: WorldState, place: str, change) -> WorldState:
    """The state with the tensor at a place changed."""
    found = dict(named_tensors(state)) | {f"task.{k}": v for k, v in state.task.items()}
    target = found[place]
    return state.map(lambda t: change(t) if t is target else t)


def turned(axis: float) -> torch.Tensor:
    return torch.tensor([[axis, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)[
        None
    ]


BROKEN: dict[str, tuple[Any, str]] = {
    # poses
    "mirrored": (lambda s: replace(s, c2w=turned(-1)), "mirrored"),
    "scaled": (lambda s: replace(s, c2w=turned(2)), "scaled"),
    "NaN pose": (lambda s: replace(s, c2w=s.c2w * float("nan")), "NaN or infinity in c2w"),
    "infinite pose": (lambda s: replace(s, c2w=s.c2w + float("inf")), "NaN or infinity in c2w"),
    "transposed": (lambda s: replace(s, c2w=(s.c2w + torch.eye(4)[3].outer(torch.ones(4))).mT), "c2w"),
    "3 x 4": (lambda s: replace(s, c2w=s.c2w[:, :3]), r"c2w of shape \(1, 3, 4\)"),
    "float32 pose": (lambda s: replace(s, c2w=s.c2w.float()), "c2w of torch.float32"),
    "no batch": (lambda s: replace(s, c2w=s.c2w[0]), "c2w of shape"),
    "scalar": (lambda s: replace(s, c2w=s.c2w[0, 0, 0]), "c2w of shape"),
    "list": (lambda s: replace(s, c2w=s.c2w.tolist()), "c2w of type list"),
    # counters
    "negative": (lambda s: replace(s, chunk_index=s.chunk_index - 5), "chunk_index"),
    "far": (lambda s: replace(s, chunk_index=s.chunk_index + 10**12), "chunk_index"),
    "one more": (lambda s: replace(s, chunk_index=s.chunk_index + 1), "beside transformer.next_frame"),
    "int32": (lambda s: replace(s, chunk_index=s.chunk_index.int()), "chunk_index of torch.int32"),
    "zero": (lambda s: replace(s, chunk_index=s.chunk_index * 0), "wanted None before the first"),
    "no transformer": (lambda s: replace(s, transformer=None), "no transformer after"),
    "next frame": (
        lambda s: replace(s, transformer=replace(s.transformer, next_frame=s.transformer.next_frame + 3)),
        "beside transformer.next_frame",
    ),
    "four latents a chunk": (
        lambda s: replace(s, transformer=replace(s.transformer, next_frame=1 + 4 * s.chunk_index)),
        "3 more for every chunk",
    ),
    # cameras, noise, pictures
    "negative focal": (lambda s: replace(s, intrinsics_px=-s.intrinsics_px), "intrinsics_px"),
    "huge focal": (lambda s: replace(s, intrinsics_px=s.intrinsics_px * 1e30), "intrinsics_px"),
    "tiny focal": (lambda s: replace(s, intrinsics_px=s.intrinsics_px * 1e-9), "intrinsics_px"),
    "far centre": (
        lambda s: replace(s, intrinsics_px=s.intrinsics_px * torch.tensor([1, 1, 1e9, 1])),
        "intrinsics_px",
    ),
    "NaN focal": (lambda s: replace(s, intrinsics_px=s.intrinsics_px * float("nan")), "intrinsics_px"),
    "zero generator": (lambda s: replace(s, generators=s.generators * 0), "generators"),
    "ones generator": (lambda s: replace(s, generators=s.generators * 0 + 255), "generators"),
    "short generator": (lambda s: replace(s, generators=s.generators[:, :100]), "generators of shape"),
    "cut generator words": (
        lambda s: replace(s, generators=torch.cat([s.generators[:, :24], s.generators[:, 24:] * 0], 1)),
        "generators",
    ),
    "frame of floats": (lambda s: replace(s, frame=s.frame.float()), "frame of torch.float32"),
    "large frame": (lambda s: replace(s, frame=s.frame.repeat(1, 2, 2, 1)), "frame of shape"),
    "grey frame": (lambda s: replace(s, frame=s.frame[..., :1]), "frame of shape"),
    "NaN latent": (lambda s: replace(s, image_latent=s.image_latent * float("nan")), "image_latent"),
    "cut latent": (lambda s: replace(s, image_latent=s.image_latent[..., :4]), "image_latent of shape"),
    "double latent": (lambda s: replace(s, image_latent=s.image_latent.double()), "image_latent of torch"),
    # structure
    "decoder short": (lambda s: replace(s, decoder=s.decoder[:-1]), "decoder is built otherwise"),
    "decoder list": (lambda s: replace(s, decoder=list(s.decoder)), "decoder of type list"),
    "text None": (lambda s: replace(s, text=None), "text of type NoneType"),
    "transformer of another kind": (
        lambda s: replace(s, transformer=s.text),
        "transformer of type TextContext",
    ),
    "blocks swapped": (
        lambda s: replace(s, transformer=replace(s.transformer, blocks=s.transformer.blocks[::-1])),
        "transformer",
    ),
    "a block less": (
        lambda s: replace(s, transformer=replace(s.transformer, blocks=s.transformer.blocks[1:])),
        "transformer is built otherwise",
    ),
    "another world": (lambda s: replace(s, world="elsewhere"), "world 'elsewhere'"),
    "other weights": (lambda s: replace(s, weights="0" * 64), "weights 000000000000"),
    "two sessions": (lambda s: s.expand(2), "state of 2 sessions"),
    "weights None": (lambda s: replace(s, weights=None), "weights"),
    "task a list": (lambda s: replace(s, task=[]), "task of type list"),
    # the goal
    "no goal": (lambda s: replace(s, task={}), "does not fit this one"),
    "NaN goal": (
        lambda s: replace(s, task=s.task | {"goal_c2w": s.task["goal_c2w"] * float("nan")}),
        "goal_c2w",
    ),
    "goal 3 x 4": (lambda s: replace(s, task=s.task | {"goal_c2w": s.task["goal_c2w"][:, :3]}), "goal_c2w"),
    "goal of floats": (
        lambda s: replace(s, task=s.task | {"goal_image": s.task["goal_image"].float()}),
        "goal_image",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_no_broken_state_is_taken_and_the_episode_goes_on(env, state, next_frames, name):
    change, cause = BROKEN[name]
    with pytest.raises(ValueError, match=cause):
        env.unwrapped.restore_state(change(state))
    assert np.array_equal(env.step(ACTION)[0]["image"], next_frames)
    env.unwrapped.restore_state(state)


def test_every_tensor_of_a_state_is_checked(env, state):
    """NaN, another shape and another dtype, at every place there is."""
    tried = 0
    for place, tensor in named_tensors(state):
        changes = [
            lambda t: torch.cat([t, t], -1) if t.ndim > 1 else t[:, None],
            lambda t: t.to(torch.float16),
        ]
        if tensor.is_floating_point():
            changes.append(lambda t: torch.full_like(t, float("nan")))
        for change in changes:
            with pytest.raises(ValueError, match="got"):
                env.unwrapped.restore_state(with_tensor(state, place, change))
            tried += 1
    assert tried > 200


@pytest.mark.parametrize("stranger", [None, 5, "state", {"c2w": 1}, [], np.zeros((4, 4)), torch.zeros(3)])
def test_what_is_no_state_is_refused(env, stranger):
    for call in (env.unwrapped.restore_state, lambda given: sana_wm_env.restore(env, given)):
        with pytest.raises(ValueError, match="wanted a WorldState"):
            call(stranger)


def test_a_vector_takes_no_broken_state_and_no_slot_moves(env, state):
    vector = env.unwrapped.fork(2)
    before = [one.detached() for one in vector.save_state()]
    for name, (change, _) in BROKEN.items():
        with pytest.raises(ValueError, match=r"slot 1|got"):
            vector.restore_state([state, change(state)])
        after = vector.save_state()
        assert all(
            torch.equal(a.c2w, b.c2w) and torch.equal(a.frame, b.frame)
            for a, b in zip(before, after, strict=True)
        ), name


# ---- files


@pytest.fixture
def file(state, tmp_path):
    state.save(tmp_path / "folder" / "is made" / "state.safetensors")
    return tmp_path / "folder" / "is made" / "state.safetensors"


HEADERS = {
    "nested": lambda h: h | {"structure": "[" * 100_000 + "]" * 100_000},
    "nested dicts": lambda h: h | {"structure": '{"dict": {"a": ' * 5000 + '"tensor"' + "}}" * 5000},
    "a number": lambda h: h | {"structure": "5"},
    "null": lambda h: h | {"structure": "null"},
    "a text": lambda h: h | {"structure": '"tensor"'},
    "no JSON": lambda h: h | {"structure": "{"},
    "unknown kind": lambda h: h | {"structure": '{"Popen": {"args": {"plain": "ls"}}}'},
    "another kind": lambda h: h | {"structure": '{"WindowState": {"entries": []}}'},
    "weights null": lambda h: h | {"structure": h["structure"].replace(h["weights"], "null")},
    "no structure": lambda h: {k: v for k, v in h.items() if k != "structure"},
    "another world": lambda h: h | {"world": "elsewhere"},
    "no world": lambda h: {k: v for k, v in h.items() if k != "world"},
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("version", ["1", "2"])
def test_bad_headers_are_refused(file, name, version):
    with_header(file, lambda header: HEADERS[name](header) | {"version": version})
    with pytest.raises(ValueError, match="got"):
        WorldState.load(file)


def with_header(file, change) -> None:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    save_file(tensors, file, change(header))


def test_a_file_of_a_forger_is_checked_like_any_state(env, state, tmp_path):
    """Saved by our own code, so that the checksum is right."""
    refused = 0
    for change, _ in BROKEN.values():
        try:
            change(state).save(tmp_path / "forged")
        except (AttributeError, TypeError, ValueError):
            continue  # cannot even be written
        with pytest.raises(ValueError, match="got"):
            env.unwrapped.restore_state(WorldState.load(tmp_path / "forged"))
        refused += 1
    assert refused > 35


def mutated(content: bytes, drawn: random.Random) -> bytes:
    """The bytes of a file with one thing changed: a byte, a stretch, its length."""
    changed = bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    place = drawn.randrange(drawn.choice([8, header, len(content)]))
    kind = drawn.randrange(5)
    if kind == 0:
        changed[place] ^= 1 << drawn.randrange(8)
    elif kind == 1:
        changed[place] = drawn.randrange(256)
    elif kind == 2:
        del changed[place : place + drawn.choice([1, 7, 1000])]
    elif kind == 3:
        changed[place:place] = drawn.randbytes(drawn.choice([1, 7, 1000]))
    else:
        del changed[place:]
    return bytes(changed)


def check_mutations(env, state, next_frames, folder, count: int) -> None:
    """No mutation is accepted with another content, none takes a second or 200 MiB."""
    state.save(folder / "state")
    content, path = (folder / "state").read_bytes(), folder / "mutated"
    drawn = random.Random(0)
    WorldState.load(folder / "state")
    running = env.unwrapped.episode
    unchanged = digest(running.state)
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(count):
        path.write_bytes(mutated(content, drawn))
        began = time.process_time()
        try:
            loaded = WorldState.load(path)
        except ValueError:
            refused += 1
        else:
            assert to_json(loaded) == to_json(state)
        assert time.process_time() - began < 1
        assert env.unwrapped.episode is running and digest(running.state) == unchanged
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert refused > 0.9 * count
    tally.count(refused, count - refused)
    assert np.array_equal(env.step(ACTION)[0]["image"], next_frames)
    env.unwrapped.restore_state(state)


def digest(state: WorldState) -> str:
    """Of every byte of a session."""
    bytes_of = (t.contiguous().view(-1).view(torch.uint8).numpy() for _, t in named_tensors(state))
    return hashlib.sha256(b"".join(bytes_of)).hexdigest()


def to_json(state: WorldState) -> str:
    tensors = {place: t.tolist() for place, t in named_tensors(state) if t.numel() < 10_000}
    large = {place: float(t.double().sum()) for place, t in named_tensors(state)}
    return json.dumps([tensors, large, state.world, state.weights])


def test_mutated_files_are_refused(env, state, next_frames, tmp_path):
    check_mutations(env, state, next_frames, tmp_path, 200)


@pytest.mark.heavy
def test_five_thousand_mutated_files_are_refused(env, state, next_frames, tmp_path):
    check_mutations(env, state, next_frames, tmp_path, 5000)


NO_PATHS = [None, 5, "", b"x", "a\0b", ["a"], object(), 1.5, True, {}, ".", "/"]


@pytest.mark.parametrize("path", NO_PATHS, ids=lambda path: f"{type(path).__name__} {path!r:.8}")
def test_what_names_no_file_is_refused(state, path):
    for call in (state.save, WorldState.load, sana_wm_env.RoomsState.load):
        with pytest.raises((ValueError, FileNotFoundError), match="got"):
            call(path)


@pytest.mark.parametrize("seed", [2**63, 2**64, 2**70, -1, 1.0, True, "1"])
def test_a_room_that_no_saved_session_could_name_is_refused(seed):
    with pytest.raises(ValueError, match="got scene_seed="):
        gym.make("SanaWM-Rooms-v0").reset(options={"scene_seed": seed})


def test_saving_names_the_file(state, tmp_path):
    (tmp_path / "file").write_text("")
    room = gym.make("SanaWM-Rooms-v0").unwrapped
    room.reset(seed=0)
    for name in ("file/state", "file/new/state", "new/folders/" + "x" * 300 + "/state", "x" * 300, ""):
        for one in (state, room.save_state()):
            with pytest.raises(OSError) as caught:
                one.save(tmp_path / name)
            assert caught.value.filename == str(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits of the operating system")
def test_a_full_disk_is_named_and_leaves_the_old_file(state, tmp_path):
    import subprocess
    import sys

    state.save(tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()
    program = f"""
import resource, signal
from sana_wm_env.model.state import WorldState
state = WorldState.load({str(tmp_path / "state")!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    state.save({str(tmp_path / "state")!r})
except OSError as error:
    print(error.filename)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(tmp_path / "state"), done.stderr
    assert (tmp_path / "state").read_bytes() == whole and len(list(tmp_path.iterdir())) == 1
