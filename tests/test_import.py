"""`import sana_wm_env` is light, and works where a user's own modules have the names of our folders."""

import subprocess
import sys
from pathlib import Path

import pytest

import sana_wm_env


def run(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light(tmp_path):
    heavy = (
        "torch",
        "diffusers",
        "transformers",
        "triton",
        "fla",
        "scipy",
        "av",
        "stable_baselines3",
        "minari",
        "h5py",
        "aiohttp",
        "ray",
        "pyarrow",
    )
    code = (
        f"import sys, sana_wm_env, gymnasium; print([m for m in {heavy} if m in sys.modules], "
        "'SanaWM-v0' "
        "in gymnasium.registry)"
    )
    assert run(code, tmp_path) == "[] True"


def test_public_names_want_no_extra(tmp_path):
    """What needs one lies in a module that is imported by name: sana_wm_env.sb3, sana_wm_env.minari."""
    extras = ("stable_baselines3", "minari", "h5py", "tensorboard", "webdataset", "matplotlib", "aiohttp")
    extras = (
        "stable_baselines3",
        "minari",
        "h5py",
        "ray",
        "pyarrow",
        "tensorboard",
        "webdataset",
        "matplotlib",
    )
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras})); from sana_wm_env import *; "
        "print(SanaWMEnv.__name__)"
    )
    assert run(code, tmp_path) == "SanaWMEnv"


def test_no_module_wants_the_kernels_of_the_gpu_extra(tmp_path):
    """flash-linear-attention and triton are made unimportable; every module is imported but those that are
    named after another extra.
    """
    root = Path(__file__).parents[1]
    files = [
        file
        for folder in ("sana_wm_env", "model", "train", "agents")
        for file in (root / folder).rglob("*.py")
    ]
    names = [
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files
    ]
    names = [name if name.startswith("sana_wm_env") else f"sana_wm_env.{name}" for name in names]
    wanted = sorted(
        name for name in set(names) if name.split(".")[1:2] not in (["sb3"], ["minari"], ["ray"], ["lerobot"])
    )
    code = "import sys, importlib, warnings; sys.modules.update(fla=None, triton=None); "
    # an old name of a module that has moved
    code += "warnings.filterwarnings('error', 'sana_wm_env.* is now '); "
    code += f"print(len([importlib.import_module(n) for n in {wanted}]))"
    assert run(code, tmp_path) == str(len(wanted))


def test_import_beside_foreign_modules_of_the_same_names(tmp_path):
    for name in ("model", "train"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module was imported')")
    for name in ("agents", "model", "rooms"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package was imported')")
    code = (
        "import gymnasium, sana_wm_env; import sana_wm_env.model.config, sana_wm_env.train, "
        "sana_wm_env.agents; "
    )
    code += "env = gymnasium.make('SanaWM-Rooms-v0'); print(env.reset(seed=0)[0].shape)"
    assert run(code, tmp_path) == "(24, 64, 64, 3)"


def test_import_from_the_repository_itself():
    assert (
        run("import sana_wm_env.model.config as c; print(c.__name__)", Path(__file__).parents[1])
        == "sana_wm_env.model.config"
    )


@pytest.mark.parametrize("name", sana_wm_env.__all__)
def test_public_names(name):
    assert getattr(sana_wm_env, name).__name__ == name and name in dir(sana_wm_env)


def test_old_names_of_modules_still_work(tmp_path):
    code = (
        "import warnings; warnings.simplefilter('error', ImportWarning); warnings.simplefilter('always', "
        "DeprecationWarning); "
    )
    code += "from sana_wm_env._moved import MOVED; from importlib import import_module as load; "
    code += (
        "print(all(load('sana_wm_env.' + old) is load('sana_wm_env.' + new) for old, new in MOVED.items()))"
    )
    assert run(code, tmp_path) == "True"
    with pytest.warns(DeprecationWarning, match=r"sana_wm_env\.session is now sana_wm_env\.env"):
        from sana_wm_env.session import Imagined, restore
    assert restore is sana_wm_env.restore and Imagined.__module__ == "sana_wm_env.candidates"


def test_unknown_name():
    with pytest.raises(AttributeError, match="SanaWMEnv"):
        sana_wm_env.nonsense  # noqa: B018  # reading it is the test
