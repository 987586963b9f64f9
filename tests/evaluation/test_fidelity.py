"""The report on worlds whose right figures are known: one that knows the truth, and one that never moves."""

import json

import numpy as np
import pytest
import torch
from known_worlds import Oracle, Still

from sana_wm_env.evaluation import fidelity
from sana_wm_env.evaluation.episodes import Episodes, check_rooms, draw_episodes, label_rooms, spread_evenly
from sana_wm_env.evaluation.metrics import PSNR_CEILING_DB
from sana_wm_env.model.codecs.autoencoder import Autoencoder, AutoencoderConfig
from sana_wm_env.rooms import HELD_OUT, HOME
from sana_wm_env.rooms.scene import sample_scenes


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return draw_episodes(count=3, chunks=2, seed=5)


def test_plan_takes_held_out_rooms_and_relative_poses(episodes):
    assert episodes.seeds == [HELD_OUT + 5, HELD_OUT + 6, HELD_OUT + 7]
    relative = torch.linalg.inv(episodes.path[:, :1]) @ episodes.path[:, 1:]
    assert torch.allclose(relative, episodes.drives["world"].flatten(1, 2), atol=1e-9)
    back = episodes.drives["world"][:, 0, -1] @ episodes.drives["reversed"][:, 0, -1]
    assert torch.allclose(back, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), atol=1e-9)
    assert torch.equal(episodes.drives["shuffled"][2], episodes.drives["world"][0])


def test_episodes_at_home_take_paths_that_training_never_saw():
    home, away = (draw_episodes(count=3, chunks=2, seed=46, rooms=rooms) for rooms in ("home", "held-out"))
    assert home.scenes.captions == sample_scenes([HOME[46], HOME[47], HOME[0]]).captions
    assert home.seeds == away.seeds and min(home.seeds) >= HELD_OUT
    assert label_rooms("home", 46, 3) == ["home 46", "home 47", "home 0"]
    with pytest.raises(ValueError, match="home, held-out, or both"):
        check_rooms(("home", "home"))


@pytest.mark.parametrize("wrong", [{"count": 1}, {"chunks": 0}, {"seed": -1}])
def test_plan_refuses_what_cannot_be_measured(wrong):
    with pytest.raises(ValueError, match="at least 2 episodes"):
        draw_episodes(**({"count": 2, "chunks": 1, "seed": 0} | wrong))


def test_a_world_that_knows_the_truth_closes_the_whole_distance(episodes):
    measured = fidelity.measure_fidelity(Oracle(), episodes, batch=2)
    result = fidelity.summarise(measured)
    for k in range(2):
        psnr = {condition: cells[k]["mean"] for condition, cells in result["figures"]["psnr_db"].items()}
        assert psnr["world"] == psnr["autoencoder"] == pytest.approx(PSNR_CEILING_DB)
        assert result["figures"]["ssim"]["world"][k]["mean"] == pytest.approx(1)
        assert result["share_of_distance_closed"]["psnr_db"][k] == pytest.approx(1)
        for control in ("still", "shuffled", "reversed"):
            assert psnr[control] < 35
            assert result["world_minus_control_psnr_db"][control][k]["mean"] == pytest.approx(
                psnr["world"] - psnr[control]
            )
        for figure in fidelity.SHARPNESS:
            assert (
                result[figure]["world"][k] == result[figure]["truth"][k]
                and result[figure]["world_over_truth"][k] == 1
            )
        assert 0 < result["visible_share"][k]["mean"] < 1
    assert result["finite"]


def test_a_world_that_never_moves_closes_nothing(episodes):
    result = fidelity.summarise(fidelity.measure_fidelity(Still(), episodes, batch=3))
    assert result["share_of_distance_closed"]["psnr_db"] == pytest.approx([0, 0])
    assert (
        result["figures"]["psnr_db"]["world"]
        == result["figures"]["psnr_db"]["still"]
        == result["figures"]["psnr_db"]["shuffled"]
    )


def test_the_batch_does_not_change_the_report(episodes):
    reports = [fidelity.summarise(fidelity.measure_fidelity(Oracle(), episodes, batch)) for batch in (1, 2)]
    assert json.dumps(reports[0]) == json.dumps(reports[1])


def test_frames_before_the_camera_moves_do_not_count(episodes):
    path = episodes.path.clone()
    path[2, 1:25] = path[2, :1]  # episode 2 stands still for its first chunk
    drives = {name: drive.clone() for name, drive in episodes.drives.items()}
    measured = fidelity.measure_fidelity(
        Oracle(), Episodes(episodes.seeds, episodes.scenes, path, drives), batch=3
    )
    still = measured.figures["still", "psnr_db"]
    assert np.isnan(still[2, 0]) and np.isfinite(still[2, 1])
    assert (
        fidelity.summarise(measured)["figures"]["psnr_db"]["still"][0]["episodes"]
        == np.isfinite(still[:, 0]).sum()
        < 3
    )


def test_nan_in_a_carried_state_is_noticed(episodes):
    class Broken(Still):
        def step(self, state, c2w, sigmas=None):
            return super().step(state, c2w)[0], torch.full((2,), float("nan"))

    short = draw_episodes(count=2, chunks=1, seed=5)
    assert not fidelity.measure_fidelity(Broken(), short).finite
    assert fidelity.measure_fidelity(Still(), short).finite


def test_reconstruction_runs_the_real_autoencoder_one_clip_at_a_time():
    class World:
        autoencoder = Autoencoder(
            AutoencoderConfig(latent_channels=8, fine=16, coarse=16, encoder_blocks=1, decoder_blocks=1)
        ).eval()

    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9, 16, 16, 3), dtype=np.uint8))
    with torch.inference_mode():
        both = fidelity.reconstruct(World(), video)
        decoded, _ = World.autoencoder.decode(
            World.autoencoder.encode(video.movedim(-1, 1).float() / 127.5 - 1)
        )
    assert both.shape == video.shape and both.dtype == torch.uint8
    wanted = ((decoded.movedim(1, -1) + 1) * 127.5).clamp(0, 255)
    assert (both.float() - wanted).abs().max() <= 0.51


def test_spread_and_share():
    assert spread_evenly(3, 5) == [0, 1, 2]
    assert spread_evenly(40, 5) == [0, 10, 20, 29, 39]
    assert fidelity.share_closed(world=22.0, still=20.0, autoencoder=30.0) == pytest.approx(0.2)
    assert fidelity.share_closed(world=18.0, still=20.0, autoencoder=30.0) == pytest.approx(-0.2)
    assert fidelity.share_closed(world=22.0, still=30.0, autoencoder=30.0) is None
    assert (
        fidelity.share_closed(world=10.0, still=30.0, autoencoder=20.0) is None
    )  # not 2: nothing was closed
