"""The bidirectional rule against diffusers' SanaWMTransformer3DModel, on the same random weights in one
run.
"""

import pytest
import torch
from tiny_networks import clip, tiny_config, tiny_network

from sana_wm_env.model.config import TransformerConfig, WorldConfig
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.storage.layouts import open_folder, read_config
from sana_wm_env.model.storage.worlds import convert, load_transformer, write_config, write_transformer

diffusers = pytest.importorskip("diffusers", minversion="0.42.1")

# Its numerics (model/README.md section 12): the clamp in every block, and a camera softmax scaled by the
# padded head size, which is the head size itself for 32 and 64. Its softmax runs in bfloat16 wherever it is
# given float32; `whole_precision` undoes that.
CONFIGS = {
    "3 delta-rule blocks to 1 softmax, 4 latents": (tiny_config(width=64, cam_rms_clamp="all"), 4, 0.1),
    "1 to 1, 7 latents, walking fast": (
        tiny_config(width=128, softmax_every=2, mlp_ratio=3.0, text_width=8, cam_rms_clamp="all"),
        7,
        5.0,
    ),
}


@pytest.fixture
def whole_precision(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda t: t)


def world_of(config: TransformerConfig) -> WorldConfig:
    return WorldConfig("tiny", config, {}, {}, (16, 24), (2, 3))


def write(folder, network: Transformer, layout: str):
    write_transformer(folder, network.state_dict().items(), layout)
    write_config(folder, world_of(network.config), layout)
    return folder


def theirs(folder):
    """Opened by their own loader, which reports what it misses."""
    model, report = diffusers.SanaWMTransformer3DModel.from_pretrained(
        folder / "transformer", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def velocities(
    network: Transformer, other, given: dict[str, torch.Tensor], timestep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    text = network.text_context(given["text"], given["mask"])
    cameras = network.camera_context(given["camera"], given["plucker"])
    ours = network(given["x"], timestep, text, cameras)
    data = {"camera_conditions": given["camera"].float(), "chunk_plucker": given["plucker"].float()}
    return ours, other(given["x"], timestep[:, None], given["text"][:, None], given["mask"], **data).sample


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_velocities_agree(tmp_path, whole_precision, name):
    config, frames, step_m = CONFIGS[name]
    network = tiny_network(torch.float32, **{key: getattr(config, key) for key in vars(config)})
    given = clip(frames, batch=2, dtype=torch.float32, step_m=step_m)
    given = {key: t.float() if t.is_floating_point() else t for key, t in given.items()}
    given["text"] = torch.randn(2, 5, config.text_width, generator=torch.Generator().manual_seed(4))
    timestep = torch.tensor([0.0, 998.26, *[727.0] * (frames - 2)]).repeat(2, 1)
    ours, reference = velocities(network, theirs(write(tmp_path, network, "diffusers")), given, timestep)
    assert (ours - reference).abs().max() <= 1e-5 * reference.std()


@torch.no_grad()
def test_the_numerics_switches_are_what_differs(tmp_path, whole_precision):
    given = {
        key: t.float() if t.is_floating_point() else t
        for key, t in clip(4, dtype=torch.float32, step_m=5.0).items()
    }
    network = tiny_network(torch.float32, width=64)
    ours, reference = velocities(
        network, theirs(write(tmp_path, network, "diffusers")), given, torch.full((1, 4), 500.0)
    )
    assert (ours - reference).abs().max() > 1e-3


def test_what_diffusers_writes_opens_here(tmp_path):
    network = tiny_network(torch.float32, width=64)
    other = theirs(write(tmp_path / "first", network, "diffusers"))
    other.save_pretrained(tmp_path / "second" / "transformer", max_shard_size="200KB")
    folder = open_folder(tmp_path / "second")
    assert folder.layout == "diffusers" and len(folder.transformer.files) > 1
    config = read_config(tmp_path / "second")
    assert config.transformer.width == 64 and config.transformer.text_tokens == 300
    loaded = load_transformer(tmp_path / "second", config).state_dict()
    assert all(
        torch.equal(loaded[key], t)
        for key, t in network.state_dict().items()
        if not key.endswith(("pos_embed", "y_embedding"))
    )
    convert(folder, tmp_path / "native", config, "native")
    again = load_transformer(tmp_path / "native", read_config(tmp_path / "native")).state_dict()
    assert all(torch.equal(loaded[key], t) for key, t in again.items())


def test_the_published_network_has_their_names_and_shapes():
    from sana_wm_env.model.config import preset
    from sana_wm_env.model.storage.weights import NATIVE_ONLY, native_name

    with torch.device("meta"):
        other, ours = diffusers.SanaWMTransformer3DModel(), Transformer(preset("2.6b"))
    theirs = {native_name(key): t.shape for key, t in other.state_dict().items()}
    assert len(theirs) == 870
    assert theirs == {key: t.shape for key, t in ours.state_dict().items() if key not in NATIVE_ONLY}
