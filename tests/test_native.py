"""Compiled operations are a gain, never a need: nothing is compiled at import, and everything works without a
compiler.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sana_wm_env import native

SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'
STEP = (
    "import gymnasium as gym, numpy as np, sana_wm_env; env = gym.make('SanaWM-v0', dtype='float32'); "
    "env.reset(seed=0); "
)
STEP += "print(env.step(np.zeros(6, np.float32))[0].astype(float).mean().round())"


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "answer.cpp"
    file.write_text(SOURCE)
    native.load_library.cache_clear()
    yield file
    native.load_library.cache_clear()


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    everything = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=everything, capture_output=True, text=True, timeout=300
    )


def test_nothing_is_compiled_at_import(tmp_path):
    code = (
        "import sana_wm_env, sana_wm_env.model.world, sana_wm_env.rooms.env, sana_wm_env.train.distill, "
        "sana_wm_env.sb3"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0 and not (tmp_path / "cache").exists(), done.stderr


@pytest.mark.skipif(not native.find_compiler(), reason="no C++ compiler")
def test_a_library_is_compiled_once_and_found_again(source):
    assert native.load_library(source, "ANSWER=42").answer() == 42
    (file,) = (source.parent / "cache" / "sana-wm" / "native").iterdir()
    made = file.stat().st_mtime_ns
    native.load_library.cache_clear()
    assert native.load_library(source, "ANSWER=42").answer() == 42 and file.stat().st_mtime_ns == made
    assert native.load_library(source, "ANSWER=7").answer() == 7  # another one


@pytest.mark.skipif(not native.find_compiler(), reason="no C++ compiler")
def test_a_compiler_that_fails_is_told_about_and_done_without(source):
    with pytest.warns(UserWarning, match="could not compile answer.cpp"):
        assert native.load_library(source) is None  # ANSWER is not defined


@pytest.mark.skipif(not native.find_compiler(), reason="no C++ compiler")
def test_a_cache_that_cannot_be_written_is_left_for_a_temporary_folder(source, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert native.load_library(source, "ANSWER=5").answer() == 5


@pytest.mark.parametrize(
    "how",
    [{"SANA_WM_NATIVE": "0"}, {"PATH": ""}, {"CXX": "/bin/false", "PATH": ""}],
    ids=["off", "none", "broken"],
)
def test_a_step_without_a_compiler(how, tmp_path):
    done, wanted = run(STEP, tmp_path, **how), run(STEP, tmp_path)
    assert done.returncode == 0 and done.stdout == wanted.stdout, done.stderr
