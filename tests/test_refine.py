"""`sana-wm refine`: recordings and latents, and what it refuses."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_refiners import write_refiner

from sana_wm_env import cli
from sana_wm_env.commands.refine import find_video, read_video
from sana_wm_env.video import VideoWriter, open_video


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    return str(write_refiner(tmp_path_factory.mktemp("refiner") / "small"))


@pytest.fixture(scope="module")
def recording(tmp_path_factory, refiner):
    """A video of 49 frames and the .npz beside it."""
    path = tmp_path_factory.mktemp("recording") / "clip.mp4"
    assert cli.main(["generate", "--actions", "w-24,dw-24", "--out", str(path)]) == 0
    return path


def frames_of(path) -> np.ndarray:
    with open_video(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def refine(*arguments) -> int:
    return cli.main(["refine", *map(str, arguments)])


def test_a_recording_is_refined_from_its_first_frame_on(recording, refiner, tmp_path):
    out, latents = tmp_path / "out.mp4", tmp_path / "out.npy"
    assert refine(recording, "--refiner", refiner, "--out", out) == 0
    before, after = frames_of(recording), frames_of(out)
    assert after.shape == before.shape == (49, 256, 256, 3)
    assert np.abs(after[0].astype(int) - before[0]).mean() < 6  # decoded, not refined
    assert np.abs(after[1:].astype(int) - before[1:]).mean() > 6
    # the .npz beside it stands for it, and what was refined can be shown later
    assert refine(recording.with_suffix(".npz"), "--refiner", refiner, "--out", latents) == 0
    assert np.load(latents).shape == (48, 7, 8, 8)
    assert find_video(recording.with_suffix(".npz")) == (recording, find_video(recording)[1])
    assert find_video(recording)[1].startswith("a ")  # the room's caption


def test_latents_are_refined_as_the_world_does_it(refiner, tmp_path):
    """Chunk by chunk in a session, and afterwards from the latents that stage 1 left."""
    from sana_wm_env.model.world import WorldModel

    world = WorldModel.load("tiny-rooms", refiner=refiner)
    image = torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)
    image[:, 20:40, 10:30] = torch.tensor([200, 60, 30], dtype=torch.uint8)
    path = torch.eye(4, dtype=torch.float64).repeat(1, 48, 1, 1)
    path[:, :, 2, 3] = 0.02 * (1 + torch.arange(48))
    state = world.start(image, torch.tensor([[50.0, 50, 32, 32]]), ["a room"], [torch.Generator()])
    chunks = list(world.play(state, path))
    latents = torch.cat([state.image_latent, *(chunk.latents for chunk in chunks)], 2)
    np.save(tmp_path / "latents.npy", latents[0].numpy())
    given = ["--prompt", "a room", "--refiner", refiner]
    assert refine(tmp_path / "latents.npy", *given, "--out", tmp_path / "refined.npy") == 0
    refined = torch.from_numpy(np.load(tmp_path / "refined.npy"))[None]
    from sana_wm_env.model.base import as_frames

    _, decoder = world.autoencoder.decode(refined[:, :, :1])
    shown = []
    for block in refined[:, :, 1:].split(3, 2):
        with torch.no_grad():
            video, decoder = world.autoencoder.decode(block, decoder)
        shown.append(as_frames(video))
    wanted = torch.cat([chunk.frames for chunk in chunks], 1)
    assert (torch.cat(shown, 1).int() - wanted.int()).abs().max() <= 1
    assert refine(tmp_path / "latents.npy", *given, "--whole", "--out", tmp_path / "whole.npy") == 0
    assert not np.allclose(np.load(tmp_path / "whole.npy"), refined[0])


def test_enlarged_frames_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (17, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    with VideoWriter(tmp_path / "a.mp4", 16, crf=0) as video:
        video.write(frames)
    read = read_video(tmp_path / "a.mp4", (64, 64))
    assert read.shape == (1, 17, 64, 64, 3)
    assert np.abs(read[0].numpy().astype(int) - frames).mean() < 3  # colours at half resolution


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text.mp4", "cannot be read as a video"),
        ("nowhere.mp4", "there is no such file"),
        ("wide.mp4", "wanted the shape of the world"),
        ("short.mp4", "wanted 9 or more"),
        ("flat.npy", "wanted (48, T >= 2, 8, 8)"),
        ("one.npy", "wanted (48, T >= 2, 8, 8)"),
        ("nan.npy", "wanted finite numbers"),
        ("words.npy", "wanted numbers"),
        ("broken.npy", "cannot be read"),
    ],
)
def test_what_cannot_be_refined_is_said(refiner, tmp_path, capsys, name, says):
    path, out = tmp_path / name, tmp_path / "out.mp4"
    latents = np.zeros((48, 4, 8, 8), np.float32)
    if name == "text.mp4":
        path.write_text("no video")
    elif name in ("wide.mp4", "short.mp4"):
        with VideoWriter(path, 16, min_height=0) as video:
            video.write(np.zeros((4, 64, 128 if name == "wide.mp4" else 64, 3), np.uint8))
    elif name == "words.npy":
        np.save(path, np.array(["a"]))
    elif name == "broken.npy":
        path.write_bytes(b"\x93NUMPY" + bytes(20))
    elif name.endswith(".npy"):
        latents[0, 0, 0, 0] = np.nan if name == "nan.npy" else 0
        np.save(path, {"flat.npy": latents[0], "one.npy": latents[:, :1]}.get(name, latents))
    assert refine(path, "--refiner", refiner, "--out", out) == 2
    assert says in capsys.readouterr().err and not out.exists()


def test_outputs_and_refiners_are_checked_first(recording, refiner, tmp_path, capsys):
    shutil.copy(recording, tmp_path / "clip.mp4")
    for arguments, says in (
        (["--refiner", refiner, "--out", tmp_path / "clip.mp4"], "--out"),
        (["--refiner", refiner, "--out", tmp_path / "out.gif"], ".mp4"),
        (["--refiner", tmp_path / "none", "--out", tmp_path / "out.mp4"], "wanted the folder of a refiner"),
    ):
        assert refine(tmp_path / "clip.mp4", *arguments) == 2
        assert says in capsys.readouterr().err
    broken = write_refiner(tmp_path / "broken")
    save_file({}, broken / "transformer" / "diffusion_pytorch_model.safetensors")
    assert refine(recording, "--refiner", broken, "--out", tmp_path / "out.mp4") == 2
    assert "missing" in capsys.readouterr().err
