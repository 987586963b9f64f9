"""Recorders: settings and places are checked when they are made, files appear whole and in pairs, pictures
play at the right speed, and slots of a vector environment are recorded each for itself.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import sana_wm_env
from sana_wm_env import RecordChunks, RecordVectorChunks
from sana_wm_env.camera import CHUNK_FRAMES, FPS
from sana_wm_env.video import VideoWriter, open_video, write_sidecar

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
CAMERAS = {
    "c2w": np.eye(4)[None],
    "intrinsics_px": np.eye(3),
    "image_size": (32, 32),
    "world": "w",
    "seed": 1,
}
ODD = ["file:x", "2026-11-25T10:30:00", "p%dx", "%05d", "http:", "é", "a b", "concat:a|b", "-y"]
STILL = np.zeros(6, np.float32)


def rooms(**options) -> gym.Env:
    return gym.make("SanaWM-Rooms-v0", image_size=(16, 16), **options)


def count_frames(path: Path) -> int:
    with open_video(path) as container:
        return sum(1 for _ in container.decode(video=0))


def read_frames(path: Path) -> np.ndarray:
    with open_video(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- what a recorder is made with


@pytest.mark.parametrize(
    "path",
    [
        "walk.avi",
        "walk.mov",
        "walk.MKV",
        "runs/walk.gif",
        "walk.mp",
        "walk.mpeg",
        "a.b.webm",
        "walk.npz",
        "x.h264",
    ],
)
def test_a_file_of_another_kind_is_refused(path, tmp_path):
    for made in (RecordChunks, lambda env, path: RecordVectorChunks(SyncVectorEnv([rooms]), path)):
        with pytest.raises(ValueError, match=r"another kind.*\.mp4"):
            made(rooms(), tmp_path / path)
    assert not names(tmp_path)


@pytest.mark.parametrize("path", [None, 5, "", b"x", "a\0b", ["a"], True], ids=repr)
def test_what_names_no_place_is_refused(path):
    for made in (RecordChunks, lambda env, path: RecordVectorChunks(SyncVectorEnv([rooms]), path)):
        with pytest.raises(ValueError, match=r"got the path"):
            made(rooms(), path)


@pytest.mark.parametrize(
    "path", ["runs", "runs.5", "2026-11-25T10:30:00", ".hidden", "v1.2.10", "runs.old/", "a b"]
)
def test_other_names_are_folders(path, tmp_path):
    with RecordChunks(rooms(), f"{tmp_path}/{path}") as env:
        env.reset(seed=0)
    assert names(tmp_path / path) == ["episode-0000.mp4", "episode-0000.npz"]


def test_a_folder_that_is_there_may_be_called_anything(tmp_path):
    for name in ("films.avi", "films.mp4"):
        (tmp_path / name).mkdir()
        with RecordChunks(rooms(), tmp_path / name) as env:
            env.reset(seed=0)
        assert names(tmp_path / name) == ["episode-0000.mp4", "episode-0000.npz"]


@pytest.mark.parametrize("crf", [99, 52, -1, 12.0, 12.5, "12", None, True, np.nan, [12]])
def test_a_quality_out_of_range_is_refused(crf, tmp_path):
    for made in (RecordChunks, lambda _, path, crf: VideoWriter(path, FPS, crf=crf)):
        with pytest.raises(ValueError, match="crf"):
            made(rooms(), tmp_path / "a.mp4", crf=crf)
    assert not names(tmp_path)


@pytest.mark.parametrize("height", [-1, 10**9, 0.5, "256", None, True])
def test_a_height_out_of_range_is_refused(height, tmp_path):
    for made in (RecordChunks, lambda _, path, min_height: VideoWriter(path, FPS, min_height=min_height)):
        with pytest.raises(ValueError, match="min_height"):
            made(rooms(), tmp_path / "a.mp4", min_height=height)


@pytest.mark.parametrize("crf", [0, 51, np.int64(12)])
def test_the_ends_of_the_range_are_fine(crf, tmp_path):
    with VideoWriter(tmp_path / "a.mp4", FPS, crf=crf) as video:
        video.write(FRAMES)
    assert count_frames(tmp_path / "a.mp4") == 3


@pytest.mark.parametrize(
    "path", ["/proc/x.mp4", "/proc/folder", "/dev/null/x.mp4", "{}/file/x.mp4", "{}/file"]
)
def test_a_place_where_nothing_can_be_written_is_refused_when_made(path, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="wanted"):
        RecordChunks(rooms(), path.format(tmp_path))
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("suffix", [".mp4", ".MP4"])
def test_odd_names_are_written_as_they_are(name, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RecordChunks(rooms(), name + suffix) as env:
        env.reset(seed=0)
        env.reset(seed=0)
    wanted = [f"{name}{more}{end}" for more in ("", "-1") for end in (suffix, ".npz")]
    assert names(tmp_path) == sorted(wanted) and count_frames(Path(name + suffix)) == 1


# ---- whole, together, or not at all


def old_pair(folder: Path) -> dict[str, bytes]:
    pair = {"a.mp4": b"old video", "a.npz": b"old sidecar"}
    for name, data in pair.items():
        (folder / name).write_bytes(data)
    return pair


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_writer_that_is_left_by_an_error_leaves_what_was_there(error, tmp_path):
    before = old_pair(tmp_path)
    with pytest.raises(error), VideoWriter(tmp_path / "a.mp4", FPS) as video:
        video.write(FRAMES)
        raise error
    assert contents(tmp_path) == before


def test_a_video_without_frames_is_none(tmp_path):
    before = old_pair(tmp_path)
    with VideoWriter(tmp_path / "a.mp4", FPS):
        pass
    VideoWriter(tmp_path / "new" / "a.mp4", FPS).close()
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_sidecar_that_cannot_be_written_takes_the_video_with_it(tmp_path):
    before = old_pair(tmp_path)
    video = VideoWriter(tmp_path / "a.mp4", FPS)
    video.write(FRAMES)
    with pytest.raises(RuntimeError, match="broken"):
        video.close(CAMERAS | {"c2w": Broken()})
    assert contents(tmp_path) == before
    video.close()  # a second call does nothing
    assert contents(tmp_path) == before


class Broken:
    def __array__(self, *_, **__):
        raise RuntimeError("broken")


def test_a_broken_sidecar_leaves_the_one_before(tmp_path):
    before = old_pair(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        write_sidecar(tmp_path / "a.mp4", **CAMERAS | {"c2w": Broken()})
    assert contents(tmp_path) == before


def test_a_recording_replaces_the_pair_when_it_is_done(tmp_path):
    before = old_pair(tmp_path)
    env = RecordChunks(rooms(), tmp_path / "a.mp4")
    env.reset(seed=0)
    env.step(STILL)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    env.close()
    assert names(tmp_path) == ["a.mp4", "a.npz"] and count_frames(tmp_path / "a.mp4") == 25


PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
import time
import gymnasium as gym, numpy as np
from sana_wm_env import RecordChunks
env = RecordChunks(gym.make("SanaWM-Rooms-v0", image_size=(16, 16)), {path!r}, min_height=0)
while True:
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.zeros(6, np.float32))
    print("episode", flush=True)
    {between}
"""


