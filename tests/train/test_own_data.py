"""Own and published latents: written, read back, trained on; the cameras against the conventions of
train/README.md.
"""

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from own_videos import path_of, write_clip
from small_ladder import CODER, TINY

from sana_wm_env import cli
from sana_wm_env.camera import relative_to_first, twist_path
from sana_wm_env.model.camera_inputs import camera_inputs
from sana_wm_env.model.codecs.text import TextEncoderConfig
from sana_wm_env.model.config import PRESETS
from sana_wm_env.model.world import WorldModel
from sana_wm_env.train import autoencoder, bidirectional, distill
from sana_wm_env.train.data.filters import FILTERS, bad_camera, filter_ranges, rejected
from sana_wm_env.train.data.latents import LatentClips, Sessions, Window, zooming_camera_inputs
from sana_wm_env.train.data.packed import PackedClip, packed_tars, read_packed, write_packed
from sana_wm_env.train.data.published import PublishedClip, PublishedLatents, write_published
from sana_wm_env.train.data.source import OwnData, read_own
from sana_wm_env.train.export import ExportConfig, export, export_stage, largest_motion
from sana_wm_env.train.flow import FlowStage, initial_weights
from sana_wm_env.train.loop import LoopConfig

LOOP = LoopConfig(steps=1, batch=2, preview=1)
SIZE, GRID = (704, 1280), (22, 40)
K = [900.0, 910.0, 650.0, 340.0]


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        yield


# ---- own clips


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Path:
    """Two videos of 33 and 41 frames, packed in runs/packed, with an autoencoder trained on them and its
    latents.
    """
    runs, videos = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("videos")
    write_clip(videos, "a", caption="a hall")
    write_clip(videos, "b", frames=41)
    assert not cli.main(["data", "pack", str(videos), "--out", str(runs / "packed"), "--per-shard", "1"])
    autoencoder.run(
        autoencoder.AutoencoderStageConfig(
            world="tiny", runs=runs, data=runs / "packed", loop=LOOP, model=CODER
        )
    )
    assert not cli.main(["data", "latents", str(runs / "packed"), "--runs", str(runs), "--world", "tiny"])
    return runs


def coder(runs: Path):
    return autoencoder.load_trained(runs / "tiny" / "autoencoder", "cpu")


def test_packed_clips_come_back_as_latents(runs):
    clips = LatentClips(
        read_own(OwnData(runs / "packed"), (64, 64), coder(runs)), (64, 64), TextEncoderConfig(), "cpu"
    )
    assert clips.lengths.tolist() == [5, 6] and clips.text_mask.sum(1).tolist() == [3, 1]
    drawn = clips.draw(300, 4, torch.Generator().manual_seed(0))
    places = set(zip(drawn.clip.tolist(), drawn.start.tolist(), strict=True))
    assert places == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
    }  # a still of every latent frame: sessions may open anywhere
    packed = [clip for tar in packed_tars(runs / "packed") for clip in read_packed(tar)]
    video = torch.from_numpy(packed[1].frames).permute(3, 0, 1, 2).float()[None] / 127.5 - 1
    window = clips.window(Sessions(torch.tensor([1, 1]), torch.tensor([0, 2]), torch.tensor([True, True])), 4)
    whole, later = (coder(runs).encode(video[:, :, first : first + 25]) for first in (0, 16))
    assert torch.allclose(window.latents, torch.cat([whole, later]), atol=2e-2)  # kept in half precision
    expected = relative_to_first(packed[1].c2w[16:41])[[0, 8, 16, 24]]
    assert np.allclose(window.camera[1, :, :16].unflatten(-1, (4, 4)), expected, atol=1e-6)


def test_the_stages_train_on_packed_clips(runs):
    config = bidirectional.BidirectionalConfig(
        world="tiny", runs=runs, own=OwnData(runs / "packed"), loop=LOOP
    )
    bidirectional.run(config)
    again = FlowStage(replace(config, init_from="bidirectional"))
    assert again.loss(2, torch.Generator().manual_seed(0))[0].isfinite()


