"""The published repositories: what is in them, how large it is, under which licence; and where a downloaded
one lies on this machine.

Opening a world never downloads: gigabytes move only when `sana-wm download` is asked to, and nothing here
connects to anything else. The table was written from documents (model/README.md section 11.1, the
repositories' cards), not from the files; sizes are nominal.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from .layouts import OWNER
from .weights import CheckpointError

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")
INSTALL = "pip install 'sana-wm-env[hub]'"

SANA_LICENCE = "Apache-2.0 by the card of SANA-WM_bidirectional"
LTX_LICENCE = "derived from LTX-2: LTX-2 Community License"
GEMMA_LICENCE = "Gemma Terms of Use"

GEMMA_PARAMETERS = 2_614_341_888  # gemma-2-2b-it
REFINER_TEXT_PARAMETERS = 11_766_034_176 + 1_431_475_200  # gemma-3-12b for text, connectors
AUTOENCODER_PARAMETERS = 1_222_479_601  # LTX-2 video autoencoder, model/README.md section 10.1
TRANSFORMER_NUMBERS = 2_663_575_828  # parameters and buffers of the 2.6b preset


@dataclass(frozen=True)
class Part:
    """Files that belong together.

    nbytes is nominal; more tells why the real number may be larger. An optional part is not read by the
    environment.
    """

    what: str
    repository: str
    files: tuple[str, ...]
    nbytes: int
    licence: str
    more: str = ""
    optional: bool = False


def _text_encoder() -> Part:
    repository = f"{OWNER}/gemma-2-2b-it"
    return Part(
        "text encoder",
        repository,
        ("*.json", "*.safetensors", "tokenizer*"),
        2 * GEMMA_PARAMETERS,
        GEMMA_LICENCE,
    )


def _autoencoder(repository: str, folder: str) -> Part:
    return Part("autoencoder", repository, (f"{folder}/*",), 2 * AUTOENCODER_PARAMETERS, LTX_LICENCE)


def _bidirectional() -> tuple[Part, ...]:
    name = f"{OWNER}/SANA-WM_bidirectional"
    return (
        Part(
            "transformer",
            name,
            ("dit/sana_wm_1600m_720p.safetensors", "config.yaml"),
            4 * TRANSFORMER_NUMBERS,
            SANA_LICENCE,
        ),
        _autoencoder(name, "vae"),
        _text_encoder(),
        Part(
            "refiner",
            name,
            ("refiner/transformer/*", "refiner/connectors/*"),
            41 * 10**9,
            LTX_LICENCE,
            optional=True,
        ),
        Part(
            "refiner's text encoder",
            name,
            ("refiner/text_encoder/*",),
            46 * 10**9,
            GEMMA_LICENCE,
            optional=True,
        ),
    )


def _streaming() -> tuple[Part, ...]:
    name = f"{OWNER}/SANA-WM_streaming"
    more = "a training checkpoint: critic and optimizers come with it"
    return (
        Part("transformer", name, ("sana_dit/model.pt",), 2 * TRANSFORMER_NUMBERS, SANA_LICENCE, more),
        _autoencoder(name, "ltx2_causal_vae"),
        _text_encoder(),
        Part("refiner", name, ("refiner_diffusers/*",), 41 * 10**9, LTX_LICENCE, optional=True),
        Part("refiner's text encoder", name, ("gemma3_12b/*",), 46 * 10**9, GEMMA_LICENCE, optional=True),
    )


def _chunk_causal() -> tuple[Part, ...]:
    name = f"{OWNER}/SANA-WM_chunk_causal"
    files = ("dit/sana_wm_chunk_causal_1600m_720p.safetensors", "config.yaml")
    elsewhere = _autoencoder(f"{OWNER}/SANA-WM_bidirectional", "vae")
    return Part("transformer", name, files, 4 * TRANSFORMER_NUMBERS, SANA_LICENCE), elsewhere, _text_encoder()


def _diffusers() -> tuple[Part, ...]:
    name = f"{OWNER}/SANA-WM_bidirectional-diffusers"
    return (
        Part(
            "transformer",
            name,
            ("transformer/*", "model_index.json", "scheduler/*"),
            2 * TRANSFORMER_NUMBERS,
            SANA_LICENCE,
        ),
        _autoencoder(name, "vae"),
        Part("text encoder", name, ("text_encoder/*", "tokenizer/*"), 2 * GEMMA_PARAMETERS, GEMMA_LICENCE),
    )


REPOSITORIES: dict[str, tuple[Part, ...]] = {
    f"{OWNER}/SANA-WM_streaming": _streaming(),
    f"{OWNER}/SANA-WM_bidirectional": _bidirectional(),
    f"{OWNER}/SANA-WM_chunk_causal": _chunk_causal(),
    f"{OWNER}/SANA-WM_bidirectional-diffusers": _diffusers(),
}
# No commit of the repositories was at hand when this was written. What was downloaded stays what it is until
# it is downloaded again, and `sana-wm download` prints its commit, for world="owner/name@commit".
DEFAULT_REVISION = "main"


def parse_id(text: str) -> tuple[str, str]:
    """Repository and revision of "owner/name" or "owner/name@revision"; CheckpointError for anything else."""
    match = HUB_ID.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"got {text!r}; wanted a repository as owner/name or owner/name@revision, such as "
            f"{next(iter(REPOSITORIES))}"
        )
    return match["name"], match["revision"] or DEFAULT_REVISION


def parts_of(name: str) -> tuple[Part, ...]:
    """Lists the parts that a repository needs to run as a world, or that worlds take from it; none if the
    table does not know it.
    """
    others = (part for parts in REPOSITORIES.values() for part in parts if part.repository == name)
    return REPOSITORIES.get(name) or tuple(dict.fromkeys(others))


def is_downloaded(part: Part, revision: str) -> bool:
    """Returns True if each of a part's patterns has a file on this machine. No connection is made."""
    try:
        folder = downloaded(f"{part.repository}@{revision}")
    except CheckpointError:
        return False
    return all(any(folder.glob(pattern)) for pattern in part.files)


def downloaded(text: str) -> Path:
    """Folder of a repository that was downloaded before; no connection is made. CheckpointError with the
    command that gets it.
    """
    name, revision = parse_id(text)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise CheckpointError(
            f"got {text!r}; opening repositories of the hub needs huggingface_hub: {INSTALL}"
        ) from None
    try:
        # no pattern: of a repository that was fetched in parts, the rest would be called missing; what opens
        # a file says so
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        raise CheckpointError(f"{text} is not on this machine: `sana-wm download {text}` gets it") from None
