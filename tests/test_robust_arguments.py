"""Actions, rewards, options and arguments: what is wrong is refused by name, before anything changes."""

import datetime
import decimal
import fractions
import resource
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import sana_wm_env  # noqa: F401  # registers the ids

ACTION = np.array([0.3, 0, 0.5, 0, 0.4, 0], np.float32)
STILL = np.zeros(6)
IDS = ("SanaWM-v0", "SanaWM-Rooms-v0")

NO_ACTIONS: dict[str, Any] = {
    "None": None,
    "complex": STILL.astype(complex),
    "complex list": [0j] * 6,
    "bools": [True] * 6,
    "bool array": np.zeros(6, bool),
    "bool tensor": torch.zeros(6, dtype=torch.bool),
    "texts": ["0"] * 6,
    "text": "000000",
    "bytes": np.array([b"0"] * 6),
    "unicode": np.array(["0"] * 6),
    "objects": STILL.astype(object),
    "decimals": [decimal.Decimal(0)] * 6,
    "fractions": [fractions.Fraction(0)] * 6,
    "structured": np.zeros(6, [("a", "f4")]),
    "dates": np.zeros(6, "M8[s]"),
    "time spans": np.zeros(6, "m8[s]"),
    "datetimes": [datetime.datetime(2026, 1, 1)] * 6,
    "masked": np.ma.array(STILL, mask=[0, 0, 0, 0, 0, 1]),
    "a None inside": [0, 0, 0, 0, 0, None],
    "ragged": [[0] * 6, [0] * 5],
    "dict": {"action": STILL},
    "set": {0, 1, 2, 3, 4, 5},
    "object": object(),
    "generator": (0 for _ in range(6)),
    "meta tensor": torch.zeros(6, device="meta"),
    "complex tensor": torch.zeros(6, dtype=torch.complex64),
    "too few": np.zeros(5),
    "too many": np.zeros(7),
    "batch": np.zeros((1, 6)),
    "number": 0.0,
    "empty": [],
    "NaN": STILL + np.nan,
    "infinity": STILL - np.inf,
    "out of range": STILL + 1.5,
    "float128 huge": STILL + 1e300,
}
ACTIONS: dict[str, Any] = {
    "list": [0.0] * 6,
    "ints": [0] * 6,
    "int array": np.zeros(6, np.int64),
    "float16": np.zeros(6, np.float16),
    "longdouble": np.zeros(6, np.longdouble),
    "tensor": torch.zeros(6),
    "tensor with gradient": torch.zeros(6, requires_grad=True),
    "bfloat16": torch.zeros(6, dtype=torch.bfloat16),
    "half": torch.zeros(6, dtype=torch.float16),
    "int tensor": torch.zeros(6, dtype=torch.int32),
    "tensors in a list": [torch.tensor(0.0)] * 6,
    "strided": np.zeros(12)[::2],
    "read-only": np.broadcast_to(0.0, 6),
    "rounding of float32": np.full(6, 1 + 5e-7),
}


@pytest.fixture(scope="module", params=IDS)
def env(request):
    env = gym.make(request.param)
    env.reset(seed=1)
    return env


@pytest.mark.parametrize("name", NO_ACTIONS)
def test_what_is_no_action_is_refused_everywhere(env, name):
    given, before = NO_ACTIONS[name], env.unwrapped.episode
    calls = [lambda: env.step(given), lambda: env.unwrapped.imagine([[given]], decode="poses")]
    for call in calls:
        with pytest.raises(ValueError, match=r"got an? ?action|got actions"):
            call()
    assert env.unwrapped.episode is before


NAMED = {
    "None": "type NoneType",
    "complex": "dtype complex128",
    "bools": "holds bool",
    "texts": "holds str",
    "bytes": r"dtype \|S1",
    "objects": "dtype object",
    "structured": r"dtype \[\('a', '<f4'\)\]",
    "complex tensor": "dtype complex64",
}


