"""Help as plain text. That of a command lies ready in `help/`, because importing what the command works with
takes seconds; `python -m sana_wm_env.commands.help` writes it anew after flags or their words have changed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .table import COMMANDS, Group, load_function

FOLDER = Path(__file__).parent / "help"
WIDTH = 100
FLAG_WORDS = {
    "--device": "where it runs: cpu, cuda, cuda:1 and so on",
    "--size": "height and width of the frames in pixels",
}
"""What flags mean that are alike in all commands."""


class Flag(NamedTuple):
    """A flag or positional argument: how it is written, and what it means."""

    usage: str
    words: str


class Section(NamedTuple):
    """Flags that belong together. about: "" for those of the command itself."""

    about: str
    flags: list[Flag]


def list_commands(commands: Mapping[str, Any], program: str, about: str) -> str:
    """Help of a group: a line per command, from `table.py`."""
    wide = max(map(len, commands)) + 4
    lines = [f"usage: {program} COMMAND ...", "", *textwrap.wrap(about, WIDTH), "", "commands:"]
    for name, command in commands.items():
        lines += textwrap.wrap(
            f"  {name:<{wide - 2}}{command.help}", WIDTH, subsequent_indent=" " * wide, break_on_hyphens=False
        )
    more = [f"{program} COMMAND --help  says more about one"]
    return "\n".join(
        [*lines, "", *more, *(["sana-wm --version  says which one this is"] * (program == "sana-wm"))]
    )


def read_help(words: Sequence[str]) -> str:
    """Help of a command by the words that call it: the text that lies ready, or else a new one."""
    path = FOLDER / f"{'-'.join(words)}.txt"
    return (path.read_text(encoding="utf-8") if path.is_file() else render_help(words)).rstrip("\n")


def render_help(words: Sequence[str]) -> str:
    """Help of a command from its flags, which are imported: seconds."""
    command = find_command(words)
    title, *sections = _sections(words)
    positional = [flag.usage for flag in title.flags if not flag.usage.startswith("-")]
    usage = " ".join(
        [
            "usage: sana-wm",
            *words,
            *positional,
            "[FLAGS]" if len(positional) < _count(sections, title) else "",
        ]
    )
    lines = [usage.rstrip(), "", *textwrap.wrap(command.help, WIDTH)]
    if title.about and title.about != command.help:
        lines += ["", *textwrap.wrap(title.about, WIDTH)]
    for section in (title, *sections):
        if section.flags:
            lines += [
                "",
                *(
                    textwrap.wrap(section.about, WIDTH)
                    if section is not title
                    else ["flags:" if not positional else "arguments and flags:"]
                ),
            ]
            for flag in section.flags:
                lines.append(f"  {flag.usage}")
                lines += textwrap.wrap(
                    flag.words,
                    WIDTH - 6,
                    initial_indent=" " * 6,
                    subsequent_indent=" " * 6,
                    break_on_hyphens=False,
                )
    return "\n".join(lines) + "\n"


def find_command(words: Sequence[str]) -> Any:
    """The entry of the table that words call."""
    entry: Any = COMMANDS[words[0]]
    return entry.members[words[1]] if len(words) > 1 else entry


def each_command() -> Iterator[tuple[str, ...]]:
    """The words that call each command."""
    for name, entry in COMMANDS.items():
        if isinstance(entry, Group):
            yield from ((name, member) for member in entry.members)
        else:
            yield (name,)


def _count(sections: Sequence[Section], title: Section) -> int:
    return len(title.flags) + sum(len(section.flags) for section in sections)


def _sections(words: Sequence[str]) -> list[Section]:
    """What tyro says of a command, taken out of its boxes: the command's own flags first."""
    import tyro

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # boxes are drawn where they can be written
    wide = 128  # one column of boxes, few lines broken
    with (
        _environment(COLUMNS=str(wide), NO_COLOR="1"),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        tyro.cli(
            load_function(find_command(words)),
            prog="x",
            args=["--help"],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    found, own = [], Section("", [])
    out.seek(0)
    for title, box in _boxes(out.read()):
        if title == "options":
            continue
        about, flags = _read_box(box)
        if title in ("config options", "positional arguments"):
            own = Section(own.about or about, own.flags + flags)
        else:
            found.append(Section(about, flags))
    return [own, *found]


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables of the environment for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _boxes(text: str) -> Iterator[tuple[str, list[str]]]:
    """Titles and lines of the boxes that tyro draws."""
    title, lines = "", []
    for line in text.splitlines():
        if line.startswith("╭"):
            title, lines = line.strip("╭─╮ "), []
        elif line.startswith("╰"):
            yield title, lines
        elif line.startswith("│"):
            lines.append(line[1:-1].strip("\n")[1:].rstrip())


def _read_box(lines: list[str]) -> tuple[str, list[Flag]]:
    """The words above the rule, and the flags below it; lines that are indented go on with a flag."""
    ruled = next((i for i, line in enumerate(lines) if line and not line.strip("─")), -1)
    about = " ".join(" ".join(lines[:ruled]).split()) if ruled >= 0 else ""
    flags: list[Flag] = []
    for line in lines[ruled + 1 :]:
        if line.startswith(" "):
            flags[-1] = Flag(flags[-1].usage, f"{flags[-1].words} {line.strip()}".strip())
        elif line:
            usage, _, words = line.partition("  ")
            flags.append(Flag(usage, words.strip()))
    return about, [Flag(_plain_usage(flag.usage), _plain_words(flag)) for flag in flags]


def _plain_usage(usage: str) -> str:
    """--frames {None}|INT -> --frames INT; {a,b} -> a|b."""
    usage = usage.replace("{None}|", "").replace("{None,", "{")
    usage = re.sub(r"\{([^{}\[\]]*)\}", lambda match: match[1].replace(",", "|"), usage)
    return usage.replace("{[", "[").replace("]}", "]")


def _plain_words(flag: Flag) -> str:
    """What a flag means, with one default at most."""
    name = flag.usage.split()[0].rstrip(",")
    words = re.sub(r" ?\(default: (None|'')?\)$", "", flag.words)
    words = words.replace("(default: False)", "(default: no)").replace("(default: True)", "(default: yes)")
    if words.count("(default: ") > 1:
        words = words[: words.rindex("(default: ")].rstrip()
    if words.startswith("(") or not words:
        words = f"{FLAG_WORDS.get(name, '')} {words}".strip()
    return words


def main() -> None:
    """Writes the text of every command into `help/`, and removes those of commands that are gone."""
    from ..files import write_text

    written = set()
    for words in each_command():
        path = FOLDER / f"{'-'.join(words)}.txt"
        write_text(path, render_help(words))
        written.add(path)
    for old in set(FOLDER.glob("*.txt")) - written:
        old.unlink()
    print(f"wrote {len(written)} texts to {FOLDER}", file=sys.stderr)


if __name__ == "__main__":
    main()
