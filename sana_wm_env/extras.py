"""Libraries that only some commands need: named, with the line that installs them, before any work."""

from importlib import import_module

INSTALL = {
    "webdataset": "pip install 'sana-wm-env[train]'",
    "matplotlib": "pip install matplotlib, or all that training likes: pip install 'sana-wm-env[train]'",
    "tensorboard": "pip install 'sana-wm-env[train]'",
    "minari": "pip install 'sana-wm-env[minari]'",
    "stable_baselines3": "pip install 'sana-wm-env[rl]'",
    "huggingface_hub": "pip install 'sana-wm-env[hub]'",
    "diffusers": "pip install 'sana-wm-env[hub]'",
    "transformers": "pip install 'sana-wm-env[hub]'",
    "accelerate": "pip install 'sana-wm-env[hub]'",
    "aiohttp": "pip install 'sana-wm-env[play]'",
    "websockets": "pip install 'sana-wm-env[remote]'",
    "msgspec": "pip install 'sana-wm-env[remote]'",
    "prometheus_client": "pip install 'sana-wm-env[remote]'",
    "fla": "pip install 'sana-wm-env[gpu]'",
    "stable_worldmodel": "pip install 'sana-wm-env[swm]'",
    "pycolmap": "pip install 'sana-wm-env[annotate]'",
    "scenedetect": "pip install 'sana-wm-env[annotate]'",
    "cv2": "pip install 'sana-wm-env[annotate]'",
    "ray": "pip install 'sana-wm-env[ray]'",
    "pyarrow": "pip install 'sana-wm-env[lerobot]'",
    "moge": "pip install git+https://github.com/microsoft/MoGe.git",
}


def is_installed(library: str) -> bool:
    """Whether a library is there and can be imported."""
    try:
        import_module(library)
    except ImportError:
        return False
    return True


def check_installed(library: str, what: str) -> None:
    """ValueError that names the install line if a library is not there that `what` needs."""
    if not is_installed(library):
        name = library.partition(".")[0]
        raise ValueError(f"{what} needs {name}, which is not installed: {INSTALL[name]}")


def describe_missing(error: ModuleNotFoundError) -> str | None:
    """What to install for an import that failed; None if it is no library of an extra."""
    library = (error.name or "").partition(".")[0]
    if library not in INSTALL:
        return None
    return f"this needs {library}, which is not installed: {INSTALL[library]}"