@pytest.mark.parametrize("name", NAMED)
def test_the_type_of_what_is_no_action_is_named(env, name):
    with pytest.raises(ValueError, match=rf"got an action of .*{NAMED[name]}; wanted 6 numbers"):
        env.step(NO_ACTIONS[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", IDS)
def test_a_tensor_counts_by_its_numbers(name, dtype):
    env = gym.make(name)
    given = torch.tensor([0.25, 0, 0.5, 0, -0.5, 0], dtype=dtype, requires_grad=True)
    ends = []
    for action in (given, given.detach().float().numpy()):
        env.reset(seed=1)
        ends.append(env.step(action)[4]["c2w"])
    assert np.array_equal(*ends) and not np.array_equal(ends[0][-1], np.eye(4))


@pytest.mark.parametrize("name", ACTIONS)
def test_numbers_of_any_kind_are_taken_silently(name):
    env = gym.make("SanaWM-Rooms-v0")
    env.reset(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step(ACTIONS[name])
        env.unwrapped.imagine([[ACTIONS[name]]], decode="poses")
        vector = env.unwrapped.fork(2)
        vector.step([ACTIONS[name]] * 2)


@pytest.mark.parametrize("name", [n for n in NO_ACTIONS if n not in ("generator", "set")])
def test_a_vector_names_the_slot_and_moves_none(name):
    vector = gym.make_vec("SanaWM-Rooms-v0", num_envs=2)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="slot 1: got an action"):
        vector.step([STILL, NO_ACTIONS[name]])
    assert vector.slots[0].episode.chunk_index == 0


@pytest.mark.parametrize(
    "given", [None, 5, "ab", {}, {0: STILL, 1: STILL}, [STILL], np.zeros((3, 6)), iter([])]
)
def test_a_vector_wants_an_action_per_slot(given):
    vector = gym.make_vec("SanaWM-Rooms-v0", num_envs=2)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="wanted 2, one per slot"):
        vector.step(given)


def test_the_digits_that_matter_are_shown(env):
    with pytest.raises(ValueError, match=r"1\.000002"):
        env.step(STILL + 1 + 2e-6)


# ---- rewards

NO_REWARDS: dict[str, Any] = {
    "array": lambda m: np.array([1.0]),
    "None": lambda m: None,
    "text": lambda m: "1",
    "bool": lambda m: True,
    "numpy bool": lambda m: np.bool_(True),
    "NaN": lambda m: float("nan"),
    "infinity": lambda m: np.inf,
    "complex": lambda m: 1j,
    "tensor of two": lambda m: torch.zeros(2),
    "list": lambda m: [1.0],
    "decimal": lambda m: decimal.Decimal(1),
    "date": lambda m: np.datetime64("2026-01-01"),
}


IN_BOTH = ("array", "None")  # the world of the model takes longer


@pytest.mark.parametrize(
    ("name", "kind"), [(IDS[1], kind) for kind in NO_REWARDS] + [(IDS[0], kind) for kind in IN_BOTH]
)
def test_a_reward_is_one_finite_number(name, kind):
    arguments = {"reward_fn": NO_REWARDS[kind]}
    single = gym.make(name, **arguments)
    vector = gym.make_vec(name, num_envs=2, **arguments)
    sync = SyncVectorEnv([lambda: gym.make(name, **arguments)] * 2)
    for env, action in ((single, ACTION), (vector, np.stack([ACTION] * 2)), (sync, np.stack([ACTION] * 2))):
        env.reset(seed=0)
        with pytest.raises(ValueError, match="a reward of reward_fn=<lambda>"):
            env.step(action)
    envs = [single.unwrapped, *vector.slots, *(env.unwrapped for env in sync.envs)]
    assert [env.episode.chunk_index for env in envs] == [0] * 5


@pytest.mark.parametrize("value", [1, 1.5, np.float32(2), np.int64(3), torch.tensor(0.5), np.array(4.0)])
def test_numbers_without_axes_are_rewards(value):
    env = gym.make("SanaWM-Rooms-v0", reward_fn=lambda moment: value)
    env.reset(seed=0)
    assert env.step(ACTION)[1] == float(value) and type(env.step(ACTION)[1]) is float


def test_a_goal_is_paid_once():
    env = gym.make("SanaWM-RoomsGoal-v0", max_episode_steps=-1)
    env.reset(seed=0)
    goal = env.unwrapped.episode.goal
    rewards = []
    for twist in [*goal["twists"], *np.zeros((3, 6))]:
        limits = np.repeat(env.unwrapped.limits, 3)
        rewards.append(env.step(np.clip(twist / limits, -1, 1))[1])
    assert sum(reward > 0.99 for reward in rewards) == 1 and rewards[-1] == rewards[-2] == 0


# ---- arguments

ARGUMENTS = [
    ({"max_translation_m": "0.5"}, "max_translation_m"),
    ({"max_translation_m": 0}, "max_translation_m"),
    ({"max_translation_m": -1.0}, "max_translation_m"),
    ({"max_rotation_rad": float("nan")}, "max_rotation_rad"),
    ({"max_rotation_rad": float("inf")}, "max_rotation_rad"),
    ({"max_rotation_rad": True}, "max_rotation_rad"),
    ({"max_rotation_rad": [0.3]}, "max_rotation_rad"),
    ({"max_rotation_rad": 1j}, "max_rotation_rad"),
    ({"device": "foo"}, "device='foo'"),
    ({"device": "mps"}, "device='mps'"),
    ({"device": "meta"}, "device='meta'"),
    ({"device": None}, "device=None"),
    ({"device": 5}, "device=5"),
    ({"device": ""}, "device=''"),
    ({"obs_mode": "foo"}, "obs_mode"),
    ({"obs_mode": None}, "obs_mode"),
    ({"obs_mode": ["chunk"]}, "obs_mode"),
    ({"action_mode": "foo"}, "action_mode"),
    ({"action_mode": None}, "action_mode"),
    ({"action_mode": {}}, "action_mode"),
    ({"task": "foo"}, "task"),
    ({"task": 5}, "task"),
    ({"task": ["free"]}, "task"),
    ({"reward_fn": 5}, "reward_fn"),
    ({"reward_fn": "f"}, "reward_fn"),
]
OF_ROOMS = [
    ({"image_size": 64}, "image_size"),
    ({"image_size": (64.5, 64)}, "image_size"),
    ({"image_size": (64,)}, "image_size"),
    ({"image_size": "64"}, "image_size"),
    ({"image_size": None}, "image_size"),
    ({"image_size": (True, 64)}, "image_size"),
    ({"image_size": (8, 64)}, "image_size"),
    ({"image_size": (-64, 64)}, "image_size"),
]
OF_WORLDS = [
    ({"world": None}, "world=None"),
    ({"world": 5}, "world=5"),
    ({"world": ""}, "world=''"),
    ({"world": "no such world"}, "no such world"),
    ({"offload": {"text": "foo"}}, "offload"),
    ({"offload": {"text": None}}, "offload"),
    ({"offload": {"transformer": "cpu"}}, "offload"),
    ({"offload": {"autoencoder": "release"}}, "offload"),
    ({"offload": "cpu"}, "offload"),
    ({"dtype": "float64"}, "dtype"),
    ({"dtype": 5}, "dtype"),
    ({"precision": "fp7"}, "precision|fp7"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "cause"),
    [(name, *row) for name in IDS for row in ARGUMENTS]
    + [("SanaWM-Rooms-v0", *row) for row in OF_ROOMS]
    + [("SanaWM-v0", *row) for row in OF_WORLDS],
)
def test_arguments_are_checked_when_an_environment_is_made(name, arguments, cause):
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=cause):
            make(name, **arguments)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"num_envs": 2, "autoreset_mode": "foo"}, "autoreset_mode"),
        ({"num_envs": 2, "autoreset_mode": 5}, "autoreset_mode"),
        ({"num_envs": 2, "max_episode_steps": 0}, "max_episode_steps"),
        ({"num_envs": 2, "max_episode_steps": 1.5}, "max_episode_steps"),
    ],
)
def test_a_vector_checks_its_own_arguments(arguments, cause):
    with pytest.raises(ValueError, match=cause):
        gym.make_vec("SanaWM-Rooms-v0", **arguments)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("mode", [*AutoresetMode, "SameStep", "NextStep", "Disabled"])