def test_clips_that_are_too_short_for_a_window_are_counted(runs, capsys):
    assert len(read_own(OwnData(runs / "packed"), (64, 64), coder(runs), 6)) == 2
    assert "2 clips, 1 of them shorter than 6 latent frames and never drawn" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"at most 6 latent frames.*wanted 7: add --frames 4"):
        read_own(OwnData(runs / "packed"), (64, 64), coder(runs), 7)


def test_the_world_moves_as_far_as_the_videos(runs, tmp_path):
    bidirectional.run(
        bidirectional.BidirectionalConfig(world="tiny", runs=runs, own=OwnData(runs / "packed"), loop=LOOP)
    )
    export(
        ExportConfig("tiny", runs, "bidirectional", out=tmp_path / "world", data=runs / "packed", name="mine")
    )
    env = gym.make("SanaWM-v0", world=str(tmp_path / "world"))
    with pytest.raises(ValueError, match="image"):
        env.unwrapped.reset(seed=0)  # it has no first frames of its own
    clip = next(read_packed(packed_tars(runs / "packed")[0]))
    env.reset(seed=0, options={"image": clip.frames[0], "intrinsics": clip.intrinsics_px[0]})
    assert env.step(np.zeros(6, np.float32))[-1]["world"] == "mine"
    env.close()
    # a stage can begin with the world as well as with another stage
    found, saved = (
        initial_weights(runs / "tiny", name) for name in (str(tmp_path / "world"), "bidirectional")
    )
    name = "final_layer.linear.weight"
    assert found.keys() >= {name} and torch.allclose(found[name], saved[name], atol=1e-3)


def test_the_last_stage_packs_a_world_of_the_data_it_was_trained_on(runs, capsys):
    bidirectional.run(
        bidirectional.BidirectionalConfig(world="tiny", runs=runs, own=OwnData(runs / "packed"), loop=LOOP)
    )
    config = distill.DistillConfig(
        world="tiny",
        runs=runs,
        own=OwnData(runs / "packed"),
        loop=LOOP,
        frames=4,
        init_from="bidirectional",
        sessions=0,
    )
    distill.run(config)
    world = WorldModel.load(runs / "tiny" / "world").config
    assert world.first_frames is None and (world.max_translation_m, world.max_rotation_rad) == largest_motion(
        runs / "packed"
    )
    export_stage(replace(config, own=OwnData(runs)))  # no packed clips there to learn the largest action from
    assert "sana-wm train export --stage distill --data" in capsys.readouterr().out


def test_largest_motion_is_that_of_the_chunks(tmp_path):
    path = np.concatenate(
        [np.eye(4)[None], twist_path([0, 0, 1.2, 0, 0.6, 0], 48)]
    )  # two chunks of 0.6 m and 0.3 rad
    write_packed(
        tmp_path,
        [PackedClip("a", np.zeros((49, 8, 8, 3), np.uint8), path, np.ones((49, 4), np.float32), "")],
        1,
    )
    assert largest_motion(tmp_path) == (0.6, 0.3)


def test_an_autoencoder_may_be_taken_over_as_it_is(runs, tmp_path):
    config = autoencoder.AutoencoderStageConfig(
        runs=tmp_path, data=runs / "packed", start_from="rooms", loop=replace(LOOP, steps=0)
    )
    autoencoder.run(config)
    taken = autoencoder.load_trained(tmp_path / "rooms" / "autoencoder", "cpu")
    theirs = WorldModel.load("rooms").autoencoder
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in taken.state_dict().items())