def start(path: Path, between: str = "") -> subprocess.Popen:
    program = PROGRAM.format(path=str(path), between=between)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_is_ended_leaves_what_was_recorded(number, tmp_path):
    running = start(tmp_path / "runs", "time.sleep(60)")
    assert running.stdout is not None and running.stdout.readline() == "episode\n"
    running.send_signal(number)
    running.wait(timeout=60)
    files = names(tmp_path / "runs")
    if number == signal.SIGINT:
        assert files == ["episode-0000.mp4", "episode-0000.npz"]
        assert count_frames(tmp_path / "runs" / files[0]) == 97
    else:
        assert all(file.endswith(".part") for file in files)


@pytest.mark.heavy
def test_a_kill_at_any_moment_leaves_whole_pairs(tmp_path):
    generator = np.random.default_rng(0)
    for turn in range(10):
        folder = tmp_path / str(turn)
        running = start(folder)
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(generator.uniform(0, 1))
        running.kill()
        running.wait()
        for video in folder.glob("*.mp4"):
            assert count_frames(video) == 97
        for sidecar in folder.glob("*.npz"):
            with np.load(sidecar) as arrays:
                assert arrays["c2w"].shape == (97, 4, 4)
            assert sidecar.with_suffix(".mp4").exists() or sidecar == max(folder.glob("*.npz"))


# ---- speed


