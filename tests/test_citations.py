"""What the code cites is in the repository."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = re.compile(r"((?:[\w/]+/)?README\.md),? sections? (\d+(?:\.\d+)?)(?: (?:and|to) (\d+(?:\.\d+)?))?")
TITLES = re.compile(r"((?:[\w/]+/)?README\.md), \"([^\"]+)\"")


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every file of the repository that is text, by name."""
    names = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.cpp", "*.h", "script/*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: (ROOT / name).read_text() for name in names.stdout.split() if (ROOT / name).is_file()}


def headings(readme: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", (ROOT / readme).read_text(), re.MULTILINE)


def test_every_cited_section_exists(sources):
    cited = {
        (m[1], number)
        for text in sources.values()
        for m in SECTIONS.finditer(text)
        for number in (m[2], m[3])
        if number
    }
    numbers = {
        readme: [heading.split(" ")[0].rstrip(".") for heading in headings(readme)] for readme, _ in cited
    }
    assert ("model/README.md", "4") in cited
    assert not [f"{readme} {number}" for readme, number in sorted(cited) if number not in numbers[readme]]


def test_every_cited_title_exists(sources):
    cited = {(m[1], m[2]) for text in sources.values() for m in TITLES.finditer(text)}
    assert not [f"{readme}: {title}" for readme, title in sorted(cited) if title not in headings(readme)]


def test_nothing_is_cited_that_a_reader_cannot_open(sources):
    private = "facts" + "/"
    assert not [name for name, text in sources.items() if private in text]


def test_the_map_names_every_file_of_the_model():
    """A new file has a line in the map of its folder."""
    page = (ROOT / "model" / "README.md").read_text()
    files = [
        path.relative_to(ROOT / "model").as_posix()
        for path in (ROOT / "model").rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert not [name for name in files if f"`{name}`" not in page and not name.startswith("kernels/")]


@pytest.mark.parametrize(
    "folder",
    [
        "sana_wm_env",
        "sana_wm_env/play",
        "model",
        "train",
        "train/data",
        "train/data/formats",
        "train/annotate",
        "agents",
    ],
)
def test_the_docstring_of_a_package_maps_it(folder):
    page = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
    words = set(re.findall(r"[\w/]+", page))
    names = {path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")}
    names |= {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
    assert not names - words
