import subprocess
import sys
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import pytest

from sana_wm_env.recorder import RecordChunks
from sana_wm_env.video import VideoWriter, enlarge, write_sidecar

CHUNK = 24


class CountingEnv(gym.Env):
    """Frame n of an episode has the grey level 3n and stands n metres ahead, so that a lost or doubled frame
    shows.
    """

    metadata = {"render_modes": ["rgb_array_list"], "render_fps": 16}  # noqa: RUF012
    action_space = gym.spaces.Box(-1, 1, (6,), np.float32)

    def __init__(self, obs_mode="chunk", render_mode=None):
        self.obs_mode, self.render_mode = obs_mode, render_mode
        shape = (CHUNK, 64, 64, 3) if obs_mode == "chunk" else (64, 64, 3)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options:
            raise ValueError("unknown option")
        self.n, self.unseen = 0, []
        return self._chunk(1)

    def step(self, action):
        if np.isnan(action).any():
            raise ValueError("got an action with NaN")
        obs, info = self._chunk(CHUNK)
        return obs, 0.5, False, False, info

    def render(self):
        seen, self.unseen = self.unseen, []
        return seen

    def _chunk(self, new):
        numbers = np.arange(self.n, self.n + new)
        self.n += new
        self.unseen += list(grey(numbers))
        numbers = np.resize(numbers, CHUNK)
        c2w = np.tile(np.eye(4), (CHUNK, 1, 1))
        c2w[:, 2, 3] = numbers
        info = {
            "c2w": c2w,
            "intrinsics_px": np.diag([42.0, 42.0, 1.0]),
            "n_new_frames": new,
            "chunk_index": 0,
            "world": "counting",
        }
        return (grey(numbers) if self.obs_mode == "chunk" else grey(numbers)[-1]), info


def grey(numbers) -> np.ndarray:
    return np.tile((3 * np.asarray(numbers, np.uint8))[:, None, None, None], (1, 64, 64, 3))


def read_video(path):
    """Frames and stream of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, (stream.codec_context.name, stream.codec_context.pix_fmt, int(stream.average_rate))


def frame_numbers(path) -> list[int]:
    frames, _ = read_video(path)
    return [round(frame.mean() / 3) for frame in frames]


MODES = [
    {"obs_mode": "chunk"},
    {"obs_mode": "chunk", "render_mode": "rgb_array_list"},
    {"obs_mode": "last", "render_mode": "rgb_array_list"},
]


@pytest.mark.parametrize("mode", MODES)
def test_every_frame_once_in_order(tmp_path, mode):
    env = RecordChunks(CountingEnv(**mode), tmp_path / "a.mp4")
    env.reset(seed=5)
    actions = [np.full(6, 0.1 * k, np.float32) for k in range(3)]
    for action in actions:
        env.step(action)
    env.close()
    assert frame_numbers(tmp_path / "a.mp4") == list(range(1 + 3 * CHUNK))
    sidecar = np.load(tmp_path / "a.npz")
    assert sidecar["c2w"][:, 2, 3].tolist() == list(range(1 + 3 * CHUNK))
    assert np.array_equal(sidecar["actions"], actions)
    assert sidecar["rewards"].tolist() == [0.5] * 3
    assert sidecar["intrinsics_px"].shape == (3, 3)
    assert (sidecar["convention"], sidecar["image_size"].tolist()) == (
        "opencv",
        [64, 64],
    )  # of the frames; the video is larger
    assert (sidecar["world"], sidecar["seed"]) == ("counting", 5)


def test_video_is_h264_that_players_open(tmp_path):
    with RecordChunks(CountingEnv(), tmp_path / "a.mp4") as env:
        env.reset()
    frames, stream = read_video(tmp_path / "a.mp4")
    assert stream == ("h264", "yuv420p", 16)
    assert frames.shape == (1, 256, 256, 3)


def test_reset_starts_the_next_file(tmp_path):
    env = RecordChunks(CountingEnv(), tmp_path / "a.mp4")
    env.reset(seed=1)
    env.step(np.zeros(6, np.float32))
    env.reset()
    assert frame_numbers(tmp_path / "a.mp4") == list(range(25))  # complete before the next episode ends
    env.close()
    assert frame_numbers(tmp_path / "a-1.mp4") == [0]
    assert np.load(tmp_path / "a-1.npz")["seed"] == -1


def test_a_folder_is_never_overwritten(tmp_path):
    for _ in range(2):
        with RecordChunks(CountingEnv(), tmp_path / "runs") as env:
            env.reset()
            env.reset()
    assert sorted(path.name for path in (tmp_path / "runs").glob("*.mp4")) == [
        f"episode-{i:04d}.mp4" for i in range(4)
    ]


def test_refused_input_does_not_end_the_recording(tmp_path):
    with RecordChunks(CountingEnv(), tmp_path / "a.mp4") as env:
        env.reset()
        with pytest.raises(ValueError, match="NaN"):
            env.step(np.full(6, np.nan, np.float32))
        with pytest.raises(ValueError, match="unknown option"):
            env.reset(options={"x": 1})
        env.step(np.zeros(6, np.float32))
    assert frame_numbers(tmp_path / "a.mp4") == list(range(25))
    assert np.load(tmp_path / "a.npz")["actions"].shape == (1, 6)


def test_an_exception_leaves_a_complete_file(tmp_path):
    env = RecordChunks(CountingEnv(), tmp_path / "a.mp4")
    with pytest.raises(RuntimeError, match="agent"), env:
        env.reset()
        env.step(np.zeros(6, np.float32))
        raise RuntimeError("the agent broke")
    assert frame_numbers(tmp_path / "a.mp4") == list(range(25))


def test_a_program_that_forgets_to_close_leaves_a_complete_file(tmp_path):
    program = f"""
