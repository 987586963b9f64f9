"""Settings of every command are checked when they are constructed."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

from sana_wm_env.commands.table import COMMANDS, Command, Group
from sana_wm_env.settings import check_choice, check_number, check_settings

SIGNED = {"guidance"}


def targets(commands: dict[str, Command | Group]):
    """Every command's words and function."""
    for name, command in commands.items():
        if isinstance(command, Group):
            yield from ((f"{name} {words}", target) for words, target in targets(command.members))
        else:
            yield name, command.target


def required(config: type) -> dict:
    """What has no default: files."""
    fields = dataclasses.fields(config)
    missing = dataclasses.MISSING
    return {f.name: Path("x") for f in fields if f.default is missing and f.default_factory is missing}


def numbers(config: type):
    """(config, field, type of its numbers), those of configs inside as well."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        inside = [
            hint for hint in (hints[field.name], *get_args(hints[field.name])) if isinstance(hint, type)
        ]
        if dataclasses.is_dataclass(inside[0] if inside else None):
            yield from numbers(inside[0])
        for kind in {int, float} & set(inside):
            yield config, field.name, kind


@pytest.mark.parametrize(("words", "target"), list(targets(COMMANDS)), ids=lambda text: str(text))
def test_no_command_takes_numbers_that_cannot_be(words, target):
    module, function = target.split(":")
    config = get_type_hints(getattr(importlib.import_module(f"sana_wm_env.{module}"), function))["config"]
    for owner, name, kind in numbers(config):
        for wrong in (-(10**9), *([math.nan, math.inf, -math.inf] if kind is float else [])):
            if wrong == -(10**9) and name in SIGNED:
                continue
            many = get_origin(get_type_hints(owner)[name]) is tuple
            given = {**required(owner), name: (wrong, wrong) if many else kind(wrong)}
            with pytest.raises(ValueError, match=r"got .*; wanted"):
                owner(**given)
                pytest.fail(f"{words} takes {name}={wrong}")


@dataclasses.dataclass
class Config:
    steps: int = 1
    rate: float = 0.5
    size: tuple[int, int] = (8, 8)
    limit: float | None = None

    def __post_init__(self) -> None:
        check_settings(self, steps="[1, 100000]", rate="(0, 1)", size="[8, inf)", limit="[0, inf)")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "got --steps 0; wanted a whole number, 1 or more, 100000 at most"),
        ({"steps": 1.5}, "got --steps 1.5; wanted a whole number, 1 or more, 100000 at most"),
        ({"steps": True}, "got --steps True; wanted a whole number, 1 or more, 100000 at most"),
        ({"steps": "3"}, "got --steps 3; wanted a whole number, 1 or more, 100000 at most"),
        ({"rate": 0}, "got --rate 0; wanted a number, more than 0, less than 1"),
        ({"rate": 1.0}, "got --rate 1.0; wanted a number, more than 0, less than 1"),
        ({"rate": math.nan}, "got --rate nan; wanted a number, more than 0, less than 1"),
        ({"size": (16, 4)}, "got --size 4; wanted a whole number, 8 or more"),
        ({"limit": -1}, "got --limit -1; wanted a number, 0 or more"),
    ],
)
def test_what_was_given_and_wanted_is_said(given, message):
    with pytest.raises(ValueError) as error:
        Config(**given)
    assert str(error.value) == message


def test_the_ends_belong_where_the_interval_says():
    Config(steps=100_000, rate=1e-9, size=(8, 2**40), limit=0)
    check_number(1.0, "--decay", "[0, 1]")


def test_names_that_are_not_known_are_refused():
    check_choice("--method", "muon", ("muon", "adamw"))
    with pytest.raises(ValueError, match="got --method sgd; wanted one of muon, adamw"):
        check_choice("--method", "sgd", ("muon", "adamw"))
