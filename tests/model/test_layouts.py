"""The published layouts, written here with a small network: each opens, and what does not fit is named."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_worlds import AUTOENCODER, CONFIG, begin, poses

from sana_wm_env.model.clip import ClipModel
from sana_wm_env.model.codecs.autoencoder import Autoencoder
from sana_wm_env.model.config import preset
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.storage.hub import REPOSITORIES, parse_id
from sana_wm_env.model.storage.layouts import (
    LAYOUTS,
    NATIVE_BUFFERS,
    from_diffusers,
    open_folder,
    read_config,
    to_diffusers,
)
from sana_wm_env.model.storage.weights import WeightFiles, native_name
from sana_wm_env.model.storage.worlds import (
    WRITTEN,
    CheckpointError,
    convert,
    load_transformer,
    resolve_world,
    save_world,
    write_config,
    write_transformer,
)
from sana_wm_env.model.world import WorldModel

PICKLES = {
    "plain": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "step": 7},
    "generator": lambda weights: {
        "generator": {f"model.{name}": t for name, t in weights.items()},
        "critic": {"w": torch.zeros(3)},
    },
}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Everything that a published file holds, unused buffers included."""
    torch.manual_seed(0)
    held = Transformer(CONFIG.transformer).state_dict()
    return {
        name: torch.randn_like(t) if "pos_embed" in name or "y_embedding" in name else t
        for name, t in held.items()
    }


