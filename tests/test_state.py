"""Sessions of `SanaWM-v0`: saved, restored, branched, tried out."""

import os
import stat
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

import sana_wm_env
from sana_wm_env.model.network.time_origin import shift_time
from sana_wm_env.model.state import concatenate
from sana_wm_env.model.tree import tensors_of
from sana_wm_env.tasks import Task, Verdict, make_task

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def shared():
    """One environment after two chunks, for tests that put it back where they found it."""
    with gym.make("SanaWM-v0") as env:
        env.reset(seed=7)
        for action in ACTIONS[:2]:
            env.step(action)
        yield env


@pytest.fixture
def env(shared):
    state = shared.unwrapped.save_state()
    yield shared
    sana_wm_env.restore(shared, state)


def play(env, actions):
    return [env.step(action) for action in actions]


def same(one, other):
    return all(
        (a[0] == b[0]).all()
        and a[1:4] == b[1:4]
        and all(np.array_equal(a[4][key], b[4][key]) for key in a[4] | b[4])
        for a, b in zip(one, other, strict=True)
    )


def fingerprint(state):
    return [t.clone() for t in tensors_of(state)]


# ---- save and restore


def test_the_same_steps_follow_a_restored_state_to_the_byte(env):
    state = env.unwrapped.save_state()
    before = fingerprint(state)
    newest = env.step(ACTIONS[2])
    state_after = env.unwrapped.save_state()
    wanted = [newest, *play(env, ACTIONS[3:5])]
    obs, info = env.unwrapped.restore_state(state_after)
    assert (
        (obs == newest[0][-1]).all()
        and info["n_new_frames"] == 1
        and info["chunk_index"] == 3
        and set(info) == set(newest[4])
    )
    assert (info["c2w"] == newest[4]["c2w"][-1]).all()
    env.unwrapped.restore_state(state)
    assert same(play(env, ACTIONS[2:5]), wanted)
    assert all(
        torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True)
    )  # a state is a value


def test_restore_sets_the_step_counter_of_make(env):
    limit = TimeLimit(env.env, 4)  # in place of the 40 chunks of make
    limit.reset(seed=7)
    state = limit.unwrapped.save_state()
    wanted = play(limit, ACTIONS[:4])
    assert [step[3] for step in wanted] == [False, False, False, True]
    sana_wm_env.restore(limit, state)
    assert same(play(limit, ACTIONS[:4]), wanted)
    limit.unwrapped.restore_state(state)
    assert limit.step(ACTIONS[0])[3]  # the way that is documented not to set it


