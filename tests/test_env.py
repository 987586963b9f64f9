"""What both environments promise, and what only the imagined one does."""

import json
import pickle
import random
import subprocess
import sys
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import sana_wm_env
from sana_wm_env.camera import check_poses, compose, relative_to_first, twist_path
from sana_wm_env.model.storage.worlds import resolve_world
from sana_wm_env.model.world import WorldModel

FORWARD = np.array([0, 0, 0.5, 0, 0.5, 0], np.float32)
STILL = np.zeros(6, np.float32)
IDS = ("SanaWM-v0", "SanaWM-Rooms-v0")


@pytest.fixture(params=IDS)
def env_id(request):
    return request.param


@pytest.fixture
def env(env_id):
    with gym.make(env_id) as made:
        yield made


@pytest.fixture
def imagined():
    with gym.make("SanaWM-v0") as made:
        yield made


# Conformity


@pytest.mark.parametrize("obs_mode", ["chunk", "last", "dict"])
def test_gymnasium_checker_is_silent(env_id, obs_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, obs_mode=obs_mode).unwrapped, skip_render_check=obs_mode != "chunk")


def test_stable_baselines_checker_is_silent(env_id):
    """On `last`: a chunk has four axes, which that checker calls unconventional."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_sb3(gym.make(env_id, obs_mode="last").unwrapped)


def test_both_ids_have_the_same_spaces_scale_and_keys():
    envs = [gym.make(name) for name in IDS]
    first, second = envs
    assert first.observation_space == second.observation_space
    assert first.action_space == second.action_space == gym.spaces.Box(-1, 1, (6,), np.float32)
    assert first.unwrapped.max_translation_m == second.unwrapped.max_translation_m
    assert first.unwrapped.max_rotation_rad == second.unwrapped.max_rotation_rad
    infos = [made.reset(seed=0)[1] for made in envs]
    assert infos[0].keys() == infos[1].keys()


@pytest.mark.parametrize("registered", [name for name in gym.registry if name.startswith("SanaWM-")])
def test_registered_specs_are_strings_and_numbers(registered):
    spec = gym.spec(registered)
    assert EnvSpec.from_json(spec.to_json()) == spec and spec.max_episode_steps == 40
    assert isinstance(spec.entry_point, str) and isinstance(spec.vector_entry_point, str | None)


def test_spec_survives_json_and_pickle(env_id):
    env = gym.make(env_id, obs_mode="last", max_translation_m=0.5)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.observation_space == env.observation_space and again.unwrapped.max_translation_m == 0.5
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    assert (copy.reset(seed=3)[0] == env.reset(seed=3)[0]).all()
    json.loads(env.spec.to_json())


@pytest.mark.filterwarnings("ignore:.*render_mode")  # Gymnasium warns before we refuse
@pytest.mark.parametrize(
    "name, value",
    [
        ("obs_mode", "video"),
        ("render_mode", "ansi"),
        ("max_translation_m", 0),
        ("max_rotation_rad", float("nan")),
    ],
)
def test_bad_arguments_are_refused(env_id, name, value):
    with pytest.raises(ValueError, match=f"got {name}="):
        gym.make(env_id, **{name: value})


# What reset and step return


def test_reset_and_step(env):
    obs, info = env.reset(seed=7)
    height, width = env.unwrapped.image_size
    assert obs.shape == (24, height, width, 3) and obs.dtype == np.uint8
    assert (obs == obs[0]).all() and obs[0].std() > 5  # the first frame fills the chunk, and shows something
    assert info["n_new_frames"] == 1 and info["chunk_index"] == 0 and (info["c2w"] == np.eye(4)).all()
    keys = set(info)
    for index in (1, 2):
        obs, reward, terminated, truncated, info = env.step(FORWARD)
        assert obs.shape == (24, height, width, 3) and obs.dtype == np.uint8
        assert (type(reward), reward, terminated, truncated) == (float, 0.0, False, False)
        assert set(info) == keys and info["n_new_frames"] == 24 and info["chunk_index"] == index
        assert info["intrinsics_px"].shape == (3, 3) and info["intrinsics_px"].dtype == np.float64
        assert check_poses(info["c2w"], 24).dtype == np.float64 and isinstance(info["world"], str)


def test_pose_follows_the_action(env):
    env.reset(seed=7)
    twist = FORWARD * np.repeat([env.unwrapped.max_translation_m, env.unwrapped.max_rotation_rad], 3)
    first = env.step(FORWARD)[4]["c2w"]
    np.testing.assert_allclose(first, twist_path(twist), atol=1e-12)
    second = env.step(-FORWARD)[4]["c2w"]
    np.testing.assert_allclose(second, compose(first[-1], twist_path(-twist)), atol=1e-12)
    np.testing.assert_allclose(second[-1], np.eye(4), atol=1e-9)


def test_still_camera_keeps_its_pose_exactly(env):
    env.reset(seed=7)
    pose = env.step(FORWARD)[4]["c2w"][-1]
    for _ in range(3):
        assert (env.step(STILL)[4]["c2w"] == pose).all()


def test_nothing_returned_is_used_again(env):
    env.reset(seed=7)
    kept = [env.step(FORWARD) for _ in range(3)]
    arrays = [array for result in kept for array in (result[0], result[4]["c2w"], result[4]["intrinsics_px"])]
    for i, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[i + 1 :])
        one.fill(0)
    assert env.step(STILL)[4]["c2w"][0, 3, 3] == 1


def test_last_is_the_newest_frame_of_the_chunk(env_id):
    chunk, last = gym.make(env_id), gym.make(env_id, obs_mode="last")
    assert (chunk.reset(seed=1)[0][-1] == last.reset(seed=1)[0]).all()
    assert (chunk.step(FORWARD)[0][-1] == last.step(FORWARD)[0]).all()


def test_make_truncates_after_a_minute():
    env = gym.make("SanaWM-Rooms-v0")
    env.reset(seed=0)
    assert [env.step(STILL)[3] for _ in range(40)] == [False] * 39 + [True]


# Randomness


def test_same_seed_same_frames_and_the_reset_after_it_too(env):
    def episodes():
        first = [env.reset(seed=7)[0], env.step(FORWARD)[0]]
        return [*first, env.reset()[0], env.step(FORWARD)[0]]

    one, two = episodes(), episodes()
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert (one[0] != one[2]).any() and (env.reset(seed=8)[0] != one[0]).any()


def test_two_processes_agree_to_the_byte(env_id):
    code = "import hashlib, numpy, gymnasium, sana_wm_env\n"
    code += f"env, total = gymnasium.make({env_id!r}, **{gym.registry[env_id].kwargs}), hashlib.sha256()\n"
    code += "total.update(env.reset(seed=7)[0]); env.action_space.seed(7)\n"
    code += (
        "for _ in range(3): obs, *_, info = env.step(env.action_space.sample()); total.update(obs); "
        "total.update(info['c2w'].copy())\n"
    )
    code += "print(total.hexdigest())"
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) == 65


def test_global_generators_are_left_alone(env):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002  # the legacy state is what is guarded
    env.reset(seed=7)
    env.step(FORWARD)
    env.reset()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_alternating_environments_do_not_disturb_each_other(env_id):
    alone = gym.make(env_id)
    wanted = [alone.reset(seed=3)[0], *(alone.step(FORWARD)[0] for _ in range(2))]
    one, two = gym.make(env_id), gym.make(env_id)
    got = [one.reset(seed=3)[0]]
    two.reset(seed=4)
    for _ in range(2):
        got.append(one.step(FORWARD)[0])
        two.step(-FORWARD)
    assert all((a == b).all() for a, b in zip(wanted, got, strict=True))


# Bad input: refused with a reason, and the environment stays usable


@pytest.mark.parametrize(
    "action, cause",
    [
        (np.full(6, np.nan), "NaN"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.full(6, 2.0), "within"),
        ("w", "type str"),
        (None, "wanted 6"),
    ],
)
def test_a_bad_action_changes_nothing(env, action, cause):
    env.reset(seed=7)
    env.step(FORWARD)
    wanted = env.step(FORWARD)
    env.reset(seed=7)
    env.step(FORWARD)
    with pytest.raises(ValueError, match=cause):
        env.step(action)
    got = env.step(FORWARD)
    assert (got[0] == wanted[0]).all() and got[4]["chunk_index"] == 2


@pytest.mark.parametrize(
    "options, cause",
    [({"images": 1}, "'images'; wanted"), (["image"], "type list"), ({"intrinsics": (1, 2)}, "intrinsics")],
)
def test_a_bad_option_changes_nothing(env, options, cause):
    env.reset(seed=7)
    wanted = env.reset()[0]
    env.reset(seed=7)
    with pytest.raises(ValueError, match=cause):
        env.reset(seed=8, options=options)
    env.step(FORWARD)
    assert (env.reset()[0] == wanted).all()


def test_order_of_calls(env_id):
    env = gym.make(env_id).unwrapped
    for call in (lambda: env.step(STILL), env.render):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            call()
    env.reset(seed=0)
    env.close()
    env.close()
    for call in (lambda: env.step(STILL), env.reset, env.render):
        with pytest.raises(gym.error.ClosedEnvironmentError, match="closed"):
            call()


# Rendering


def test_rgb_array_is_the_newest_frame(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    assert (env.reset(seed=0)[0][-1] == env.render()).all()
    obs = env.step(FORWARD)[0]
    shown = env.render()
    assert (obs[-1] == shown).all() and not np.shares_memory(shown, env.render())
    assert env.metadata["render_fps"] == 16 / 24  # one picture a step


def test_rgb_array_list_is_every_frame_once(env_id):
    env = gym.make(env_id, render_mode="rgb_array_list")
    first = env.reset(seed=0)[0][:1]
    chunks = [env.step(FORWARD)[0] for _ in range(2)]
    frames = env.render()
    assert isinstance(frames, list) and (np.stack(frames) == np.concatenate([first, *chunks])).all()
    assert env.render() == []
    env.step(FORWARD)
    env.reset(seed=1)
    assert len(env.render()) == 1


# Only the imagined world


def test_starts_where_the_exact_rooms_start():
    exact, imagined = gym.make("SanaWM-Rooms-v0"), gym.make("SanaWM-v0")
    for seed in (7, None, None):
        assert (exact.reset(seed=seed)[0] == imagined.reset(seed=seed)[0]).all()


@pytest.mark.parametrize("as_file", [False, True])
def test_own_image(imagined, tmp_path, as_file):
    from PIL import Image

    height, width = imagined.unwrapped.image_size
    picture = np.random.default_rng(0).integers(0, 256, (2 * height, 4 * width, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "first.png")
    options = {
        "image": str(tmp_path / "first.png") if as_file else picture,
        "intrinsics": (2.0 * width, 2 * width, 2 * width, height),
    }
    obs, info = imagined.reset(seed=0, options=options | {"prompt": "a blue room"})
    expected = Image.fromarray(picture).resize((2 * width, height), Image.Resampling.LANCZOS)
    assert (obs[0] == np.asarray(expected)[:, width // 2 : width // 2 + width]).all()
    np.testing.assert_allclose(
        info["intrinsics_px"], [[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]
    )
    assert imagined.step(FORWARD)[0].shape == (24, height, width, 3)


def test_prompt_is_heard(imagined):
    def third_frame(prompt):
        imagined.reset(seed=0, options={"prompt": prompt})
        return imagined.step(FORWARD)[0][2]

    assert (third_frame("a red room") != third_frame("a blue brick room, a tall green box")).any()


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"image": np.zeros((64, 64, 3), np.uint8)}, "fov_deg"),
        (
            {"image": np.zeros((64, 64, 3), np.uint8), "fov_deg": 65, "intrinsics": (60, 60, 32, 32)},
            "wanted one of them",
        ),
        ({"image": np.zeros((64, 64, 3), np.uint8), "fov_deg": 200}, "less than 170"),
        ({"fov_deg": 65}, "without an image"),
        ({"image": np.zeros((64, 64, 3)), "intrinsics": (50, 50, 32, 32)}, "float64"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "intrinsics": (50, -50, 32, 32)}, "mirror"),
        ({"intrinsics": (50, 50, 32, 32)}, "without an image"),
        ({"prompt": 7}, "type int"),
        ({"scene_seed": 7}, "image, intrinsics, fov_deg, prompt"),
    ],
)
def test_bad_first_frames_are_refused(imagined, options, cause):
    with pytest.raises(ValueError, match=cause):
        imagined.reset(seed=0, options=options)
    imagined.reset(seed=0)


def test_a_world_without_first_frames_wants_an_image(imagined, tmp_path):
    folder = imagined.unwrapped.model_folder
    for file in folder.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | {"first_frames": None, "name": "elsewhere"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    env = gym.make("SanaWM-v0", world=str(tmp_path))
    with pytest.raises(ValueError, match="'elsewhere' has no first frames"):
        env.reset()
    image = np.zeros((64, 64, 3), np.uint8)
    assert env.reset(options={"image": image, "intrinsics": (50, 50, 32, 32)})[1]["world"] == "elsewhere"


def test_unknown_world():
    with pytest.raises(ValueError, match="unknown world 'nowhere'"):
        gym.make("SanaWM-v0", world="nowhere")


def test_a_world_of_clips_is_refused_before_it_is_opened(tmp_path):
    """Weights that need many steps per clip would give something in few, and something wrong."""
    settings = json.loads((resolve_world("rooms") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "variants": ["bidirectional"]}))
    with pytest.raises(
        ValueError, match="the world 'rooms' has no variant 'streaming'; it has bidirectional"
    ):
        gym.make("SanaWM-v0", world=str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named_at_reset():
    with pytest.raises(ValueError, match="no CUDA device"):
        gym.make("SanaWM-v0", device="cuda").reset()


def test_missing_image_file(imagined):
    with pytest.raises(FileNotFoundError, match="no such file"):
        imagined.reset(options={"image": "nowhere.png", "intrinsics": (50, 50, 32, 32)})


def test_interrupted_step_can_be_repeated(imagined, monkeypatch):
    imagined.reset(seed=7)
    wanted = imagined.step(FORWARD)[0]
    imagined.reset(seed=7)
    model = imagined.unwrapped.model
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            imagined.step(FORWARD)
    assert (imagined.step(FORWARD)[0] == wanted).all()


def test_poses_of_a_whole_episode_are_one_path(imagined):
    infos = [imagined.reset(seed=7)[1], *(imagined.step(FORWARD)[4] for _ in range(2))]
    path = np.concatenate([info["c2w"][-info["n_new_frames"] :] for info in infos])
    assert len(path) == 49
    np.testing.assert_allclose(relative_to_first(path), path, atol=1e-9)


def test_package_docs_name_what_exists():
    assert set(sana_wm_env.__all__) <= set(dir(sana_wm_env))


# Looking around


def test_a_look_around_is_remembered_and_changes_nothing_that_is_shown_at_first(imagined):
    plain, _ = imagined.reset(seed=5)
    looked, info = imagined.reset(seed=5, options={"look_around": True})
    assert (plain == looked).all() and info["chunk_index"] == 0 and (info["c2w"] == np.eye(4)).all()
    state = imagined.unwrapped.save_state()
    assert state.observed.tolist() == [5] and state.chunk_index.tolist() == [0]
    seen, *_, info = imagined.step(FORWARD)
    assert info["chunk_index"] == 1
    imagined.reset(seed=5, options={"look_around": False})
    assert (imagined.step(FORWARD)[0] != seen).any()
    imagined.unwrapped.restore_state(state)
    assert np.abs(imagined.step(FORWARD)[0].astype(int) - seen).max() <= 1


@pytest.mark.parametrize(
    ("trained", "room", "observed"), [(True, 3, 5), (True, None, 5), (True, "held-out", 0), (False, 3, 0)]
)
def test_a_world_looks_around_by_itself_at_home_if_it_was_trained_to(imagined, trained, room, observed):
    env = imagined.unwrapped
    imagined.reset()
    env.model = WorldModel(
        replace(env.model.config, looks_around=trained),
        env.model.transformer,
        env.model.autoencoder,
        env.model.text_encoder,
    )
    imagined.reset(seed=1, options={"room": room})
    assert env.save_state().observed.tolist() == [observed]


def test_slots_that_looked_around_step_beside_others_that_did_not():
    vector = gym.make_vec("SanaWM-v0", num_envs=2)
    options = {"per_slot": [{"room": 1, "look_around": True}, {"room": 1, "look_around": False}]}
    vector.reset(seed=[3, 3], options=options)
    frames = vector.step(np.stack([FORWARD] * 2))[0]
    with gym.make("SanaWM-v0") as alone:
        for row, given in enumerate(options["per_slot"]):
            alone.reset(seed=3, options=given)
            assert np.abs(alone.step(FORWARD)[0].astype(int) - frames[row]).max() <= 3
    vector.close()


def test_a_picture_cannot_be_looked_around_in(imagined):
    picture = {"image": np.zeros((64, 64, 3), np.uint8), "fov_deg": 60, "look_around": True}
    with pytest.raises(ValueError, match="got look_around beside an image"):
        imagined.reset(options=picture)
    with pytest.raises(ValueError, match=r"got look_around='yes'; wanted True or False"):
        imagined.reset(options={"look_around": "yes"})


def test_a_session_goes_on_with_what_a_camera_saw(imagined):
    """The exact twin shows what a robot really met; the imagination takes it in and goes on from there."""
    with gym.make("SanaWM-Rooms-v0") as exact:
        exact.reset(seed=2)
        imagined.reset(seed=2)
        met, *_, info = exact.step(FORWARD)
        shown, about = imagined.unwrapped.observe(met, info["c2w"])
    assert (shown == met[-1]).all() and np.array_equal(about["c2w"][-1], info["c2w"][-1])
    assert about["chunk_index"] == 0 and about["n_new_frames"] == 1
    *_, about = imagined.step(STILL)
    assert about["chunk_index"] == 1 and np.array_equal(about["c2w"][-1], info["c2w"][-1])
    before = imagined.unwrapped.save_state()
    for frames, c2w in (
        (met[:20], info["c2w"][:20]),
        (met, info["c2w"][:20]),
        (met, 2 * info["c2w"]),
        (met.astype(float), info["c2w"]),
        (met[0, 0, 0, 0], info["c2w"]),
        ("met.mp4", info["c2w"]),
    ):
        with pytest.raises(ValueError, match=r"got (poses|frames)|(poses|frames) are"):
            imagined.unwrapped.observe(frames, c2w)
    assert imagined.unwrapped.save_state().observed.tolist() == before.observed.tolist() == [1]
