"""C++ operations: compiled on first use, kept in the user's cache, replaced by torch where there is no
compiler.

Below everything else in the package, so that the network's kernels and the renderer of the rooms can both use
it. A source is plain C++17 with `extern "C"` functions on raw pointers: it compiles in seconds, where torch's
own headers take the better part of a minute and want ninja, and it fits every version of torch. Every caller
has a plain torch function that gives the same result, and uses that where `load_library` returns None.

Environment: `SANA_WM_NATIVE=0` does without compiled operations; `CXX` names another compiler;
`XDG_CACHE_HOME` another cache.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

from .files import replacing

# Not -ffast-math: comparisons with NaN and infinity keep their meaning.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast",
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math",
)  # fmt: skip
VECTORS = "-mprefer-vector-width=512"  # GCC and Clang on x86; elsewhere it is left out
TIMEOUT_S = 300


@cache
def load_library(source: Path, *defines: str) -> ctypes.CDLL | None:
    """The compiled library of one C++ file, or None where none can be made: no compiler, no place to keep it,
    or switched off.

    source may include headers (*.h) that lie beside it. defines: such as "LANES=8", for the preprocessor.

    The first call on a machine compiles, in a few seconds; later processes find the result by a digest of the
    source, the compiler and the processor. Warns once, with the compiler's words, where a compiler is there
    but fails.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    flags = FLAGS + tuple(f"-D{define}" for define in defines)
    if platform.machine() in ("x86_64", "AMD64"):
        flags += (VECTORS,)
    sources = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    digest = hashlib.sha256(
        repr((sources, _version(compiler), flags, describe_processor())).encode()
    ).hexdigest()[:24]
    for folder in cache_folders():
        library = folder / f"{source.stem}-{digest}.so"
        try:
            if not library.exists():
                folder.mkdir(parents=True, exist_ok=True)
                _compile(compiler, flags, source, library)
            return ctypes.CDLL(str(library))
        except subprocess.SubprocessError as error:
            words = getattr(error, "stderr", None) or str(error)
            warnings.warn(
                f"{compiler} could not compile {source.name}; going on without it, more slowly: "
                f"{words[-500:]}",
                stacklevel=2,
            )
            return None
        except OSError:  # not writable, or no executable may lie there: the next folder
            continue
    return None


def find_compiler() -> str | None:
    """The C++ compiler that `load_library` uses: `CXX`, or the first of c++, g++, clang++ on the PATH; None
    if switched off or missing.
    """
    if os.environ.get("SANA_WM_NATIVE", "1") == "0" or os.name != "posix":
        return None
    return next(
        (
            path
            for name in (os.environ.get("CXX"), "c++", "g++", "clang++")
            if name and (path := shutil.which(name))
        ),
        None,
    )


def cache_folders() -> list[Path]:
    """Lists the folders for compiled libraries: the user's cache, or a temporary folder where there is none
    to write to.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(home) / "sana-wm" / "native", Path(tempfile.gettempdir()) / f"sana-wm-native-{os.getuid()}"]


def _compile(compiler: str, flags: tuple[str, ...], source: Path, library: Path) -> None:
    with replacing(library) as part:  # a half-written library never bears the name
        command = [compiler, *flags, str(source), "-o", str(part)]
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )


def _version(compiler: str) -> str:
    try:
        return subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def describe_processor() -> str:
    """A digest of what -march=native depends on: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        described = sorted(
            {
                line
                for line in lines
                if line.startswith(("flags", "Features", "model name", "cpu family", "model\t"))
            }
        )
    except OSError:
        described = [platform.platform(), platform.processor()]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