def test_restore_needs_no_reset_and_a_rendered_frame_follows():
    first = gym.make("SanaWM-v0", render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        first.unwrapped.save_state()
    first.reset(seed=1)
    state = first.unwrapped.save_state()  # before the first chunk
    wanted = first.step(ACTIONS[0])
    second = gym.make("SanaWM-v0", render_mode="rgb_array")
    obs, _ = sana_wm_env.restore(second, state)
    assert (second.render() == obs[-1]).all()
    assert same([second.step(ACTIONS[0])], [wanted])
    second.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        second.unwrapped.restore_state(state)


def test_another_process_goes_on_from_the_file(env, tmp_path):
    env.unwrapped.save_state().save(tmp_path / "state.safetensors")
    np.save(tmp_path / "actions.npy", ACTIONS[2:4])
    code = (
        "import sys, numpy, gymnasium, sana_wm_env; env = gymnasium.make('SanaWM-v0'); folder = sys.argv[1]\n"
    )
    code += "sana_wm_env.restore(env, sana_wm_env.WorldState.load(folder + '/state.safetensors'))\n"
    code += (
        "numpy.save(folder + '/frames.npy', [env.step(action)[0] for action in numpy.load(folder + "
        "'/actions.npy')])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (np.load(tmp_path / "frames.npy") == np.stack([step[0] for step in play(env, ACTIONS[2:4])])).all()


@pytest.mark.skipif(os.name != "posix", reason="permissions are Unix's")
def test_a_saved_state_may_be_read_by_whom_any_new_file_may_be(env, tmp_path):
    state, path = env.unwrapped.save_state(), tmp_path / "state.safetensors"
    (tmp_path / "plain").touch()
    state.save(path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    state.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_state_that_does_not_fit_leaves_the_environment_as_it_was(env, tmp_path):
    state = env.unwrapped.save_state()
    wanted = play(env, ACTIONS[2:3])
    sana_wm_env.restore(env, state)
    broken = tmp_path / "broken.safetensors"
    state.save(broken)
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        env.unwrapped.restore_state(sana_wm_env.WorldState.load(broken))
    for bad, cause in ((state.expand(2), "2 sessions"), (broken, "PosixPath; wanted a WorldState")):
        with pytest.raises(ValueError, match=cause):
            env.unwrapped.restore_state(bad)
    goal = env.unwrapped.twin()
    goal.rules = replace(goal.rules, task=make_task("goal"))
    with pytest.raises(
        ValueError, match=r"keeps nothing, which does not fit this one .it needs 'goal_image'"
    ):
        goal.restore_state(state)
    assert same(play(env, ACTIONS[2:3]), wanted)


def test_a_goal_travels_with_the_session(env):
    goal = env.unwrapped.twin()
    goal.rules = replace(goal.rules, task=make_task("goal"))
    goal.reset(seed=2)
    state = goal.save_state()
    wanted = goal.step(ACTIONS[0])
    assert set(state.task) >= {"goal_c2w", "goal_image"}
    goal.reset(seed=3)
    goal.restore_state(state)
    assert same([goal.step(ACTIONS[0])], [wanted])


def test_an_interrupted_step_leaves_the_episode_before(env, monkeypatch):
    state = env.unwrapped.save_state()
    wanted = play(env, ACTIONS[2:3])
    sana_wm_env.restore(env, state)
    decode = env.unwrapped.model.autoencoder.decode
    monkeypatch.setattr(
        env.unwrapped.model.autoencoder, "decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        env.step(ACTIONS[2])
    monkeypatch.setattr(env.unwrapped.model.autoencoder, "decode", decode)
    assert same(play(env, ACTIONS[2:3]), wanted)


# ---- branches and what-ifs


def test_branches_go_on_alike_and_leave_their_parent_alone(env):
    parent = env.unwrapped.save_state()
    before = fingerprint(parent)
    forks = env.unwrapped.fork(3)
    together = concatenate(forks.save_state())
    assert together.nbytes_shared == 2 * parent.nbytes  # three sessions in the memory of one
    obs, _, _, _, info = forks.step(np.stack([ACTIONS[2], ACTIONS[2], ACTIONS[3]]))
    assert (obs[0] == obs[1]).mean() > 0.999 and (obs[0] != obs[2]).any()
    assert (info["chunk_index"] == 3).all()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(env.unwrapped.save_state()), strict=True))
    step = env.step(ACTIONS[2])
    assert np.abs(step[0].astype(int) - obs[0]).max() <= 3 and (step[4]["c2w"] == info["c2w"][0]).all()


def test_branches_may_have_noise_of_their_own(env):
    alike, apart = env.unwrapped.fork(2), env.unwrapped.fork(2, independent_noise=True)
    rows = [concatenate(forks.save_state()).generators for forks in (alike, apart)]
    assert torch.equal(rows[0][0], rows[0][1]) and not torch.equal(rows[1][0], rows[1][1])
    again = concatenate(env.unwrapped.fork(2, independent_noise=True).save_state()).generators
    assert torch.equal(rows[1], again)
    obs = apart.step(np.stack([ACTIONS[2]] * 2))[0]
    assert (obs[0] != obs[1]).any()


class Brightness(Task):
    """Looks at the frames, and ends after the second chunk that it sees."""

    def judge(self, goal, moment):
        return Verdict(float(moment.frames.mean()), moment.chunk_index == 4)


def test_imagine_is_what_stepping_gives(env, monkeypatch):
    monkeypatch.setattr(env.unwrapped, "rules", replace(env.unwrapped.rules, task=Brightness()))
    before = fingerprint(env.unwrapped.save_state())
    sequences = ACTIONS[2:8].reshape(2, 3, 6)
    imagined = env.unwrapped.imagine(sequences, decode="frames", memory_mib=0.001)  # batches of one
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(env.unwrapped.save_state()), strict=True))
    state = env.unwrapped.save_state()
    for row, sequence in enumerate(sequences):
        env.unwrapped.restore_state(state)
        steps = [env.unwrapped.step(action) for action in sequence]
        assert (imagined.frames[row] == np.stack([step[0] for step in steps])).all()
        assert (imagined.c2w[row] == np.stack([step[4]["c2w"] for step in steps])).all()
        assert imagined.rewards[row].tolist() == [steps[0][1], steps[1][1], 0.0]
        assert imagined.terminated[row].tolist() == [False, True, True]
    env.unwrapped.restore_state(state)
    last = env.unwrapped.imagine(sequences[:, :1], decode="last")
    assert np.abs(last.frames[:, 0].astype(int) - imagined.frames[:, 0, -1]).max() <= 3
    assert (
        last.latents.shape == (2, 1, 48, 3, 8, 8)
        and np.abs(last.latents - imagined.latents[:, :1]).max() < 1e-3
    )
    monkeypatch.undo()
    assert env.unwrapped.imagine(sequences[:1, :1]).frames is None