@pytest.mark.parametrize(
    "env_id", ["SanaWM-v0", "SanaWM-Rooms-v0", "SanaWM-Goal-v0", "SanaWM-RoomsFollow-v0"]
)
@pytest.mark.parametrize("mode", ["rgb_array", "rgb_array_list"])
def test_one_picture_a_step_plays_at_the_speed_of_the_video(env_id, mode):
    env = gym.make(env_id, render_mode=mode)
    assert env.metadata["render_fps"] * CHUNK_FRAMES == FPS == env.metadata["frames_per_second"]


def test_a_vector_environment_says_the_same():
    env = gym.make_vec("SanaWM-v0", num_envs=2, render_mode="rgb_array")
    assert env.metadata["render_fps"] == FPS / CHUNK_FRAMES


@pytest.fixture
def moviepy(monkeypatch) -> list[tuple[int, float]]:
    """Instead of the library: the number of pictures, and how many a second."""
    from types import ModuleType

    written: list[tuple[int, float]] = []

    class Clip:
        def __init__(self, frames, fps):
            self.told = len(frames), fps

        def write_videofile(self, *_, **__):
            written.append(self.told)

    for name in ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"):
        module = ModuleType(name)
        module.ImageSequenceClip = Clip  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    return written


@pytest.mark.parametrize("mode", ["rgb_array", "rgb_array_list"])
def test_gymnasiums_record_video_plays_as_long_as_the_episode(mode, moviepy, tmp_path):
    env = gym.wrappers.RecordVideo(
        rooms(render_mode=mode), str(tmp_path / "v"), episode_trigger=lambda _: True
    )
    env.reset(seed=0)
    for _ in range(3):
        env.step(STILL)
    env.close()
    [(pictures, fps)] = moviepy
    assert (pictures - 1) / fps == pytest.approx(3 * CHUNK_FRAMES / FPS)


@pytest.fixture
def pygame(monkeypatch) -> list[float]:
    """Instead of the library: pictures per second of every picture that was shown."""
    from types import ModuleType, SimpleNamespace

    ticks: list[float] = []
    module = ModuleType("pygame")
    nothing = SimpleNamespace(blit=lambda *_: None)
    module.display = SimpleNamespace(  # type: ignore[attr-defined]
        init=lambda: None, set_mode=lambda _: nothing, flip=lambda: None, quit=lambda: None
    )
    module.time = SimpleNamespace(Clock=lambda: SimpleNamespace(tick=ticks.append))  # type: ignore[attr-defined]
    module.surfarray = SimpleNamespace(make_surface=lambda _: None)  # type: ignore[attr-defined]
    module.event = SimpleNamespace(pump=lambda: None)  # type: ignore[attr-defined]
    module.quit = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pygame", module)
    return ticks


def test_a_window_shows_a_step_as_long_as_it_lasts(pygame):
    with pytest.warns(UserWarning, match="HumanRendering"):
        env = rooms(render_mode="human")
    for wrapped in (
        env,
        *(gym.wrappers.HumanRendering(rooms(render_mode=m)) for m in ("rgb_array", "rgb_array_list")),
    ):
        pygame.clear()
        wrapped.reset(seed=0)
        wrapped.step(STILL)
        wrapped.close()
        assert [1 / fps for fps in pygame] == pytest.approx([CHUNK_FRAMES / FPS] * 2)


def test_recordings_of_every_frame_stay_at_sixteen_a_second(tmp_path):
    with RecordChunks(rooms(), tmp_path / "a.mp4") as env:
        env.reset(seed=0)
        env.step(STILL)
    with open_video(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].average_rate == FPS


# ---- vector environments


def vector(kind: str, mode: AutoresetMode, steps: int | None = 2, **options):
    if kind == "imagined":
        return gym.make_vec("SanaWM-v0", num_envs=2, max_episode_steps=steps, autoreset_mode=mode, **options)
    made = [lambda: rooms(max_episode_steps=steps or 40, **options)] * 2
    return SyncVectorEnv(made, autoreset_mode=mode)


