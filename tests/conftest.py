"""What tests share. Set before torch is imported: two threads, so that rounding does not depend on the size of the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)  # the same examples at every run, no failure by the clock
settings.load_profile("house")