def test_poses_alone_do_without_the_network(env, monkeypatch):
    class Further(Task):
        uses_frames = False

        def judge(self, goal, moment):
            return Verdict(float(moment.c2w[-1, 2, 3]), moment.chunk_index == 4)

    monkeypatch.setattr(env.unwrapped, "rules", replace(env.unwrapped.rules, task=Further()))
    sequences = ACTIONS[2:8].reshape(2, 3, 6)
    imagined = env.unwrapped.imagine(sequences)
    monkeypatch.setattr(env.unwrapped.model, "generate_latents", None)
    walked = env.unwrapped.imagine(sequences, decode="poses")
    assert walked.latents is walked.frames is None
    for one, two in zip(imagined[2:], walked[2:], strict=True):
        np.testing.assert_array_equal(one, two)
    monkeypatch.setattr(env.unwrapped, "rules", replace(env.unwrapped.rules, task=Brightness()))
    with pytest.raises(ValueError, match="decode='poses' for Brightness, which looks at frames"):
        env.unwrapped.imagine(sequences, decode="poses")


@pytest.mark.parametrize(
    "actions, options, cause",
    [
        (np.zeros((2, 6)), {}, r"shape \(2, 6\); wanted \(N, K, 6\)"),
        (np.full((1, 2, 6), [[[0.0], [3.0]]]), {}, "sequence 0, action 1"),
        (np.zeros((1, 1, 6)), {"decode": "video"}, "decode='video'"),
        (np.zeros((1, 1, 6)), {"memory_mib": 0}, "memory_mib=0"),
    ],
)
def test_bad_what_ifs_are_refused(env, actions, options, cause):
    with pytest.raises(ValueError, match=cause):
        env.unwrapped.imagine(actions, **options)


# ---- sessions without end


def test_a_shift_of_time_in_mid_session_changes_nothing_that_is_seen(env):
    """Also beyond frame 1024, where the table of the published model ends."""
    unwrapped = env.unwrapped
    state = unwrapped.save_state()
    path = torch.from_numpy(unwrapped.rules.wish(unwrapped.episode, ACTIONS[2]))[None]
    plain, _ = unwrapped.model.generate_latents(state, path)
    shifted, after = unwrapped.model.generate_latents(
        replace(state, transformer=shift_time(state.transformer, -5000)), path
    )
    assert after.transformer.next_frame.item() == 5000 + 10
    bound = (
        1e-4 if unwrapped.model.transformer.dtype == torch.float32 else 2e-2
    )  # what rounding makes of angles
    assert (plain - shifted).abs().max() < bound * plain.abs().max()


def test_a_state_goes_on_in_another_dtype(tmp_path):
    """Machines choose differently; frames then agree within one grey level on average, not to the bit."""
    envs = {dtype: gym.make("SanaWM-v0", dtype=dtype) for dtype in ("float32", "bfloat16")}
    for dtype, env in envs.items():
        env.reset(seed=3)
        for action in ACTIONS[:2]:
            env.step(action)
        env.unwrapped.save_state().save(tmp_path / dtype)
    frames = {}
    for dtype, env in envs.items():
        for source in envs:
            sana_wm_env.restore(env, sana_wm_env.WorldState.load(tmp_path / source))
            frames[source, dtype] = env.step(ACTIONS[2])[0].astype(float)
    wanted = frames["float32", "float32"]
    assert all(np.abs(found - wanted).mean() < 1 for found in frames.values())
