"""Quantisation: which layers of a network go into few bits, how that is done, and how files hold it.

    world = quantize(WorldModel.load("tiny-rooms"), "nvfp4")      after loading
    world = WorldModel.load("tiny-rooms", precision="nvfp4")      the same, from the weights as they are
        stored
    sana-wm checkpoint quantize tiny-rooms small --precision nvfp4     for good: "small" is a world folder

Weights are packed and activations are rounded to the same format before every product, after training,
without calibration: what the published code does to SANA-WM, whose choice of layers is the default here. The
formats are in `kernels/formats.py`, the layer in `kernels/quantized.py`. A quantised world imagines other
pictures than the wide one; `sana-wm evaluate precision` measures how much. The same batch always gives the
same bits. In a batch of another size a session differs by about as much as from the wide world: last bits
decide between two codes, and what was decided otherwise spreads.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from .kernels.formats import FORMATS, PRECISIONS, Precision, pack
from .kernels.operations import Packed
from .kernels.quantized import QuantizedLinear
from .kernels.tensor_cores import check_card
from .network.transformer import Transformer
from .storage.weights import CheckpointError, WeightFiles, compare_shapes, fill, is_unused

Model = TypeVar("Model")
METADATA = "precision"  # under which a safetensors file says in what it is stored
MULTIPLE = 16  # layers whose sizes are no multiples of it stay wide, as published


class Layer(NamedTuple):
    """A product in every block. published: whether the published recipe quantises it. group: what is
    measured together.
    """

    group: str
    published: bool
    what: str


LAYERS: dict[str, Layer] = {
    "attn.qkv": Layer("self-attention", True, "queries, keys and values of the main branch"),
    "attn.beta_proj": Layer(
        "self-attention", True, "write strengths; as wide as there are heads, so wide in both presets"
    ),
    "attn.gate_proj": Layer("self-attention", True, "decay; likewise"),
    "attn.output_gate": Layer("self-attention", True, "gate on the sum of both branches"),
    "attn.proj": Layer("self-attention", True, "output of both branches"),
    "cross_attn.q_linear": Layer("text", True, "queries to the prompt"),
    "cross_attn.kv_linear": Layer("text", True, "keys and values of the prompt, once per prompt"),
    "cross_attn.proj": Layer("text", True, "output"),
    "mlp.inverted_conv.conv": Layer("feed-forward", True, "expansion, a convolution of kernel 1"),
    "mlp.point_conv.conv": Layer("feed-forward", True, "contraction, a convolution of kernel 1"),
    "attn.q_proj_cam": Layer("camera", False, "queries of the camera branch"),
    "attn.k_proj_cam": Layer("camera", False, "keys of the camera branch"),
    "attn.v_proj_cam": Layer("camera", False, "values of the camera branch"),
    "attn.out_proj_cam": Layer("camera", False, "output of the camera branch"),
}
"""Everything else stays wide: embedders of patch, rays, time and text, `t_block` and the final layer; the
depthwise and temporal convolutions, `plucker_proj`, norms and gates inside the blocks."""
PUBLISHED = tuple(name for name, layer in LAYERS.items() if layer.published)


def quantize(
    model: Model,
    precision: Precision,
    layers: Collection[str] = PUBLISHED,
    wide_at: Iterable[int] = (),
    exact: bool = False,
) -> Model:
    """Put layers of a `Transformer`, or of a `WorldModel`'s, into few bits, in place and once.

    Args:
        model: which is returned.
        precision: of weights and activations.
        layers: names from `LAYERS`; those whose sizes are no multiples of 16 (or of the format's block) stay
            wide.
        wide_at: timesteps, such as 1000 and 889, at which activations stay as they are. With few steps the
            first and the last matter most.
        exact: on a GPU as well, multiply the rounded values instead of asking its tensor cores.

    Raises:
        ValueError: an unknown precision or layer, a network that is quantised already, or a GPU that cannot
            multiply in this precision.
    """
    transformer = cast(Transformer, getattr(model, "transformer", model))
    check_precision(precision)
    if unknown := sorted(set(layers) - set(LAYERS)):
        raise ValueError(f"got the layer {unknown[0]!r}; wanted some of {', '.join(LAYERS)}")
    if before := find_precision(transformer):
        raise ValueError(f"got a network in {before} already; wanted one as it was trained: load it again")
    if not exact:
        check_card(precision, transformer.pos_embed.device)
    with torch.inference_mode(False), torch.no_grad():
        for name in find_layers(transformer, precision, layers):
            _replace(transformer, name, precision, exact)
    transformer.wide_at = frozenset(wide_at)
    if transformer.pos_embed.device.type != "meta":
        transformer.prepare(transformer.compute_dtype)
    vars(model).pop("fingerprint", None)  # other weights: the world's states are its own
    vars(model).pop("needed", None)
    return model


def check_precision(precision: Any) -> None:
    """ValueError that lists the precisions there are, where this is none of them."""
    if precision not in PRECISIONS:
        raise ValueError(f"got precision={precision!r}; wanted one of {', '.join(map(repr, PRECISIONS))}")


def find_precision(network: nn.Module) -> Precision | None:
    """Returns the precision that a network is quantised to, None for a wide one."""
    return next(
        (module.precision for module in network.modules() if isinstance(module, QuantizedLinear)), None
    )


def find_layers(
    transformer: Transformer, precision: Precision, layers: Collection[str] = PUBLISHED
) -> list[str]:
    """Full names, such as "blocks.0.attn.qkv", of the layers of a wide network that a precision can hold."""
    layer_names = []
    for i, block in enumerate(transformer.blocks):
        for name in LAYERS:
            outputs, inputs = weight_of(block, name).shape
            if (
                name in layers
                and outputs % MULTIPLE == inputs % MULTIPLE == inputs % FORMATS[precision].block == 0
            ):
                layer_names.append(f"blocks.{i}.{name}")
    return layer_names


def weight_of(network: nn.Module, name: str) -> Tensor:
    """The matrix (outputs, inputs) of a layer; of a quantised one in float32 and without its scale."""
    layer = network.get_submodule(name)
    assert isinstance(layer, Packed)
    return layer.unpacked()


def _replace(transformer: nn.Module, name: str, precision: Precision, exact: bool = False) -> None:
    owner, _, child = name.rpartition(".")
    layer = transformer.get_submodule(name)
    assert isinstance(layer, Packed)
    packed = QuantizedLinear(layer.unpacked().detach(), layer.bias, precision, exact)
    setattr(transformer.get_submodule(owner), child, packed)


# ---- files


def read_precision(files: WeightFiles) -> Precision | None:
    """Reads the precision that files are stored in, None for wide ones; CheckpointError that names one which
    is not known here.
    """
    stored = files.metadata().get(METADATA)
    if stored is not None and stored not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise CheckpointError(
            f"{files} is stored in the precision {stored!r}; known are {known}: a newer version may read it"
        )
    return stored


def match_files(network: Transformer, files: WeightFiles) -> Transformer:
    """A network without weights, quantised in the layers that the files hold packed."""
    if precision := read_precision(files):
        names = {name for name, _ in network.named_modules()}
        for name in files.outline():
            owner = name.removesuffix(".weight_scale")
            if owner != name and owner in names:
                _replace(network, owner, precision)
    return network


def load_weights(
    network: Transformer,
    files: WeightFiles,
    dtype: torch.dtype,
    device: str | torch.device,
    precision: Precision | None,
) -> None:
    """Fill a network without weights, quantised where the files are or where `precision` asks for it: the
    peak is it and one tensor.

    `dtype` is that of everything that is not packed. Weights are packed from the values in the files,
    whatever `dtype` is.

    Raises:
        CheckpointError: files in another precision, or that do not fit; it names every key, before any
            weight is read.
        ValueError: a GPU that cannot multiply in this precision.
    """
    stored = read_precision(files)
    if precision is not None:
        check_precision(precision)
    if stored and precision not in (None, stored):
        raise CheckpointError(
            f"got precision={precision!r}; {files} is in {stored} already: wanted the files it was made of"
        )
    if precision := precision or stored:
        check_card(precision, torch.device(device))
    match_files(network, files)
    if difference := compare_shapes({name: shape for name, (shape, _) in files.outline().items()}, network):
        raise CheckpointError(f"{files} does not fit its configuration: {difference}")
    if precision and not stored:
        quantize(network, precision)
    kept = packed_names(network)
    read = ((name, t.to(device)) for name, t in files.tensors(lambda name: not is_unused(name)))
    tensors = {}
    for name, t in pack_tensors(read, network):
        if name in kept and t.dtype != (wanted := network.get_buffer(name).dtype):
            raise CheckpointError(
                f"{files} holds {name} in {t.dtype}; {precision} has it in {wanted}: the file is damaged"
            )
        tensors[name] = t if name in kept or not t.is_floating_point() else t.to(dtype)
    wide_first = sorted(
        tensors, key=lambda name: name in kept
    )  # buffers that no file has take the dtype of the first
    fill(network, {name: tensors[name] for name in wide_first}, str(files))


def packed_names(network: nn.Module) -> frozenset[str]:
    """Names of the tensors that keep their dtype whatever that of the network is."""
    layers = (
        (name, module) for name, module in network.named_modules() if isinstance(module, QuantizedLinear)
    )
    return frozenset(
        f"{name}.{part}" for name, module in layers for part in module.NAMES if part in module._buffers
    )


def pack_tensors(tensors: Iterable[tuple[str, Tensor]], network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a wide network as a quantised one holds them. What is packed already, or stays wide,
    passes.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLinear)}
    for name, t in tensors:
        owner, _, kind = name.rpartition(".")
        layer = layers.get(owner) if kind == "weight" else None
        if layer is None or t.dtype == layer.weight.dtype:
            yield name, t
            continue
        parts = (part for part in pack(t.flatten(1), layer.precision) if part is not None)
        yield from (
            (f"{owner}.{part_name}", part) for part_name, part in zip(layer.NAMES, parts, strict=False)
        )


def count_bytes(network: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of all parameters and buffers with everything that is not packed in `dtype`. The network may
    stand on the meta device.
    """
    kept = packed_names(network)
    return sum(
        t.numel() * (t.dtype if name in kept else dtype).itemsize for name, t in network.state_dict().items()
    )