import numpy as np
from test_recorder import CountingEnv, RecordChunks
env = RecordChunks(CountingEnv(), {str(tmp_path / "a.mp4")!r})
env.reset()
env.step(np.zeros(6, np.float32))
raise SystemExit(3)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (3, "")
    assert frame_numbers(tmp_path / "a.mp4") == list(range(25))
    assert (tmp_path / "a.npz").exists()


def test_render_still_returns_every_frame(tmp_path):
    with RecordChunks(CountingEnv("last", "rgb_array_list"), tmp_path / "a.mp4") as env:
        env.reset()
        env.step(np.zeros(6, np.float32))
        assert [frame[0, 0, 0] // 3 for frame in env.render()] == list(range(25))
        assert env.render() == []


def test_an_env_that_hides_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="obs_mode='chunk'"):
        RecordChunks(CountingEnv("last"), tmp_path / "a.mp4")


def test_the_rooms_environment_through_gym_make(tmp_path):
    env = RecordChunks(gym.make("SanaWM-Rooms-v0"), tmp_path / "a.mp4")
    first, info = env.reset(seed=3)
    env.action_space.seed(0)
    chunks, poses = [first[-1:]], [info["c2w"][-1:]]
    for _ in range(3):
        obs, _, _, _, info = env.step(env.action_space.sample())
        chunks.append(obs)
        poses.append(info["c2w"])
    env.close()
    video, wanted = read_video(tmp_path / "a.mp4")[0][:, 1::4, 1::4].astype(np.int16), np.concatenate(chunks)
    error = np.abs(video - wanted).mean((1, 2, 3))
    assert len(video) == 73 and error.max() < 2.5
    seams = [24, 25, 48, 49]  # a frame of the video is closest to its own original, on both sides of a seam
    distance = np.abs(video[seams][:, None] - wanted[None]).mean((2, 3, 4))
    assert distance.argmin(1).tolist() == seams
    assert np.array_equal(np.load(tmp_path / "a.npz")["c2w"], np.concatenate(poses))


def test_the_spec_survives_json(tmp_path):
    env = RecordChunks(gym.make("SanaWM-Rooms-v0"), tmp_path / "a.mp4", min_height=0)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, RecordChunks) and again.path == tmp_path / "a.mp4" and again.min_height == 0


def test_odd_sizes_are_padded_and_small_ones_enlarged_if_wanted(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "a.mp4", fps=16, min_height=0) as video:
        video.write(frames)
    assert read_video(tmp_path / "a.mp4")[0].shape == (2, 34, 48, 3)
    assert enlarge(frames, 100).shape == (2, 132, 188, 3)
    assert np.array_equal(enlarge(frames, 100)[:, ::4, ::4], frames)


def test_writer_refuses_what_is_not_a_video(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4"):
        VideoWriter(tmp_path / "a.gif", fps=16)
    with VideoWriter(tmp_path / "a.mp4", fps=16) as video:
        with pytest.raises(ValueError, match="uint8"):
            video.write(np.zeros((1, 64, 64, 3)))
        video.write(np.zeros((1, 64, 64, 3), np.uint8))
        with pytest.raises(ValueError, match="one size"):
            video.write(np.zeros((1, 128, 64, 3), np.uint8))
    assert len(read_video(tmp_path / "a.mp4")[0]) == 1


def test_sidecar_lies_beside_the_video(tmp_path):
    cameras = {"c2w": np.eye(4)[None], "intrinsics_px": np.eye(3), "image_size": (64, 64)}
    assert (
        write_sidecar(tmp_path / "a.mp4", **cameras, world="rooms", seed=3, keys="w-24") == tmp_path / "a.npz"
    )
    sidecar = np.load(tmp_path / "a.npz")
    assert (sidecar["convention"], sidecar["world"], sidecar["seed"], sidecar["keys"]) == (
        "opencv",
        "rooms",
        3,
        "w-24",
    )
    assert sidecar["image_size"].tolist() == [64, 64] and np.array_equal(sidecar["c2w"], cameras["c2w"])
