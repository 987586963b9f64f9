"""Poses as an agent sees them; whole observations are in tests/test_env.py and tests/test_tasks.py."""

import numpy as np

from sana_wm_env.camera import twist_path
from sana_wm_env.observations import REACH_M, pose_space, pose_vector


def test_pose_vector_is_position_and_two_axes_within_its_space():
    pose = twist_path([1, 2, 3, 0.3, -0.2, 0.1])[-1]
    vector = pose_vector(pose)
    np.testing.assert_allclose(vector, np.concatenate([pose[:3, 3], pose[:3, 0], pose[:3, 1]]), rtol=1e-6)
    far = pose.copy()
    far[:3, 3] = 1e9
    far[:3, :2] *= 1 + 1e-7
    assert pose_vector(far) in pose_space() and pose_vector(far)[0] == REACH_M
    assert pose_vector(np.stack([pose, far])).shape == (2, 9)
