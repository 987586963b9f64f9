"""What tests share. Set before torch is imported: two threads, so that rounding does not depend on the size
of the machine.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import tally
from hypothesis import settings

settings.register_profile(
    "house", deadline=None, derandomize=True
)  # the same examples at every run, no failure by the clock
settings.load_profile("house")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Counts the malformed inputs of a test, see helpers/tally.py; the count travels with its report."""
    tally.here.clear()
    pytest.raises = tally.counted_raises
    try:
        return (yield)
    finally:
        pytest.raises = tally.raises
        item.user_properties.append((tally.PROPERTY, dict(tally.here)))


def pytest_terminal_summary(terminalreporter):
    """Says how many malformed inputs were tried, where any were."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = tally.summarise(reports)
    if len(lines) > 1:
        terminalreporter.write_sep("=", "malformed inputs")
        terminalreporter.write("\n".join(lines) + "\n")
