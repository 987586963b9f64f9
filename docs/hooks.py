"""What the site takes from elsewhere: READMEs, which lie beside the code they speak of, and the docstrings of
the environments.
"""

import inspect
import posixpath
import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
INCLUDE = re.compile(r"<!-- include (\S+) -->")
DOCSTRING = re.compile(r"<!-- docstring (\S+):(\S+) -->")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)]+)\)")
INCLUDED = {
    "README.md": "index.md",
    "agents/README.md": "guides/plan.md",
    "train/README.md": "guides/train.md",
    "model/README.md": "guides/network.md",
    "sana_wm_env/evaluation/README.md": "guides/evaluate.md",
}
"""The page that shows each README, for links to it."""


def on_page_markdown(markdown: str, page, **_) -> str:
    """Fills in what a page includes."""
    here = page.file.src_uri
    markdown = INCLUDE.sub(lambda found: _readme(found[1], here), markdown)
    return DOCSTRING.sub(
        lambda found: inspect.getdoc(getattr(import_module(found[1]), found[2])) or "", markdown
    )


def _readme(path: str, here: str) -> str:
    """A README with its links as they are seen from the page `here`; those that leave the site become plain
    text.
    """

    def linked(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1]))
        inside = INCLUDED.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") else None
        )
        if inside is None or not (ROOT / "docs" / inside).is_file():
            return "]"
        return f"]({posixpath.relpath(inside, posixpath.dirname(here) or '.')})"

    return LINK.sub(linked, (ROOT / path).read_text())
