"""Whether a Ray cluster begins on this machine: it wants sockets and shared memory, which may be missing."""

import subprocess
import sys
from functools import cache

BEGIN = "import ray; ray.init(address='local', include_dashboard=False, num_cpus=1); ray.shutdown()"


@cache
def why_no_cluster() -> str:
    """The last line of what Ray says, "" where a cluster begins."""
    try:
        done = subprocess.run([sys.executable, "-c", BEGIN], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "nothing within two minutes"
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
