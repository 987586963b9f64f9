"""Quantised networks: which layers, what they compute, what files hold, what is refused."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_networks import clip, tiny_network
from torch import Tensor, nn
from torch.nn import functional as F

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env import cli
from sana_wm_env.model.config import preset
from sana_wm_env.model.kernels.formats import PRECISIONS, Precision, unpack
from sana_wm_env.model.kernels.operations import Linear
from sana_wm_env.model.kernels.quantized import QuantizedLinear
from sana_wm_env.model.memory import need, weight_bytes
from sana_wm_env.model.network.feed_forward import Pointwise
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.quantize import LAYERS, PUBLISHED, count_bytes, find_layers, find_precision, quantize
from sana_wm_env.model.state import WorldState
from sana_wm_env.model.storage.weights import is_unused
from sana_wm_env.model.storage.worlds import CheckpointError, resolve_world, save_world
from sana_wm_env.model.world import WorldModel

pytestmark = pytest.mark.usefixtures("one_thread")
PATH = torch.eye(4, dtype=torch.float64).repeat(1, 24, 1, 1)
PATH[0, :, 2, 3] = torch.linspace(0.02, 0.5, 24)


def start(world: WorldModel, sessions: int = 1) -> WorldState:
    images = torch.randint(
        0, 256, (sessions, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
    lens = torch.tensor([[50.0, 50.0, 32.0, 32.0]]).repeat(sessions, 1)
    return world.start(
        images, lens, ["a red room"] * sessions, [torch.Generator().manual_seed(i) for i in range(sessions)]
    )


def step(world: WorldModel) -> Tensor:
    """Frames of the second chunk, which has read a state."""
    _, state = world.step(start(world), PATH)
    return world.step(state, PATH)[0]


def digest(world: WorldModel) -> str:
    return hashlib.sha256(step(world).numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The bundled world in NVFP4, as the command writes it."""
    folder = tmp_path_factory.mktemp("worlds") / "nvfp4"
    assert cli.main(["checkpoint", "quantize", "rooms", str(folder), "--precision", "nvfp4"]) == 0
    return folder


# ---- which layers


def test_the_table_has_every_product_of_a_block_but_the_ray_embedding():
    block = tiny_network().blocks[0]
    products = {name for name, module in block.named_modules() if isinstance(module, Linear | Pointwise)}
    assert products == {*LAYERS, "plucker_proj"}


def test_the_published_layers_of_the_published_network():
    """Write strengths and decay have 20 outputs, no multiple of 16; the camera branch stays as it is."""
    with torch.device("meta"):
        network = Transformer(preset("2.6b"))
    names = {
        name.removeprefix("blocks.7.")
        for name in find_layers(network, "nvfp4")
        if name.startswith("blocks.7.")
    }
    attention = {"attn.qkv", "attn.output_gate", "attn.proj"}
    caption = {"cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"}
    assert names == attention | caption | {"mlp.inverted_conv.conv", "mlp.point_conv.conv"}
    everything = find_layers(network, "nvfp4", LAYERS)
    assert len(everything) == 20 * (len(names) + 4) and "blocks.19.attn.q_proj_cam" in everything


def test_only_the_chosen_layers_are_packed():
    network = quantize(tiny_network(torch.float32), "fp8", ["attn.qkv", "mlp.point_conv.conv"])
    found = {
        name.partition(".")[2].partition(".")[2]
        for name, m in network.named_modules()
        if isinstance(m, QuantizedLinear)
    }
    assert found == {"attn.qkv", "mlp.point_conv.conv"} and find_precision(network) == "fp8"


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda network: quantize(network, "fp6"),
            "got precision='fp6'; wanted one of 'fp8', 'nvfp4', 'mxfp8', 'int8'",
        ),
        (
            lambda network: quantize(network, "fp8", ["attn.qvk"]),
            "got the layer 'attn.qvk'; wanted some of attn.qkv",
        ),
        (lambda network: quantize(quantize(network, "fp8"), "nvfp4"), "got a network in fp8 already"),
    ],
)
def test_what_cannot_be_quantised_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(tiny_network(torch.float32))


# ---- what they compute


