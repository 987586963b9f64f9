"""Action following of worlds whose right figures are known, and of the bundled one."""

import json

import numpy as np
import pytest
import torch
from tqdm import tqdm

from sana_wm_env import cli
from sana_wm_env.camera import step_twists, twist_path
from sana_wm_env.evaluation import follow
from sana_wm_env.evaluation.episodes import Episodes, draw_episodes
from sana_wm_env.evaluation.poses import ALIGNMENTS
from sana_wm_env.model.world import World
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.paths import sample_starts, twist_paths
from sana_wm_env.rooms.render import render
from sana_wm_env.rooms.scene import sample_scenes

SIZE = (48, 48)


class Config:
    image_size = SIZE


class Oracle(World):
    """Renders what it is asked to imagine; `speed` of it. The noise generator's seed tells the room."""

    config, frames_per_step = Config(), 24

    def __init__(self, speed: float = 1.0):
        self.speed = speed

    def start(self, images, intrinsics_px, prompts, generators):
        seeds = [generator.initial_seed() for generator in generators]
        scenes = sample_scenes(seeds)
        return scenes, sample_starts(scenes, seeds)

    def step(self, state, c2w, sigmas=None):
        scenes, starts = state
        slower = c2w.clone()
        slower[..., :3, 3] *= self.speed
        return render(scenes, starts[:, None] @ slower, default_intrinsics(SIZE), SIZE).rgb, state


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    """Three rooms; each camera walks, turns and rises a little: of the walks that training draws some stand
    still.
    """
    drawn = draw_episodes(count=3, chunks=1, seed=40)
    twists = torch.tensor(
        [[0.1, 0, 0.4, 0, 0.2, 0], [-0.2, -0.1, 0.2, 0.05, -0.2, 0], [0.3, 0, -0.1, 0, -0.1, 0.05]]
    )[:, None]
    origin = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    drives = {"world": twist_paths(origin, twists)[:, 1:].unflatten(1, (1, -1))}
    return Episodes(drawn.seeds, drawn.scenes, twist_paths(drawn.path[:, 0], twists), drives)


def watched(world, episodes) -> follow.Followed:
    with tqdm(disable=True) as bar:
        return follow.watch(world, episodes, 2, bar)


@pytest.fixture(scope="module")
def followed(episodes) -> follow.Followed:
    return watched(Oracle(), episodes)


def mean(followed, condition: str, figure: str, alignment: str = "none") -> float:
    return float(follow.score(followed, 1, alignment)[condition][figure].mean())


def test_a_world_that_obeys_is_as_good_as_the_estimator(followed):
    assert np.array_equal(followed.estimated["world"], followed.estimated["truth"])
    result = follow.summarise(followed, [1], seeds=3)
    for figure in follow.FIGURES:
        cell = result["none"]["1"][figure]
        assert cell["within_estimator_error"]
        assert all(cell["control_over_world"][control]["low"] > 3 for control in ("reversed", "shuffled"))
    assert mean(followed, "world", "rot_err_deg") < 1 and mean(followed, "world", "trans_err_m") < 0.05
    assert mean(followed, "mirrored", "rot_err_deg") > mean(followed, "still", "rot_err_deg") > 3
    assert " *" in follow.table(result, "none")


def test_a_world_that_moves_at_half_speed_is_caught_and_its_scale_found(episodes):
    slow = watched(Oracle(0.5), episodes)
    travelled = np.linalg.norm(slow.commanded[:, 1:, :3, 3], axis=-1).mean()
    assert mean(slow, "world", "trans_err_m") == pytest.approx(travelled / 2, rel=0.15)
    assert mean(slow, "world", "trans_err_m", "scale") < 0.3 * mean(slow, "world", "trans_err_m")
    assert not follow.summarise(slow, [1], 1)["none"]["1"]["trans_err_m"]["within_estimator_error"]


def test_controls_change_paths_as_they_say():
    twists = np.random.default_rng(0).normal(0, 0.1, (2, 3, 6))
    path = np.stack([np.concatenate([np.eye(4)[None], *_chain(t)]) for t in twists])
    changed = follow.controls(path)
    for row in range(2):
        np.testing.assert_allclose(step_twists(changed["reversed"][row]), -step_twists(path[row]), atol=1e-9)
        wanted = step_twists(path[row]) * [-1, 1, 1, 1, -1, -1]
        np.testing.assert_allclose(step_twists(changed["mirrored"][row]), wanted, atol=1e-9)
        np.testing.assert_allclose(changed["still"][row], np.tile(np.eye(4), (4, 1, 1)))
    np.testing.assert_array_equal(changed["shuffled"], path[::-1])


def _chain(twists: np.ndarray) -> list[np.ndarray]:
    poses = [np.eye(4)]
    for twist in twists:
        poses.append(poses[-1] @ twist_path(twist, 1)[0])
    return [pose[None] for pose in poses[1:]]


def test_factors_and_their_interval():
    world = np.array([1.0, 2.0, 3.0])
    assert follow.ratio(2 * world, world) == {
        "factor": 2.0,
        "low": pytest.approx(2),
        "high": pytest.approx(2),
    }
    assert follow.ratio(world, np.zeros(3))["factor"] is None
    spread = follow.ratio(np.array([9.0, 1.0, 2.0]), world)
    assert spread["low"] < spread["factor"] == 2.0 < spread["high"]


def test_the_command_measures_the_bundled_world(tmp_path, capsys):
    """Two runs, equal bytes; horizons end with the last chunk."""
    for name in ("a", "b"):
        command = f"evaluate follow --episodes 1 --seeds 2 --chunks 1 --json {tmp_path}/{name}/follow.json"
        assert cli.main(command.split()) == 0
    reports = [(tmp_path / name / "follow.json").read_bytes() for name in ("a", "b")]
    assert reports[0] == reports[1]
    report = json.loads(reports[0])
    page = (tmp_path / "a" / "follow.md").read_text()
    assert "weights_sha256" in page
    for rooms in ("home", "held-out"):
        errors = report[rooms]["errors"]
        assert list(errors) == list(ALIGNMENTS) and list(errors["none"]) == ["1"]
        cells = errors["none"]["1"]["rot_err_deg"]
        assert set(cells["conditions"]) == set(follow.CONDITIONS) and len(cells["world_per_seed"]) == 2
        assert cells["conditions"]["truth"]["mean"] < cells["conditions"]["world"]["mean"]
        assert f"follow-{rooms}-errors.png" in page
        assert (tmp_path / "a" / f"follow-{rooms}-frames.png").stat().st_size > 1000
    assert "truth, by frames" in capsys.readouterr().out
    assert (
        cli.main(["evaluate", "follow", "--episodes", "1", "--seeds", "1", "--json", f"{tmp_path}/c.json"])
        == 2
    )
