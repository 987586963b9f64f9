"""What fixes a network: sizes, numerics switches, and the table of presets."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal, get_args

CamRmsClamp = Literal["none", "softmax", "all"]
SoftmaxScale = Literal["true", "padded128"]
KeyScale = Literal["dim_spatial", "dim", "none"]
Variant = Literal["streaming", "bidirectional", "chunk_causal"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and numerics of one transformer (paper section 3; model/README.md section 2).

    Nothing here depends on the latent grid: the same weights run at any height and width. `input_size` and
    `text_tokens` only size two buffers that published checkpoints carry and that no computation reads.

    Numerics switches (model/README.md section 12); the defaults are those of the current official code:
    `cam_rms_clamp`   clamp the RMS of camera-transformed vectors in no, only softmax, or all blocks;
    `softmax_scale`   "true" is 1/sqrt(D), "padded128" is 1/sqrt(size that old kernels padded D to);
    `cam_conv_carry`  whether the camera branch's key convolution sees the previous chunk when streaming;
    `key_scale`       delta-rule keys are divided by sqrt(D S) ("dim_spatial"), sqrt(D) ("dim") or not at all
    ("none"). Only the
                      first keeps transitions from growing; the others are there to show that.

    Window of the softmax blocks when streaming: `num_cached_blocks` earlier chunks are read, the first chunk
    of the session being one of them when `sink` is set, or the first `num_sink_blocks`; -1 reads all of them
    and lets the state grow.
    """

    depth: int
    width: int
    heads: int
    in_channels: int
    text_width: int
    text_tokens: int
    mlp_ratio: float = 3.0
    softmax_every: int = 4
    chunk: int = 3
    input_size: int = 22
    cam_rms_clamp: CamRmsClamp = "none"
    softmax_scale: SoftmaxScale = "true"
    cam_conv_carry: bool = True
    key_scale: KeyScale = "dim_spatial"
    sink: bool = True
    num_cached_blocks: int = 2
    num_sink_blocks: int = 1

    def __post_init__(self) -> None:
        for name in (
            "depth",
            "width",
            "heads",
            "in_channels",
            "text_width",
            "text_tokens",
            "chunk",
            "input_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"TransformerConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if self.softmax_every < 0:
            raise ValueError(
                f"softmax_every is {self.softmax_every}; give n for every n-th block, 0 for none"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.head_dim % 8:
            raise ValueError(
                f"head size {self.head_dim} (width / heads) must be a multiple of 8: half of it is "
                "cut into groups of 4"
            )
        if self.cam_rms_clamp not in ("none", "softmax", "all"):
            raise ValueError(
                f"cam_rms_clamp is {self.cam_rms_clamp!r}; it must be 'none', 'softmax' or 'all'"
            )
        if self.softmax_scale not in ("true", "padded128"):
            raise ValueError(f"softmax_scale is {self.softmax_scale!r}; it must be 'true' or 'padded128'")
        if self.key_scale not in ("dim_spatial", "dim", "none"):
            raise ValueError(f"key_scale is {self.key_scale!r}; it must be 'dim_spatial', 'dim' or 'none'")
        if self.softmax_scale == "padded128" and self.head_dim > 256:
            raise ValueError(
                f"softmax_scale 'padded128' is not defined for head size {self.head_dim}; those kernels "
                "ended at 256"
            )
        if self.num_cached_blocks < -1:
            raise ValueError(
                f"num_cached_blocks is {self.num_cached_blocks}; give -1 (all) or a number from 0"
            )
        if self.num_sink_blocks < 1:
            raise ValueError(
                f"num_sink_blocks is {self.num_sink_blocks}; give at least 1, and sink=False for none"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def sinks(self) -> int:
        """Chunks of a session, its first, that softmax blocks go on reading when streaming."""
        return self.num_sink_blocks if self.sink else 0

    @property
    def ffn_width(self) -> int:
        return round(self.width * self.mlp_ratio)

    @property
    def attention_scale(self) -> float:
        """Softmax scale of the self-attention, both branches."""
        size = self.head_dim
        if self.key_scale not in ("dim_spatial", "dim", "none"):
            raise ValueError(f"key_scale is {self.key_scale!r}; it must be 'dim_spatial', 'dim' or 'none'")
        if self.softmax_scale == "padded128" and size not in (32, 64, 128, 256):
            size = 128 if size < 128 else 256
        return size**-0.5

    def is_softmax(self, block: int) -> bool:
        """Returns True if block number `block` (0-based) mixes time by softmax instead of the delta rule."""
        return self.softmax_every > 0 and (block + 1) % self.softmax_every == 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """Inverse of `to_dict`; raises ValueError that names missing or unknown fields."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown transformer settings {unknown}; known are {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"incomplete transformer settings: {error}") from None


@dataclass(frozen=True)
class WorldConfig:
    """A world: the network, what turns images and words into its inputs, and what an environment has to know.

    Attributes:
        name: shown in `info`, and part of the fingerprint.
        transformer: of the network.
        image_size: (height, width) in pixels.
        grid: (height, width) in latent cells.
        autoencoder: settings of the autoencoder, and its `kind`: "bundled" (AutoencoderConfig; if none is
            named) or "ltx2".
        text: settings of the text encoder, and its `kind`: "hash" (TextEncoderConfig; if none is named) or
            "gemma2".
        sigmas: noise levels of the streaming sampler, from 1 to 0.
        max_translation_m: length of the largest translation per chunk that the world was trained on.
        max_rotation_rad: length of the largest rotation per chunk that the world was trained on.
        first_frames: source of first frames: "rooms", or None if the user has to bring an image.
        looks_around: whether a session at home begins with a look all around, which the world remembers.
        variants: what its weights can do: "streaming" in few steps; "bidirectional", "chunk_causal" clips in
            many.
        dtype: what its weights are run in if nothing else is asked for: "float32", "bfloat16", or "auto" for
            the faster of both on the device at hand.
    """

    name: str
    transformer: TransformerConfig
    autoencoder: dict[str, Any]
    text: dict[str, Any]
    image_size: tuple[int, int]
    grid: tuple[int, int]
    fps: int = 16
    sigmas: tuple[float, ...] = (1.0, 0.960, 0.889, 0.727, 0.0)
    max_translation_m: float = 1.0
    max_rotation_rad: float = 0.5
    first_frames: str | None = None
    looks_around: bool = False
    variants: tuple[Variant, ...] = ("streaming",)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"dtype is {self.dtype!r}; it must be 'float32', 'bfloat16' or 'auto'")
        if not self.variants or not set(self.variants) <= set(VARIANTS):
            raise ValueError(f"variants are {self.variants}; wanted some of {', '.join(VARIANTS)}")
        check_sigmas(self.sigmas)
        for name in ("image_size", "grid"):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be (height, width)")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WorldConfig":
        """Inverse of `to_dict`, also after a round trip through JSON; ValueError that names missing or
        unknown fields.
        """
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown world settings {unknown}; known are {sorted(known)}")
        if "transformer" in values:
            values["transformer"] = TransformerConfig.from_dict(values["transformer"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"incomplete world settings: {error}") from None


PRESETS: dict[str, TransformerConfig] = {
    # 64 x 64 images on an 8 x 8 grid: as wide as a two-core machine can train in hours and step in well under
    # half a second.
    "rooms": TransformerConfig(
        depth=12,
        width=192,
        heads=4,
        in_channels=48,
        mlp_ratio=2.0,
        text_width=64,
        text_tokens=32,
        input_size=8,
    ),
    # The public checkpoints (model/README.md section 2).
    "2.6b": TransformerConfig(
        depth=20, width=2240, heads=20, in_channels=128, mlp_ratio=3.0, text_width=2304, text_tokens=300
    ),
}


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raises ValueError for what a sampler cannot walk down."""
    falls = all(a > b for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falls or not sigmas[0] <= 1 or sigmas[-1] != 0:
        raise ValueError(f"got the sigmas {sigmas}; wanted noise levels that fall from 1 at most to 0")


def preset(name: str) -> TransformerConfig:
    """Row `name` of the preset table; KeyError that lists the known names otherwise."""
    if name not in PRESETS:
        raise KeyError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]
