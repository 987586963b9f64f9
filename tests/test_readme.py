"""What the README, the guides and the READMEs of the folders show runs as it stands; the site builds without
a warning.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray_here import why_no_cluster

from sana_wm_env import cli
from sana_wm_env.commands.table import COMMANDS, Group
from sana_wm_env.model.storage.weights import CheckpointError

ROOT = Path(__file__).parents[1]
MANUALS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
MANUALS += [ROOT / folder / "README.md" for folder in ("agents", "train", "model", "sana_wm_env/evaluation")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LATER = {  # examples that say what they want, and what they are told where it is not there
    "SANA-WM_streaming": (CheckpointError, "sana-wm download"),
    "stable_worldmodel": (ImportError, "stable_worldmodel"),
    'refiner="': (CheckpointError, "refiner"),
}
SERVED = "ws://127.0.0.1:8765"  # where a guide's server would listen
WANTED = {
    "clusters.md": "ray",
    "remote.md": "msgspec",
}  # pages that are left out where a package is not installed


def blocks(path: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(path.read_text()) if found == language]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in MANUALS if blocks(path, "python")], ids=name)
def test_python_blocks_run_one_after_the_other(path, tmp_path, monkeypatch):
    """The blocks of a page share their names, as in a notebook; a page takes up where the README's first
    example ends.
    """
    if package := WANTED.get(path.name):
        pytest.importorskip(package, reason=f"{package} is not installed")
        if package == "ray" and (reason := why_no_cluster()):
            pytest.skip(f"no Ray cluster begins here: {reason}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)).save("kitchen.jpg")
    names: dict = {"np": np}
    exec(blocks(ROOT / "README.md", "python")[0], names)
    if path.name == "remote.md":
        from remote_here import ALICE, Serving

        monkeypatch.setenv("SANA_WM_TOKEN", ALICE)
        with Serving() as serving:
            run_blocks(path, names, serving.address)
    else:
        run_blocks(path, names)


def run_blocks(path: Path, names: dict, served: str = "") -> None:
    for code in blocks(path, "python"):
        code = code.replace(SERVED, served)
        wanted = [(error, said) for part, (error, said) in LATER.items() if part in code]
        if path.parent.name == "agents" and "agent.act(observation" in code:
            continue  # the one line that a protocol is; the agents' own tests call it
        with pytest.raises(wanted[0][0], match=wanted[0][1]) if wanted else contextlib.nullcontext():
            exec(code, names)


def commands(path: Path) -> list[str]:
    """Every `sana-wm ...` of a page: in fences, and between backticks."""
    text = path.read_text()
    fenced = "\n".join(code for language, code in FENCE.findall(text) if language in ("", "sh"))
    lines = re.sub(r"\\\n\s*", "", fenced).splitlines()
    inline = re.findall(r"`(sana-wm [^`]+)`", FENCE.sub("", text).replace("\n", " "))
    found = [line.split("  #")[0] for line in lines if line.startswith("sana-wm ")] + inline
    return sorted({command for command in found if not set("[<|…") & set(command)})


@pytest.mark.parametrize("path", [path for path in MANUALS if commands(path)], ids=name)
def test_every_command_is_one_and_has_its_flags(path):
    for command in commands(path):
        words = shlex.split(command.replace("\\|", "|"))[1:]
        table, taken = COMMANDS, []
        while words and words[0] in table:
            taken.append(words.pop(0))
            if not isinstance(table[taken[-1]], Group):
                break
            table = table[taken[-1]].members
        flags = [word for word in words if word.startswith("--") and word != "--help"]
        assert taken or words[:1] in (["--help"], ["STAGE"]) or "STAGE" in command, command
        if flags:
            known = help_of(*taken)
            assert not [flag for flag in flags if flag not in known], command


def help_of(*command: str) -> set[str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*command, "--help"]) == 0
    return set(re.findall(r"--[a-z0-9-]+", out.getvalue()))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    page = (tmp_path / "site" / "environments" / "sanawm" / "index.html").read_text()
    assert "max_translation_m" in page and "<table>" in page
    assert "http://" not in re.sub(r"http://www.w3.org\S*", "", page) and "fonts.googleapis" not in page
    shutil.rmtree(tmp_path / "site")