def write(folder, weights, layout: str, wrap=PICKLES["generator"]):
    """One of the published layouts, or ours, with our small autoencoder."""
    if layout == "streaming":
        (folder / "sana_dit").mkdir(parents=True)
        torch.save(wrap(weights), folder / "sana_dit" / "model.pt")
        write_config(folder, CONFIG, "native")
    elif layout == "sharded":
        write(folder, weights, "diffusers")
        whole = folder / WRITTEN["diffusers"]
        tensors = load_file(whole)
        whole.unlink()
        parts = {
            f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": dict(list(tensors.items())[i::2])
            for i in range(2)
        }
        for name, part in parts.items():
            save_file(part, whole.parent / name)
        index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
        (whole.parent / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    else:
        write_transformer(folder, weights.items(), layout)
        write_config(folder, CONFIG, layout)
    if not (folder / "autoencoder.safetensors").exists():
        torch.manual_seed(1)
        save_file(Autoencoder(AUTOENCODER).state_dict(), folder / "autoencoder.safetensors")
    return folder


@pytest.mark.parametrize(
    "layout", ["world", "native", "diffusers", "sharded", *(f"streaming {wrapping}" for wrapping in PICKLES)]
)
def test_every_layout_opens_and_gives_the_same_weights(tmp_path, weights, layout):
    layout, _, wrapping = layout.partition(" ")
    folder = write(tmp_path / "w", weights, layout, PICKLES.get(wrapping))
    assert open_folder(folder).layout == {"sharded": "diffusers"}.get(layout, layout)
    loaded = load_transformer(folder, read_config(folder)).state_dict()
    read = {name for name in weights if name not in ("pos_embed", "y_embedder.y_embedding")}
    assert set(loaded) == set(weights) and all(torch.equal(loaded[name], weights[name]) for name in read)


def test_a_saved_world_steps_alike_from_every_layout(tmp_path, weights):
    transformer = Transformer(CONFIG.transformer)
    transformer.load_state_dict(weights)
    autoencoder = Autoencoder(AUTOENCODER)
    frames = []
    for layout in WRITTEN:
        save_world(tmp_path / layout, CONFIG, transformer, autoencoder, torch.float32, layout)
        world = WorldModel.load(tmp_path / layout)
        frames.append(world.step(begin(world, 1), poses(0, 1))[0])
    assert frames[0].float().std() > 1
    assert all(torch.equal(frames[0], other) for other in frames[1:])


CHANGES = {
    "missing blocks.1.attn.qkv.weight": lambda held, name: held.pop(name("blocks.1.attn.qkv.weight")),
    "unexpected blocks.1.attn.qkv.wait": lambda held, name: held.update(
        {name("blocks.1.attn.qkv.wait"): torch.zeros(1)}
    ),
    "mis-shaped t_embedder.mlp.2.bias (31,) instead of (32,)": lambda held, name: held.update(
        {name("t_embedder.mlp.2.bias"): torch.zeros(31)}
    ),
    "missing t_block.1.bias; unexpected t_block.1.bais": lambda held, name: held.update(
        {name("t_block.1.bais"): held.pop(name("t_block.1.bias"))}
    ),
}


@pytest.mark.parametrize("said", CHANGES)
@pytest.mark.parametrize("layout", ["native", "diffusers", "streaming"])
def test_a_key_that_does_not_fit_is_named(tmp_path, weights, layout, said):
    changed = dict(weights)
    CHANGES[said](changed, str)
    folder = write(tmp_path / "w", changed, layout)
    with pytest.raises(CheckpointError) as refused:
        load_transformer(folder, read_config(folder))
    assert str(refused.value).endswith(said) and str(open_folder(folder).transformer) in str(refused.value)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    class Harm:
        def __reduce__(self):
            return (pytest.fail, ("a checkpoint ran code",))

    (tmp_path / "sana_dit").mkdir()
    torch.save(
        {"generator": {"model.w": torch.zeros(1)}, "optimizer": Harm()}, tmp_path / "sana_dit" / "model.pt"
    )
    with pytest.raises(
        CheckpointError,
        match=r"model\.pt is damaged or holds more than tensors .* convert it to "
        r"safetensors where you trust it",
    ):
        open_folder(tmp_path).transformer.outline()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_damaged_files_are_named(tmp_path, content):
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            WeightFiles((tmp_path / name,)).outline()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(
        CheckpointError,
        match="holds no state dict; wanted one as it is, under 'state_dict' or under 'generator'",
    ):
        WeightFiles((tmp_path / "list.pt",)).outline()


@pytest.mark.parametrize("layout", ["streaming", "native", "diffusers"])
def test_what_is_missing_is_named_with_the_command_that_gets_it(tmp_path, layout):
    (tmp_path / LAYOUTS[layout].mark).mkdir()
    file = {
        "streaming": "sana_dit/model.pt",
        "native": "dit/*.safetensors",
        "diffusers": "transformer/diffusion_pytorch_model.safetensors",
    }
    with pytest.raises(CheckpointError) as refused:
        open_folder(tmp_path)
    assert f"no {file[layout]}: `sana-wm download {LAYOUTS[layout].home}` gets it" in str(refused.value)
    assert LAYOUTS[layout].home in REPOSITORIES


def test_a_missing_shard_and_a_second_transformer_are_named(tmp_path, weights):
    folder = write(tmp_path / "shards", weights, "sharded")
    (folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"has no diffusion_pytorch_model-00002-of-00002\.safetensors, which .*index\.json lists",
    ):
        open_folder(folder)
    folder = write(tmp_path / "two", weights, "native")
    (folder / "dit" / "other.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"2 transformers: dit/other\.safetensors, dit/transformer\.safetensors; keep one",
    ):
        open_folder(folder)


def test_native_to_diffusers_and_back_is_the_identity(tmp_path, weights):
    native = write(tmp_path / "native", weights, "native")
    convert(open_folder(native), tmp_path / "diffusers", CONFIG, "diffusers")
    theirs = load_file(tmp_path / "diffusers" / WRITTEN["diffusers"])
    assert (
        len(theirs) == len(weights) - 2
        and "t_embedder.linear_1.weight" in theirs
        and "pos_embed" not in theirs
    )
    assert set(load_file(tmp_path / "diffusers" / NATIVE_BUFFERS)) == {"pos_embed", "y_embedder.y_embedding"}
    convert(
        open_folder(tmp_path / "diffusers"), tmp_path / "back", read_config(tmp_path / "diffusers"), "native"
    )
    for name in (WRITTEN["native"], "config.json", "autoencoder.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (native / name).read_bytes()


def test_published_folders_without_our_settings_are_the_published_network(tmp_path):
    for mark in ("dit", "sana_dit", "transformer"):
        (tmp_path / mark / mark).mkdir(parents=True)
        config = read_config(tmp_path / mark)
        assert config.transformer == preset("2.6b") and (config.image_size, config.grid) == (
            (704, 1280),
            (22, 40),
        )
        assert config.first_frames is None
    (tmp_path / "transformer" / "config.json").write_text(
        '{"download_counter": true}'
    )  # another's, as the hub's repositories have
    assert read_config(tmp_path / "transformer").transformer == preset("2.6b")


def test_settings_of_diffusers_are_understood(tmp_path):
    theirs = to_diffusers(preset("2.6b"))
    assert from_diffusers(theirs) == preset("2.6b")
    with pytest.raises(ValueError, match="patch_size is \\[1, 2, 2\\]; only \\[1, 1, 1\\] is supported"):
        from_diffusers({**theirs, "patch_size": [1, 2, 2]})
    del theirs["num_layers"]
    with pytest.raises(ValueError, match="has no 'num_layers'"):
        from_diffusers(theirs)


def test_opening_a_folder_opens_no_connection(tmp_path, weights, monkeypatch):
    folder = write(tmp_path / "w", weights, "streaming")

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    world = WorldModel.load(folder)
    assert world.step(begin(world, 1), poses(0, 1))[0].shape == (1, 24, 16, 24, 3)
    with pytest.raises(
        CheckpointError,
        match=r"huggingface_hub|`sana-wm download Efficient-Large-Model/SANA-WM_streaming` gets it",
    ):
        resolve_world("Efficient-Large-Model/SANA-WM_streaming")
    with pytest.raises(
        CheckpointError, match=r"unknown world 'someone/something'.*as a repository of the hub"
    ):
        resolve_world("someone/something")


def test_a_downloaded_repository_is_found_by_its_revision(tmp_path, weights, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--someone--something"
    (home / "refs").mkdir(parents=True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs" / "main").write_text(commit)
    folder = write(home / "snapshots" / commit, weights, "native")
    assert resolve_world("someone/something") == resolve_world(f"someone/something@{commit}") == folder
    with pytest.raises(CheckpointError, match="`sana-wm download someone/something@v2` gets it"):
        resolve_world("someone/something@v2")


def test_ids_are_read_with_and_without_a_revision():
    assert parse_id("a/b") == ("a/b", "main") and parse_id("a/b-c_d.e@refs/pr/2") == (
        "a/b-c_d.e",
        "refs/pr/2",
    )
    with pytest.raises(CheckpointError, match="wanted a repository as owner/name"):
        parse_id("rooms")


def test_names_of_both_kinds_become_native():
    assert (
        native_name("t_embedder.linear_2.bias")
        == native_name("t_embedder.mlp.2.bias")
        == "t_embedder.mlp.2.bias"
    )
    assert native_name("blocks.0.attn.proj.bias") == "blocks.0.attn.proj.bias"


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("sana_dit/model.pt", "streaming"),
        ("dit/sana_wm_1600m_720p.safetensors", "bidirectional"),
        ("dit/sana_wm_chunk_causal_1600m_720p.safetensors", "chunk_causal"),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", "bidirectional"),
    ],
)
def test_a_published_checkpoint_is_of_one_variant(tmp_path, file, variant):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).touch()
    config = read_config(tmp_path)
    assert config.variants == (variant,) and config.transformer == preset("2.6b")
    with pytest.raises(CheckpointError, match=f"has no variant '.*'; it has {variant}"):
        (WorldModel if variant == "bidirectional" else ClipModel).load(tmp_path)
