"""Settings of commands are checked when they are constructed, in Python as on the command line."""

from collections.abc import Iterable
from math import inf, nan
from typing import Any

from .numbers import to_number, to_whole


def check_settings(config: Any, **intervals: str) -> None:
    """Checks the numbers in fields of a config, and those of tuples one by one. None is no number.

    Args:
        config: a dataclass. A field whose type does not name float wants whole numbers.
        intervals: what a field may be, such as steps="[0, inf)": a bracket belongs to the interval, a
            parenthesis does not.

    Raises:
        ValueError: names the flag, what was given and what was wanted.
    """
    for name, interval in intervals.items():
        whole = "float" not in str(type(config).__dataclass_fields__[name].type)
        flag, given = f"--{name.replace('_', '-')}", getattr(config, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None:
                check_number(value, flag, interval, whole)


def check_number(value: Any, flag: str, interval: str, whole: bool = False) -> None:
    """One of the numbers of `check_settings`."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    wanted = "a whole number, " if whole else "a number, "
    wanted += f"{low:.15g} or more" if interval[0] == "[" else f"more than {low:.15g}"
    if high < inf:
        wanted += f", {high:.15g} at most" if interval[-1] == "]" else f", less than {high:.15g}"
    try:
        number = to_whole(value, flag, -(2**63)) if whole else to_number(value, flag)
    except ValueError:
        number = nan
    at_open_end = (number == low and interval[0] == "(") or (number == high and interval[-1] == ")")
    if not low <= number <= high or at_open_end:
        raise ValueError(f"got {flag} {value}; wanted {wanted}")


def check_choice(flag: str, value: Any, known: Iterable[str]) -> None:
    """Raises ValueError for what is none of the names that are known."""
    if value not in (names := tuple(known)):
        raise ValueError(f"got {flag} {value}; wanted one of {', '.join(names)}")
