"""More than one process, or more than one machine: N slots shared out among workers of a Ray cluster. Needs
the extra `ray`.

    worlds = gym.make_vec("SanaWM-v0", num_envs=64, backend="ray", workers=8, num_gpus=1, device="cuda")

vector   `RayVectorEnv`: Gymnasium's interface, in lockstep or batch by batch as they are ready
pool     the workers: who does what, and how one that dies is replaced
worker   what runs in a worker: a batched vector environment on one copy of the weights
weights  a world's files on every node, each sent once through the object store
joining  what workers return, joined as if one vector environment had returned it
"""

from ..extras import check_installed

check_installed("ray", "sana_wm_env.ray")

from .vector import Batch, RayVectorEnv  # noqa: E402  # the line to install Ray comes first

__all__ = ["Batch", "RayVectorEnv"]