def test_what_does_not_fit_is_refused(runs, tmp_path):
    own, right = OwnData(runs / "packed"), coder(runs)
    with pytest.raises(ValueError, match=r"64 x 64 pixels.*wanted 32 x 32.*--size 64 64"):
        read_own(own, (32, 32), right)
    other = coder(runs)
    other.latents_mean += 1
    with pytest.raises(ValueError, match=r"another autoencoder.*sana-wm data latents"):
        read_own(own, (64, 64), other)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_own(OwnData(tmp_path / "nowhere"), (64, 64), right)
    with pytest.raises(FileNotFoundError, match="wanted the published layout"):
        read_own(OwnData(tmp_path), (64, 64), right)
    (tmp_path / "clips-000000.tar").write_bytes(packed_tars(runs / "packed")[0].read_bytes())
    with pytest.raises(FileNotFoundError, match="without latents: run `sana-wm data latents"):
        read_own(OwnData(tmp_path), (64, 64), right)
    (tmp_path / "clips-000000.tar").write_bytes(packed_tars(runs / "packed")[0].read_bytes()[:1800])
    with pytest.raises(ValueError, match="cannot be read to its end"):
        list(read_packed(tmp_path / "clips-000000.tar"))
    with pytest.raises(ValueError, match=r"64 x 64 pixels.*--size 64 64"):
        autoencoder.AutoencoderStage(
            autoencoder.AutoencoderStageConfig(data=runs / "packed", size=(32, 32), model=CODER)
        )


# ---- the published layout


def written(
    root: Path, keys: tuple[str, ...] = ("a",), latents: int = 3, channels: int = 4, **changes
) -> list[PublishedClip]:
    """Clips of (channels, latents, 22, 40) along a curve, written below root as set.zip."""
    frames = 8 * (latents - 1) + 1
    random = np.random.default_rng(0)
    clips = [
        PublishedClip(
            key,
            random.standard_normal((channels, latents, *GRID), np.float32),
            path_of(frames),
            np.tile(K, (frames, 1)),
            SIZE,
            f"prompt of {key}",
        )
        for key in keys
    ]
    assert write_published(root, "set", [replace(clip, **changes) for clip in clips]) == len(keys)
    return clips


def whole_window(source: PublishedLatents, row: int = 0) -> Window:
    clips = LatentClips(list(source.clips()), source.size, TextEncoderConfig(), "cpu")
    return clips.window(
        Sessions(torch.tensor([row]), torch.tensor([0]), torch.tensor([True])), int(clips.lengths[row])
    )


def rays(c2w: np.ndarray, grid: tuple[int, int] = GRID) -> np.ndarray:
    """(6, h, w): unit direction d and t x d at integer cells of the latent grid, written down once more."""
    fx, fy, cx, cy = np.array(K) * [40 / 1280, 22 / 704, 40 / 1280, 22 / 704]
    y, x = np.mgrid[: grid[0], : grid[1]].astype(float)
    d = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) @ c2w[:3, :3].T
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    return np.concatenate([d, np.cross(c2w[:3, 3], d)], -1).transpose(2, 0, 1)


def test_published_conventions(tmp_path):
    """Latents as they are; poses relative to frame 0, metric, not normalised; raw frames 0, 8, 16; intrinsics
    on the latent grid.
    """
    (clip,) = written(tmp_path)
    (tmp_path / "data" / "set_metric_scale_stats.json").write_text(json.dumps({"a": {"score": 2.5}}))
    window = whole_window(PublishedLatents(tmp_path, SIZE, broken_below=0))
    assert np.allclose(window.latents[0], clip.z, atol=2e-3)
    metric = np.linalg.inv(clip.c2w[0]) @ clip.c2w
    metric[:, :3, 3] *= 2.5
    camera = window.camera[0].numpy()
    assert np.array_equal(camera[0, :16].reshape(4, 4), np.eye(4))
    assert np.allclose(camera[:, :16].reshape(-1, 4, 4), metric[[0, 8, 16]], atol=1e-5)
    assert np.allclose(camera[:, 16:], [900 * 40 / 1280, 910 * 22 / 704, 650 * 40 / 1280, 340 * 22 / 704])
    plucker = window.plucker[0].numpy()
    assert plucker.shape == (48, 3, *GRID)
    for latent, raw in (
        (0, range(0, 8)),
        (1, range(1, 9)),
        (2, range(9, 17)),
    ):  # latent 0 sees the seven poses after it
        expected = np.concatenate([rays(metric[frame]) for frame in raw])
        assert np.allclose(plucker[:, latent], expected, atol=1e-5), latent