def test_every_autoreset_mode_is_known_to_both(name, mode):
    assert gym.make_vec(name, num_envs=2, autoreset_mode=mode).autoreset_mode == AutoresetMode(mode)


NO_SEEDS = [-1, 1.0, "1", True, [1], np.float64(1), object()]


@pytest.mark.parametrize("name", IDS)
def test_seeds_are_whole_numbers(name):
    env, vector = gym.make(name), gym.make_vec(name, num_envs=2)
    first = env.reset(seed=3)[0]
    assert np.array_equal(env.reset(seed=np.int64(3))[0], first)
    assert np.array_equal(vector.reset(seed=np.int64(3))[0][0], first)
    for seed in NO_SEEDS:
        with pytest.raises(ValueError, match="seed"):
            env.reset(seed=seed)
    for seed in [*NO_SEEDS, [1, 2, 3], [1, "2"], [None, -2]]:
        with pytest.raises(ValueError, match="seed"):
            vector.reset(seed=seed)
    assert env.step(ACTION)[4]["chunk_index"] == 1


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ([], None),
        ([1], "options of type list"),
        ("room", "options of type str"),
        ({"foo": 1}, "'foo'"),
        ({5: 1}, "5"),
        ({"room": 1.5}, "room"),
        ({"room": 48}, "room"),
        ({"room": True}, "room"),
        ({"room": "elsewhere"}, "room"),
        ({"keep_options": 1}, "keep_options"),
        ({"state": 5}, "State"),
    ],
)
@pytest.mark.parametrize("name", IDS)
def test_options_are_checked_before_anything_changes(name, options, cause):
    env = gym.make(name, max_episode_steps=3)
    if cause is None:
        env.reset(options=options)
        return
    with pytest.raises(ValueError, match=cause):
        env.reset(options=options)  # the very first one, too
    env.reset(seed=0)
    env.step(ACTION)
    before = env.unwrapped.np_random.bit_generator.state
    with pytest.raises(ValueError, match=cause):
        env.reset(options=options)
    assert env.unwrapped.np_random.bit_generator.state == before
    assert [env.step(ACTION)[3] for _ in range(2)] == [False, True]  # the limit counts on