def layer(precision: Precision, inputs: int = 64, outputs: int = 48) -> QuantizedLinear:
    made = torch.Generator().manual_seed(3)
    bias = nn.Parameter(torch.randn(outputs, generator=made), requires_grad=False)
    return QuantizedLinear(torch.randn(outputs, inputs, generator=made) * inputs**-0.5, bias, precision)


def activations(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def exact(module: QuantizedLinear, x: Tensor) -> Tensor:
    """The product in float64 of what both formats hold."""
    from sana_wm_env.model.kernels.formats import FORMATS, apply_block_scales

    numbers, block_scales, scale = FORMATS[module.precision].cut(x)
    rows = apply_block_scales(numbers, block_scales).double() * (1 if scale is None else scale.double())
    parts = module.parts
    columns = unpack(parts.numbers, parts.block_scales, module.precision).double()
    columns = columns if parts.scale is None else columns * parts.scale.double()
    return rows @ columns.T + module.bias.double()


@torch.inference_mode()
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factor", [1.0, 200.0])
def test_a_layer_multiplies_the_rounded_values(precision, factor):
    """Activations times 200 go through as finite numbers, and as far off as their rounding makes them."""
    module, x = layer(precision), factor * activations(2, 3, 10, 64)
    found, base = module(x), activations(2, 3, 10, 48)
    assert found.isfinite().all() and torch.allclose(
        found.double(), exact(module, x), rtol=1e-5, atol=1e-5 * factor
    )
    assert torch.allclose(module.forward_silu(x), F.silu(found), rtol=1e-4, atol=1e-5)
    assert torch.allclose(module.forward_onto(base, x), base + found, rtol=1e-5, atol=1e-5 * factor)
    wide = F.linear(x, layer(precision).unpacked(), None) if precision == "mxfp8" else None
    if wide is not None:
        assert (found - module.bias - wide).norm() / wide.norm() < 0.04


@torch.inference_mode()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_give_the_bias_and_infinities_finite_numbers(precision):
    module, x = layer(precision), activations(1, 2, 4, 64)
    x[0, 0] = 0
    x[0, 1, 1, 7] = torch.inf
    found = module(x)
    assert torch.equal(found[0, 0], module.bias.expand(4, -1)) and found.isfinite().all()


def test_integers_are_summed_as_integers():
    """Thousands of products of 127 by 127 are more than float32 counts."""
    weight = torch.full((16, 6720), 1.0)
    weight[0, 0] = -1 / 127
    module = QuantizedLinear(weight, None, "int8")
    x = torch.full((1, 32, 6720), 127.0)
    assert module._product(x)[0][0, 0, 1] == 6720 * 127 * 127


@torch.inference_mode()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_of_another_dtype_keeps_the_bytes(precision):
    network = quantize(tiny_network(torch.float32), precision)
    before = {
        name: t.clone()
        for name, t in network.state_dict().items()
        if name.endswith((".qkv.weight", ".qkv.weight_scale"))
    }
    after = network.to(torch.bfloat16).state_dict()
    assert (
        network.dtype == torch.bfloat16
        and after["blocks.0.mlp.inverted_conv.conv.bias"].dtype == torch.bfloat16
    )
    for name, t in before.items():
        assert after[name].dtype == t.dtype and torch.equal(
            after[name].view(torch.uint8), t.view(torch.uint8)
        )


def velocity(network: Transformer, timestep: float) -> Tensor:
    inputs = clip(3, dtype=torch.float32)
    text = network.text_context(inputs["text"], inputs["mask"])
    cameras = network.camera_context(inputs["camera"].float(), inputs["plucker"].float())
    return network.stream(inputs["x"], torch.full((1, 3), timestep), text, cameras, None)


@torch.inference_mode()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_activations_stay_wide_at_the_chosen_levels(precision):
    """There the network is the wide one with rounded weights; elsewhere nothing changes."""
    layers = [name for name in PUBLISHED if name != "cross_attn.kv_linear"]  # the prompt is read at no level
    rounded = tiny_network(torch.float32)
    for name in find_layers(rounded, precision, layers):
        module = rounded.get_submodule(name)
        narrow = QuantizedLinear(module.unpacked(), None, precision)
        scale = narrow.parts.scale
        module.weight.copy_((narrow.unpacked() * (1 if scale is None else scale)).view_as(module.weight))
    plain = quantize(tiny_network(torch.float32), precision, layers)
    mixed = quantize(tiny_network(torch.float32), precision, layers, wide_at=(1000, 727))
    for level in (1000.0, 727.0):
        assert torch.allclose(velocity(mixed, level), velocity(rounded, level), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(velocity(mixed, level), velocity(plain, level), rtol=1e-3, atol=1e-4)
    assert torch.equal(velocity(mixed, 960.0), velocity(plain, 960.0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_session_in_a_batch_is_as_close_to_itself_alone_as_to_the_wide_world(precision):
    """Scales do not look at neighbours. But products of larger matrices round differently in their last
    bits, a value that lay between two codes then takes the other one, and layer by layer that becomes the
    noise of the precision itself.
    """
    world, wide = (WorldModel.load("rooms", dtype=torch.float32, precision=p) for p in (precision, None))
    both = start(world, 2)
    frames, after = world.step(both, PATH.repeat(2, 1, 1, 1))
    alone, after_alone = world.step(both[1:2], PATH)
    other, _ = wide.step(start(wide, 2)[1:2], PATH)
    apart, changed = ((frames[1].float() - x[0].float()).abs().mean() for x in (alone, other))
    assert apart < 1.5 * changed and torch.equal(after.generators[1:], after_alone.generators)


# ---- files


def test_packed_files_give_the_same_frames_in_a_new_process(packed, tmp_path):
    """Cut on loading, read from the command's files, and saved again from memory: the same bytes out of a
    step.
    """
    world = WorldModel.load("rooms", precision="nvfp4")
    save_world(
        tmp_path / "again", world.config, world.transformer, world.autoencoder, undistilled=world.transformer
    )
    code = (
        "import sys; sys.path[:0] = {!r}; import torch; torch.set_num_threads(1); "
        "from test_quantize import *; print({})"
    )
    seen = {digest(world)}
    for folder in (packed, tmp_path / "again"):
        call = code.format(
            [str(Path(__file__).parent), *sys.path], f"digest(WorldModel.load({str(folder)!r}))"
        )
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout.strip())
    assert len(seen) == 1 and seen != {digest(WorldModel.load("rooms"))}


def test_files_hold_four_bits_and_scales(packed):
    held = load_file(packed / "transformer.safetensors")
    wide = load_file(resolve_world("rooms") / "transformer.safetensors")
    name = "blocks.0.mlp.inverted_conv.conv"
    outputs, inputs = wide[f"{name}.weight"].shape[:2]
    assert (held[f"{name}.weight"].dtype, held[f"{name}.weight"].shape) == (
        torch.uint8,
        (outputs, inputs // 2),
    )
    assert (held[f"{name}.weight_scale"].dtype, held[f"{name}.weight_scale"].shape) == (
        torch.float8_e4m3fn,
        (outputs, inputs // 16),
    )
    assert (held[f"{name}.weight_scale_2"].dtype, held[f"{name}.weight_scale_2"].shape) == (torch.float32, ())
    assert torch.equal(held[f"{name}.bias"], wide[f"{name}.bias"]) and torch.equal(
        held["t_block.1.weight"], wide["t_block.1.weight"]
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_computed_bytes_are_those_in_memory_and_in_files(precision, tmp_path):
    world = WorldModel.load("rooms", dtype=torch.bfloat16, precision=precision)
    held = sum(t.nbytes for t in world.transformer.state_dict().values())
    assert (
        weight_bytes(world.config.transformer, torch.bfloat16, precision)
        == held
        == count_bytes(world.transformer, torch.bfloat16)
    )
    assert need(world.config, torch.bfloat16, precision).transformer == held == world.needed.transformer
    assert cli.main(["checkpoint", "quantize", "rooms", str(tmp_path / "w"), "--precision", precision]) == 0
    unused = sum(t.nbytes for name, t in world.transformer.state_dict().items() if is_unused(name))
    size = (tmp_path / "w" / "transformer.safetensors").stat().st_size
    assert (
        held - unused <= size <= held - unused + 100_000
    )  # float16 is as large as bfloat16; the rest is the header


def test_inspect_reads_packed_files_and_convert_keeps_them(packed, tmp_path, capsys):
    assert cli.main(["checkpoint", "inspect", "rooms", "--json", str(tmp_path / "wide.json")]) == 0
    assert cli.main(["checkpoint", "inspect", str(packed), "--json", str(tmp_path / "packed.json")]) == 0
    wide, found = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("wide", "packed"))
    assert (wide["precision"], found["precision"]) == (
        None,
        "nvfp4",
    ) and "precision   nvfp4" in capsys.readouterr().out
    assert found["parameters"] == wide["parameters"] and found["bytes"] < 0.6 * wide["bytes"]
    assert (
        cli.main(["checkpoint", "convert", str(packed), str(tmp_path / "theirs"), "--to", "diffusers"]) == 0
    )
    assert find_precision(WorldModel.load(tmp_path / "theirs").transformer) == "nvfp4"


def test_what_a_file_is_in_cannot_be_asked_otherwise(packed, capsys):
    with pytest.raises(CheckpointError, match=r"got precision='fp8'; .* is in nvfp4 already"):
        WorldModel.load(packed, precision="fp8")
    assert find_precision(WorldModel.load(packed, precision="nvfp4").transformer) == "nvfp4"
    assert cli.main(["checkpoint", "quantize", str(packed), "elsewhere", "--precision", "fp8"]) == 2
    assert "in nvfp4 already; wanted the world that it was made of" in capsys.readouterr().err
    assert cli.main(["checkpoint", "quantize", "rooms", str(packed), "--precision", "fp8"]) == 2
    assert "holds config.json already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"metadata": {"precision": "nvfp2"}},
            "is stored in the precision 'nvfp2'; known are fp8, nvfp4, mxfp8, int8",
        ),
        ({"metadata": {"precision": "fp8"}}, r"does not fit its configuration: unexpected .*weight_scale_2"),
        ({"drop": "blocks.3.attn.proj.weight_scale_2"}, "missing blocks.3.attn.proj.weight_scale_2"),
        (
            {"cast": "blocks.3.attn.proj.weight_scale"},
            r"holds blocks.3.attn.proj.weight_scale in torch.int8; .* is damaged",
        ),
    ],
)
def test_files_that_are_not_what_they_say_are_refused_by_name(packed, tmp_path, change, said):
    for name in ("config.json", "autoencoder.safetensors"):
        (tmp_path / name).write_bytes((packed / name).read_bytes())
    held = load_file(packed / "transformer.safetensors")
    held.pop(change.get("drop"), None)
    if name := change.get("cast"):
        held[name] = held[name].view(torch.int8)
    save_file(
        held,
        tmp_path / "transformer.safetensors",
        {"format": "pt", "precision": "nvfp4"} | change.get("metadata", {}),
    )
    with pytest.raises(CheckpointError, match=said):
        WorldModel.load(tmp_path)


# ---- environments


def test_an_environment_takes_a_precision():
    wide, narrow = (
        gym.make("SanaWM-v0", dtype="float32", precision=precision) for precision in (None, "nvfp4")
    )
    for env in (wide, narrow):
        env.reset(seed=3)
    action = np.zeros(6, np.float32)
    action[2] = 0.5
    frames = [env.step(action)[0] for env in (wide, narrow)]
    assert find_precision(narrow.unwrapped.model.transformer) == "nvfp4"
    assert not np.array_equal(*frames) and np.abs(frames[0].astype(int) - frames[1]).mean() < 20
    with pytest.raises(ValueError, match="got a state of the world 'rooms' with weights"):
        narrow.unwrapped.restore_state(wide.unwrapped.save_state())
    state = narrow.unwrapped.save_state()
    ahead = narrow.step(action)[0]
    narrow.unwrapped.restore_state(state)
    assert np.array_equal(narrow.step(action)[0], ahead)


def test_an_unknown_precision_is_refused_when_the_environment_is_made():
    with pytest.raises(ValueError, match="got precision='fp6'; wanted one of 'fp8'"):
        gym.make("SanaWM-v0", precision="fp6")
