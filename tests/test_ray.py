"""Slots shared out among workers of a Ray cluster: what comes back is what one vector environment returns,
whoever dies.
"""

import os
import signal

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray_here import why_no_cluster

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.model.tree import tensors_of

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sana-wm-env[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
ACTIONS = np.random.default_rng(1).uniform(-1, 1, (8, 4, 6)).astype(np.float32)
IMAGINED = {"id": "SanaWM-v0", "obs_mode": "last"}
EXACT = {"id": "SanaWM-RoomsGoal-v0", "image_size": (16, 16)}


@pytest.fixture(autouse=True)
def two_threads():
    """As many slots share one forward here as in a worker: a batch of another size rounds differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes on this machine, each with a cache of its own, so that each has to fetch its weights."""
    if reason := why_no_cluster():
        pytest.skip(f"no Ray cluster begins here: {reason}")
    from ray.cluster_utils import Cluster

    caches = [str(tmp_path_factory.mktemp("cache")) for _ in range(2)]
    cluster = Cluster()
    for cache in caches:
        cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20, env_vars={"XDG_CACHE_HOME": cache})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def same(one, other) -> bool:
    """Whether two results are equal to the last bit, and of one kind."""
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and one.dtype == object:
        return same(list(one), list(other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


def play(envs, steps=6, kill=None):
    """Everything that an episode or two return; `kill` is a worker and the step before which it dies."""
    seen = [envs.reset(seed=3)]
    for step in range(steps):
        if kill is not None and step == kill[1]:
            os.kill(envs.workers[kill[0]]["pid"], signal.SIGKILL)
        seen.append(envs.step(ACTIONS[step]))
    return seen


def make(setting, **options):
    return gym.make_vec(**setting, num_envs=4, max_episode_steps=3, **options)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("setting", [IMAGINED, EXACT], ids=["imagined", "exact"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_workers_return_what_one_vector_environment_returns(cluster, setting, workers, mode):
    """Frames too: two slots go through the network together in each."""
    here = make(setting, autoreset_mode=mode)
    there = make(setting, autoreset_mode=mode, backend="ray", workers=workers, num_cpus=2 / workers)
    try:
        assert same(play(here), play(there))
        assert same(
            [g.bit_generator.state for g in here.np_random], [g.bit_generator.state for g in there.np_random]
        )
    finally:
        there.close()


@pytest.mark.parametrize("setting", [IMAGINED, EXACT], ids=["imagined", "exact"])
@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_killed_worker_leaves_no_trace(cluster, setting, step):
    """Before its first saved condition, between two, and in the second episode."""
    there = make(setting, backend="ray", workers=2, checkpoint_every=3)
    try:
        undisturbed, disturbed = play(there), play(there, kill=(1, step))
        assert there.replaced == 1
        assert same(undisturbed, disturbed)
    finally:
        there.close()


def test_weights_come_to_a_node_once(cluster):
    there = make(
        IMAGINED, backend="ray", workers=4, num_cpus=1, actor_options={"scheduling_strategy": "SPREAD"}
    )
    try:
        nodes = {worker["node"] for worker in there.workers}
        assert len(nodes) == 2
        fetched = [worker["node"] for worker in there.workers if worker["fetched"]]
        assert len(fetched) == len(set(fetched)), "a node has fetched them twice"
        again = make(IMAGINED, backend="ray", workers=1, num_cpus=0)
        assert not again.workers[0]["fetched"]
        again.close()
    finally:
        there.close()


def test_batches_as_they_are_ready_are_those_in_lockstep(cluster):
    there = make(EXACT, backend="ray", workers=2)
    try:
        lockstep = play(there, 4)[1:]
        there.reset(seed=3)
        rows = {0: slice(0, 2), 1: slice(2, 4)}
        steps, seen = [0, 0], []
        for worker in rows:
            there.send(ACTIONS[0, rows[worker]], worker)
        os.kill(there.workers[0]["pid"], signal.SIGKILL)
        while min(steps) < 4:
            batch = there.recv(timeout_s=300)
            wanted = lockstep[steps[batch.worker]]
            assert same(batch.rewards, wanted[1][rows[batch.worker]])
            assert same(batch.obs["image"], wanted[0]["image"][rows[batch.worker]])
            assert list(batch.slots) == list(range(4))[rows[batch.worker]]
            steps[batch.worker] += 1
            seen.append(batch)
            if steps[batch.worker] < 4:
                there.send(ACTIONS[steps[batch.worker], rows[batch.worker]], batch.worker)
        assert there.replaced == 1 and seen[0].obs["image"].flags.writeable
        with pytest.raises(ValueError, match="nothing was sent"):
            there.recv()
    finally:
        there.close()


def test_a_refusal_moves_no_slot_of_any_worker(cluster):
    """A bad action is seen before anything is sent; a reset that one worker refuses is undone in others."""
    there = make(EXACT, backend="ray", workers=2)
    try:
        undisturbed = play(there, 2)
        there.reset(seed=3)
        with pytest.raises(ValueError, match="slot 3: "):
            there.step(np.concatenate([ACTIONS[0, :3], np.full((1, 6), np.nan, np.float32)]))
        assert same(there.step(ACTIONS[0]), undisturbed[1])
        with pytest.raises(ValueError, match="slot 3: "):
            there.reset(options={"per_slot": [{}, {}, {}, {"room": -1}]})
        assert same(there.step(ACTIONS[1]), undisturbed[2])
        there.send(ACTIONS[2, :2], 0)
        with pytest.raises(ValueError, match="not received"):
            there.step(ACTIONS[2])
        there.recv(timeout_s=300)
    finally:
        there.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        there.step(ACTIONS[0])


def test_sessions_cross_between_workers_and_this_process(cluster):
    here, there = make(IMAGINED), make(IMAGINED, backend="ray", workers=2)
    try:
        here.reset(seed=3), there.reset(seed=3)
        here.step(ACTIONS[0]), there.step(ACTIONS[0])
        for ours, theirs in zip(here.save_state(), there.save_state(), strict=True):
            assert all((a == b).all() for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True))
        there.step(ACTIONS[1])
        there.restore_state(here.save_state())
        assert same(here.step(ACTIONS[1]), there.step(ACTIONS[1]))
        branches = [envs.fork(3, slot=2) for envs in (here, there)]
        assert same(*(fork.step(ACTIONS[2, :3]) for fork in branches))
        assert same(here.step(ACTIONS[2]), there.step(ACTIONS[2])), "the slots stay where they are"
    finally:
        there.close()


def test_candidates_are_shared_out(cluster):
    """Rewards and poses are those of one process, latents too where noise is each candidate's own."""
    from sana_wm_env.agents.planning.cem import CEMAgent, PlannerConfig
    from sana_wm_env.agents.planning.imagination import SharedImagination

    setting = {"id": "SanaWM-Goal-v0"}
    here, there = make(setting), make(setting, backend="ray", workers=2)
    actions = ACTIONS[:6, :2]
    try:
        here.reset(seed=3), there.reset(seed=3)
        for options in ({"decode": "poses"}, {"decode": "latents", "independent_noise": True}):
            one, other = here.imagine(actions, slot=2, **options), there.imagine(actions, slot=2, **options)
            assert same(one[2:], other[2:])
            if one.latents is not None:
                assert np.abs(one.latents - other.latents).max() < 0.05 * np.abs(one.latents).max()
        config = PlannerConfig(horizon=2, candidates=8, iterations=2)
        plans = []
        for imagination in (None, SharedImagination(there)):
            agent = CEMAgent(config, imagination=imagination)
            agent.reset(seed=1)
            view = there.view(2) if imagination else here.slots[2]
            plans.append(agent.plan(None, view).actions)
        assert same(*plans)
    finally:
        there.close()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"backend": "dask"}, "wanted 'ray'"),
        ({"workers": 5}, "workers"),
        ({"device": "cuda"}, "num_gpus=0"),
        ({"device": "cuda:1", "num_gpus": 1}, "only one"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_a_worker_starts(options, words):
    with pytest.raises(ValueError, match=words):
        make(EXACT if "device" not in options else IMAGINED, **({"backend": "ray"} | options))


def test_a_cluster_without_a_place_says_what_it_has(cluster):
    """Two nodes of two cores take two such workers."""
    with pytest.raises(RuntimeError, match=r"num_cpus=2.* did not start within 15 s"):
        make(EXACT, backend="ray", workers=3, num_cpus=2, start_timeout_s=15)