def test_another_size_of_the_image_changes_nothing_on_the_grid(tmp_path):
    written(tmp_path)
    one, other = (
        whole_window(PublishedLatents(tmp_path, size, broken_below=0)) for size in (SIZE, (352, 640))
    )
    assert torch.allclose(one.camera, other.camera) and torch.allclose(one.plucker, other.plucker, atol=1e-6)


def test_no_camera_stands_still(tmp_path):
    written(tmp_path)
    (tmp_path / "data" / "set_camera.npz").unlink()
    (clip,) = PublishedLatents(tmp_path, SIZE, broken_below=0).clips()
    assert torch.equal(clip.c2w, torch.eye(4, dtype=torch.float64).expand(17, 4, 4))
    assert torch.equal(clip.intrinsics_px, torch.tensor([1280.0, 704, 640, 352]).expand(17, 4))


def test_small_latents_count_as_broken_unless_told_otherwise(tmp_path):
    written(tmp_path, ("a", "b"))
    source = PublishedLatents(tmp_path, SIZE)
    assert not list(source.clips()) and source.dropped == {"latents below 10 MiB (--min-mib)": 2}
    assert source.broken_below < 128 * 121 * 22 * 40 * 4  # a whole minute passes


def test_every_dropped_clip_is_counted(tmp_path):
    keys = tuple("abcdef")
    written(tmp_path, keys)
    base = tmp_path / "data" / "set"
    scores = {
        name: dict.fromkeys(keys, (low + high) / 2) for name, (low, high) in FILTERS["sekai-game"].items()
    }
    scores["dover"]["b"] = 0.24
    scores["unimatch"]["c"] = float("nan")
    del scores["vmafmotion"]["d"]
    for name, values in scores.items():
        Path(f"{base}_{name}.json").write_text(
            json.dumps({key: {"score": value} for key, value in values.items()})
        )
    lines = [json.dumps({"key": key, "score": value}) for key, value in scores["dover"].items()]
    Path(f"{base}_dover.jsonl").write_text("\n".join(lines))
    Path(f"{base}_dover.json").unlink()
    Path(f"{base}_LongSceneStaticCaption.json").write_text(json.dumps({"a": {"caption": "a still place"}}))
    with np.load(f"{base}_camera.npz") as file:
        cameras = dict(file)
    cameras["intrinsics"][cameras["ranges"][4, 0] :][:17, 0] *= (
        0.7  # of e: fx and fy differ by more than a fifth
    )
    cameras["pose"][cameras["ranges"][5, 0], 0, 0] = 3
    np.savez(f"{base}_camera.npz", **cameras)
    source = PublishedLatents(tmp_path, SIZE, filter_ranges("sekai-game"), 0, "_LongSceneStaticCaption")
    (kept,) = source.clips()
    assert kept.caption == "a still place"
    assert source.dropped == {
        "dover outside 0.25 to 1": 1,
        "unimatch outside 3 to 80": 1,
        "no vmafmotion score": 1,
        "focal lengths differ by more than 20%": 1,
        "poses that are no rigid motions": 1,
    }
    assert [clip.caption for clip in PublishedLatents(tmp_path, SIZE, broken_below=0).clips()] == [
        f"prompt of {key}" for key in "abcde"
    ]


