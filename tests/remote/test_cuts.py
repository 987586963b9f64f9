"""Connections that are cut anywhere: no step is lost, none is done twice."""

import os

import gymnasium as gym
import numpy as np
import pytest

for library in ("websockets", "msgspec", "prometheus_client"):
    pytest.importorskip(library, reason="needs the extra remote")
from remote_here import ALICE, Cutter, Serving  # noqa: E402

from sana_wm_env.remote.client import RemoteWorld  # noqa: E402

CUTS = int(os.environ.get("SANA_WM_CUTS", "40"))
"""1,000 on demand: SANA_WM_CUTS=1000 pytest -m heavy tests/remote/test_cuts.py"""
STEP_BYTES = 24 * 64 * 64 * 3


@pytest.mark.heavy
def test_no_step_is_lost_or_done_twice_however_often_it_is_cut():
    draw = np.random.default_rng(0)
    with Serving() as serving, Cutter(serving.port, CUTS, most=3 * STEP_BYTES) as way:
        far = gym.make("SanaWM-v0", world=RemoteWorld(way.address, ALICE), max_episode_steps=10**6)
        near = gym.make("SanaWM-v0", max_episode_steps=10**6)
        near.unwrapped.model = serving.worker.env.model
        far.reset(seed=3), near.reset(seed=3)
        steps = chunks = 0
        while way.cut < CUTS:
            action = draw.uniform(-1, 1, 6).astype(np.float32)
            if steps % 10 == 9:
                candidates = draw.uniform(-1, 1, (2, 2, 6)).astype(np.float32)
                one, other = (env.unwrapped.imagine(candidates, decode="last") for env in (far, near))
                assert np.array_equal(one.frames, other.frames)
                chunks += 4
            shown, _, _, _, info = far.step(action)
            assert np.array_equal(shown, near.step(action)[0]), f"step {steps}"
            steps, chunks = steps + 1, chunks + 1
            assert info["chunk_index"] == steps
            assert serving.metric("sana_wm_chunks_total") == chunks
            assert serving.server.snapshot().states <= 8  # nothing is forgotten about
        assert serving.metric("sana_wm_sessions_resumed_total") >= 0.9 * CUTS
        repeated = serving.metric("sana_wm_calls_repeated_total")
        print(f"{way.cut} cuts, {steps} steps, {repeated:.0f} calls that came again")
        assert repeated > 0
        far.close()


def test_a_server_that_is_gone_is_waited_for_and_then_named():
    with Serving() as serving:
        env = gym.make("SanaWM-v0", world=RemoteWorld(serving.address, ALICE, patience_s=1.0))
        env.reset(seed=1)
        env.step(np.zeros(6, np.float32))
    with pytest.raises(ConnectionError, match=r"no connection to ws://localhost:\d+ for 1 s"):
        env.step(np.zeros(6, np.float32))
    assert env.unwrapped.episode.chunk_index == 1
    with pytest.raises(ConnectionError):
        RemoteWorld(serving.address, ALICE, patience_s=0.2)
    env.close()