@pytest.mark.parametrize(
    ("name", "refused", "cause"),
    [
        ("SanaWM-v0", {"options": {"image": np.zeros((64, 64, 3), np.uint8)}}, "without intrinsics"),
        ("SanaWM-v0", {"seed": 3.0}, "seed"),
        ("SanaWM-Rooms-v0", {"seed": 3.0}, "seed"),
    ],
)
def test_a_first_reset_that_is_refused_is_forgotten(name, refused, cause):
    env = gym.make(name)
    with pytest.raises(ValueError, match=cause):
        env.reset(**refused)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(ACTION)
    env.reset(seed=np.int64(3))
    assert [env.step(ACTION)[4]["chunk_index"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"per_slot": ["a", "b"]}, "slot 0: got options of type str"),
        ({"per_slot": [None, 5]}, "slot 1: got options of type int"),
        ({"per_slot": {}}, "per_slot"),
        ({"per_slot": [None]}, "for 1 slots"),
        ({"per_slot": 5}, "for int slots"),
        ({"per_slot": [None, {"foo": 1}]}, "slot 1: got the reset option 'foo'"),
        ({"foo": 1}, "slot 0: got the reset option 'foo'"),
        ([1], "options of type list"),
    ],
)
def test_options_of_slots(options, cause):
    vector = gym.make_vec("SanaWM-Rooms-v0", num_envs=2)
    with pytest.raises(ValueError, match=cause):
        vector.reset(options=options)


@pytest.mark.parametrize("n", [0, -1, 2.0, "2", True, None, [2]])
def test_forks_are_counted_in_whole_numbers(env, n):
    with pytest.raises(ValueError, match="n="):
        env.unwrapped.fork(n)


@pytest.mark.parametrize("name", IDS)
def test_what_does_not_fit_into_memory_is_refused_before_it_is_made(name):
    env = gym.make(name)
    env.reset(seed=0)
    many = np.broadcast_to(np.float32(0), (10**5, 20, 6))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for call in (
        lambda: gym.make_vec(name, num_envs=10**6),
        lambda: env.unwrapped.fork(10**6),
        lambda: env.unwrapped.imagine(many, decode="frames"),
    ):
        with pytest.raises(ValueError, match=r"GiB are free"):
            call()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: asking takes little
    with pytest.raises(ValueError, match="n=1000000000; wanted a whole number from 1 to"):
        env.unwrapped.fork(10**9)


@pytest.mark.parametrize(
    "settings",
    [
        {"decode": "foo"}, {"decode": None}, {"memory_mib": 0}, {"memory_mib": -1}, {"memory_mib": "1"},
        {"memory_mib": np.nan}, {"memory_mib": np.inf}, {"memory_mib": None}, {"memory_mib": True},
        {"independent_noise": "no"}, {"independent_noise": None}, {"independent_noise": 1},
    ],
)  # fmt: skip
def test_settings_of_what_ifs_and_forks(env, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"got {name}"):
        env.unwrapped.imagine(np.zeros((2, 1, 6)), **{"decode": "poses", **settings})
    if name == "independent_noise":
        with pytest.raises(ValueError, match=f"got {name}="):
            env.unwrapped.fork(2, independent_noise=value)


@pytest.mark.parametrize(
    "actions",
    [None, 5, [[[0] * 6], [[0] * 5]], [[]], np.zeros((2, 6)), np.zeros((0, 1, 6)), "a", [[["0"] * 6]]],
)
def test_what_ifs_want_sequences(env, actions):
    with pytest.raises(ValueError, match=r"got (an )?actions?"):
        env.unwrapped.imagine(actions)