def test_filters_are_those_of_the_paper():
    assert FILTERS["dl3dv-gs"]["vmafmotion"] == (6, 50) and FILTERS["sekai-walking"]["vlm_entity_filter"] == (
        0,
        25,
    )
    assert rejected({"cuts": 1}, {"cuts": (0, 1)}) is None
    with pytest.raises(ValueError, match="wanted one of omniworld"):
        filter_ranges("sekai")
    wide = 640 / np.tan(np.radians(121) / 2)
    assert (
        bad_camera((wide, wide, 640, 352), SIZE)
        and bad_camera((0, 1, 0, 0), SIZE)
        and not bad_camera((700, 800, 640, 352), SIZE)
    )


def test_half_a_layout_is_refused(tmp_path):
    written(tmp_path)
    (tmp_path / "data" / "more.zip").write_bytes((tmp_path / "data" / "set.zip").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"without latents for more.zip"):
        PublishedLatents(tmp_path, SIZE)


def test_published_latents_are_trained_on(runs, tmp_path, capsys):
    """Own clips in the published layout: the same latents as beside the tars, but sessions begin where clips
    do.
    """
    arguments = ["--runs", str(runs), "--world", "tiny", "--layout", "published"]
    assert (
        cli.main(["data", "latents", str(runs / "packed"), *arguments]) == 2
        and "without --out" in capsys.readouterr().err
    )
    assert not cli.main(["data", "latents", str(runs / "packed"), *arguments, "--out", str(tmp_path)])
    own, published = (
        LatentClips(read_own(data, (64, 64), coder(runs)), (64, 64), TextEncoderConfig(), "cpu")
        for data in (OwnData(runs / "packed"), OwnData(tmp_path, min_mib=0))
    )
    assert torch.equal(own.moving, published.moving) and torch.allclose(own.c2w, published.c2w, atol=1e-12)
    assert set(published.draw(50, 4, torch.Generator().manual_seed(0)).start.tolist()) == {0}
    at = Sessions(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([True, False]))
    for one, other in zip(
        vars(own.window(at, 4)).values(), vars(published.window(at, 4)).values(), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(ValueError, match=r"no clips out of .*; 2 dropped: latents below 10 MiB"):
        read_own(OwnData(tmp_path), (64, 64), coder(runs))
    loop = replace(LOOP, preview=0)
    bidirectional.run(
        bidirectional.BidirectionalConfig(
            world="tiny", name="zip", runs=runs, own=OwnData(tmp_path, min_mib=0), loop=loop
        )
    )
    assert (runs / "tiny" / "zip" / "checkpoint.pt").exists()


def test_zooming_cameras_have_each_frame_its_own_intrinsics():
    c2w = torch.from_numpy(relative_to_first(path_of(17))).float()[None].expand(2, -1, -1, -1)
    still, steps = torch.tensor([[900.0, 910, 650, 340], [500, 510, 640, 352]]), torch.linspace(1, 2, 17)
    for one, other in zip(
        camera_inputs(c2w, still, SIZE, GRID),
        zooming_camera_inputs(c2w, still[:, None].expand(-1, 17, -1), SIZE, GRID),
        strict=True,
    ):
        assert torch.equal(one, other)
    zoom = still[:, None] * torch.stack([steps, steps, torch.ones(17), torch.ones(17)], -1)
    camera, plucker = zooming_camera_inputs(c2w, zoom, SIZE, GRID)
    assert torch.allclose(camera[0, :, 16], 900 * steps[[0, 8, 16]] * 40 / 1280)
    alone, rays_alone = camera_inputs(c2w[:, :1] @ c2w[:, 9:10], zoom[:, 9], SIZE, GRID)
    assert torch.allclose(plucker[:, :6, 2], rays_alone[:, :6, 0]) and not torch.equal(
        alone[:, 0], camera[:, 1]
    )
    after = zooming_camera_inputs(
        c2w[:, 1:], zoom[:, 1:], SIZE, GRID, opens=False
    )  # the same frames, later in a session
    assert torch.equal(after[0], camera[:, 1:]) and torch.equal(after[1], plucker[:, :, 1:])