@pytest.mark.parametrize("kind", ["imagined", "rooms"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_slot_is_recorded_for_itself(kind, mode, tmp_path):
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, 6)).astype(np.float32)
    env = RecordVectorChunks(vector(kind, mode), tmp_path)
    env.reset(seed=7)
    for chosen in actions:
        _, _, terminated, truncated, _ = env.step(chosen)
        over = terminated | truncated
        if mode is AutoresetMode.DISABLED and over.any():
            env.reset(options={"reset_mask": over})
    env.close()
    wanted = {AutoresetMode.NEXT_STEP: [49, 49], AutoresetMode.SAME_STEP: [49, 49, 25]}
    lengths = wanted.get(mode, [49, 49, 25])
    kept = [[0, 1], [3, 4]] if mode is AutoresetMode.NEXT_STEP else [[0, 1], [2, 3], [4]]
    for slot in (0, 1):
        folder = tmp_path / f"slot-{slot:02}"
        videos = sorted(folder.glob("*.mp4"))
        assert [count_frames(video) for video in videos] == lengths
        for video, steps in zip(videos, kept, strict=True):
            with np.load(video.with_suffix(".npz")) as sidecar:
                assert len(sidecar["c2w"]) == 1 + 24 * len(steps) == 1 + 24 * len(sidecar["rewards"])
                assert np.array_equal(sidecar["actions"], actions[steps, slot])
                assert np.allclose(sidecar["c2w"][0], np.eye(4))
        seeds = [int(np.load(video.with_suffix(".npz"))["seed"]) for video in videos]
        assert seeds == [7 + slot] + [-1] * (len(videos) - 1)


def test_a_slot_is_recorded_as_the_same_environment_alone(tmp_path):
    actions = np.random.default_rng(1).uniform(-1, 1, (2, 2, 6)).astype(np.float32)
    with RecordChunks(rooms(), tmp_path / "alone.mp4", min_height=0) as alone:
        alone.reset(seed=4)
        for chosen in actions:
            alone.step(chosen[1])
    env = RecordVectorChunks(
        vector("rooms", AutoresetMode.NEXT_STEP, None), tmp_path, slots=[1], min_height=0
    )
    env.reset(seed=3)
    for chosen in actions:
        env.step(chosen)
    env.close()
    slot = tmp_path / "slot-01" / "episode-0000.mp4"
    # nearly the same frames: x264 may choose otherwise for the same pictures, see VideoWriter
    apart = np.abs(read_frames(slot).astype(int) - read_frames(tmp_path / "alone.mp4"))
    assert apart.mean() < 3
    assert not (tmp_path / "slot-00").exists()
    with np.load(slot.with_suffix(".npz")) as one, np.load(tmp_path / "alone.npz") as other:
        compared = {*one, *other} - {"video_sha256"}
        assert all(np.array_equal(one[name], other[name]) for name in compared)


def test_part_of_the_slots_may_begin_anew(tmp_path):
    env = RecordVectorChunks(vector("imagined", AutoresetMode.DISABLED, None), tmp_path)
    env.reset(seed=[1, None])
    env.step(np.zeros((2, 6), np.float32))
    env.reset(options={"reset_mask": np.array([False, True])})
    env.step(np.zeros((2, 6), np.float32))
    env.close()
    lengths = {name: count_frames(tmp_path / name) for name in names(tmp_path) if name.endswith("mp4")}
    assert lengths == {
        "slot-00/episode-0000.mp4": 49,
        "slot-01/episode-0000.mp4": 25,
        "slot-01/episode-0001.mp4": 25,
    }
    assert np.load(tmp_path / "slot-00/episode-0000.npz")["seed"] == 1


@pytest.mark.parametrize("slots", [[2], [-1], [0.5], ["a"], [True]])
def test_a_slot_that_is_not_there_is_refused(slots, tmp_path):
    with pytest.raises(ValueError, match="slot"):
        RecordVectorChunks(vector("rooms", AutoresetMode.NEXT_STEP), tmp_path / "runs", slots=slots)


@pytest.mark.parametrize("obs_mode", ["last", "dict"])
def test_slots_that_hide_frames_are_refused(obs_mode, tmp_path):
    with pytest.raises(ValueError, match="obs_mode='chunk'"):
        RecordVectorChunks(vector("imagined", AutoresetMode.NEXT_STEP, obs_mode=obs_mode), tmp_path)


def test_a_file_for_many_slots_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wanted a folder"):
        RecordVectorChunks(vector("rooms", AutoresetMode.NEXT_STEP), tmp_path / "a.mp4")


def test_slots_number_on_from_what_is_there(tmp_path):
    for _ in range(2):
        env = RecordVectorChunks(vector("rooms", AutoresetMode.NEXT_STEP), tmp_path)
        env.reset(seed=0)
        env.close()
    assert len(names(tmp_path)) == 8 and os.listdir(tmp_path / "slot-01")


def test_it_is_part_of_the_face():
    assert (
        "RecordVectorChunks" in sana_wm_env.__all__ and sana_wm_env.RecordVectorChunks is RecordVectorChunks
    )
