"""What tests share. Set before torch is imported: two threads, so that a test machine's timing and rounding do not depend on its size."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)  # the same examples at every run, no failure by the clock
settings.load_profile("house")
