"""A count of the malformed inputs that tests try: refused, or taken rightly. One that harms fails its test.

Every `pytest.raises` counts as one; what a loop or Hypothesis tries, `count` adds. `pytest` prints the sums.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

REFUSALS = (ValueError, TypeError, OSError, ImportError)
PROPERTY = "malformed inputs"
here: Counter[str] = Counter()
"""Of the test that runs."""
raises = pytest.raises


def count(refused: int = 0, right: int = 0) -> None:
    """Adds inputs that were refused as they should be, and those that were read for what they are."""
    here["refused"] += refused
    here["right"] += right


def counted_raises(expected: Any, *given: Any, **named: Any) -> Any:
    """`pytest.raises`, counted where the error is a refusal."""
    kinds = expected if isinstance(expected, tuple) else (expected,)
    count(refused=all(issubclass(kind, REFUSALS) for kind in kinds))
    return raises(expected, *given, **named)


def name_kind(nodeid: str) -> str:
    """The kind of input of a test: what its file is called after, or "others"."""
    file = nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
    if file == "test_foreign_formats":
        return "formats"
    return file.removeprefix("test_robust_") if file.startswith("test_robust_") else "others"


def summarise(reports: Iterable[Any]) -> list[str]:
    """A line for each kind, and one for all, out of the reports of tests."""
    sums: dict[str, Counter[str]] = {}
    for report in reports:
        kind = sums.setdefault(name_kind(report.nodeid), Counter())
        for name, value in getattr(report, "user_properties", ()):
            if name == PROPERTY and report.when == "call":
                kind.update(value)
                kind["harmed"] += report.failed
    sums = {kind: found for kind, found in sorted(sums.items()) if found["refused"] + found["right"]}
    sums["all"] = sum(sums.values(), Counter())
    return [
        f"{kind:10}  tried {found['refused'] + found['right']:6}  refused {found['refused']:6}  "
        f"right all the same {found['right']:5}  tests that failed {found['harmed']}"
        for kind, found in sums.items()
    ]
