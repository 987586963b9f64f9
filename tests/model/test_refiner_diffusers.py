"""The refiner against diffusers' own modules, on the same random weights: one block, the network, whole
sessions, and the connectors behind Gemma-3.
"""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_gemma import WORDS, write_tiny_gemma
from tiny_refiners import GRID, SIZES, random_latents

from sana_wm_env.model.codecs.gemma3 import Gemma3TextEncoder
from sana_wm_env.model.codecs.refiner import find_refiner, is_sound, open_refiner
from sana_wm_env.model.network.refiner import RefinerConfig, RefinerNetwork
from sana_wm_env.model.refiner import Refiner
from sana_wm_env.model.storage.weights import CheckpointError

pytest.importorskip("diffusers", minversion="0.42.1")
pytest.importorskip("transformers")

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.sana_wm.refiner import SanaWMLTX2Refiner

SOUND = {
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}
TEXT = torch.randn(1, 7, SIZES["caption_channels"], generator=torch.Generator().manual_seed(5))


class Given:
    """An encoder that knows one prompt."""

    def encode(self, prompts):
        return TEXT, torch.ones(1, 7, dtype=torch.bool)


def pair(**settings):
    """Their network and ours."""
    settings = SIZES | {"out_channels": SIZES["in_channels"], "cross_attention_dim": 32} | SOUND | settings
    torch.manual_seed(0)
    theirs = SanaWMLTX2RefinerTransformer3DModel(**settings).eval()
    ours = RefinerNetwork(RefinerConfig.from_settings(settings)).eval()
    weights = {name: t for name, t in theirs.state_dict().items() if not is_sound(name)}
    ours.load_state_dict(weights)
    return theirs, ours


@pytest.mark.parametrize("rope_type", ["interleaved", "split"])
@torch.no_grad()
def test_names_and_velocities_are_theirs(rope_type):
    theirs, ours = pair(rope_type=rope_type)
    x, mask = random_latents(3, batch=2), torch.tensor([[True] * 3 + [False] * 4, [True] * 7])
    text, places = TEXT.expand(2, -1, -1), [4, 5, 6]
    window = ours.rotate_to(places, GRID, torch.device("cpu"))
    found, _ = ours(x, torch.tensor([0.5, 0.5]), ours.read_text(text), mask, window)
    turned = theirs.build_rotary_emb_for_absolute_positions(2, places, *GRID, torch.device("cpu"), 16.0)
    wanted = theirs(
        hidden_states=x.flatten(2).mT,
        encoder_hidden_states=text,
        timestep=torch.full((2, x[0, 0].numel()), 500.0),
        video_rotary_emb=turned,
        encoder_attention_mask=mask.long(),
        return_dict=False,
    )[0]
    assert (found.flatten(2).mT - wanted).abs().max() < 1e-5

    block, own = theirs.transformer_blocks[1], ours.transformer_blocks[1]
    x, modulation = torch.randn(2, 18, 32), torch.randn(2, 6, 32)
    mine, _ = own(x, modulation, ours.read_text(text), torch.zeros(2, 1, 1, 7), window, None)
    each = modulation[:, None].expand(-1, 18, -1, -1).flatten(2)
    other = block(x, theirs.caption_projection(text), each, turned)
    assert (mine - other).abs().max() < 1e-5


@pytest.mark.parametrize(("frames", "rope_type"), [(10, "split"), (22, "interleaved")])
@torch.no_grad()
def test_whole_sessions_are_theirs(frames, rope_type):
    """Their pipeline refines a clip block by block; from the fifth block on frames leave the window."""
    # angles of absolute places are rounded to float32: fast ones would differ by that, see README 10.3
    theirs, ours = pair(rope_type=rope_type, rope_theta=100.0)

    class Session(SanaWMLTX2Refiner):
        def _encode_prompt(self, prompt, *, device, dtype):
            return TEXT, torch.ones(1, 7, dtype=torch.long)

    parts = {"connectors": None, "tokenizer": None, "text_encoder": None}
    session = Session(theirs, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), **parts)
    session.set_progress_bar_config(disable=True)
    latents = random_latents(frames)
    wanted = session(latents, "", fps=16.0, output_type="latent")
    refiner = Refiner(ours, Given())
    state, refined = refiner.start(latents[:, :, :1], [""]), []
    for block in latents[:, :, 1:].split(3, 2):
        new, remember = refiner.refine(block, state)
        refined.append(new)
        state = remember()
    assert (torch.cat(refined, 2) - wanted[:, :, 1:]).abs().max() < 1e-5


# ---- prompts

WIDTH = 12


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny checkpoint as published: refiner, connectors and Gemma-3."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    folder = tmp_path_factory.mktemp("published") / "refiner"
    theirs, _ = pair(caption_channels=WIDTH)
    theirs.save_pretrained(folder / "transformer", max_shard_size="100KB")
    heads = {"video_connector_num_attention_heads": 2, "video_connector_attention_head_dim": 6}
    heads |= {"audio_connector_num_attention_heads": 2, "audio_connector_attention_head_dim": 6}
    more = {"video_connector_num_learnable_registers": 4, "audio_connector_num_learnable_registers": 4}
    torch.manual_seed(1)
    LTX2TextConnectors(caption_channels=WIDTH, text_proj_in_factor=3, **heads, **more).save_pretrained(
        folder / "connectors"
    )
    write_tiny_gemma(folder / "text_encoder")  # for its tokenizer
    sizes = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 6}
    Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=4 + len(WORDS), num_attention_heads=2, num_key_value_heads=1, **sizes, pad_token_id=0
        )
    ).save_pretrained(folder / "text_encoder")
    return folder


@torch.no_grad()
def test_prompts_are_read_as_theirs_and_kept_on_disk(published, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    options = {"dtype": torch.float32, "cache": tmp_path}
    encoder = Gemma3TextEncoder(published / "text_encoder", published / "connectors", tokens=8, **options)
    features, mask = encoder.encode([" a red box "])
    gemma = AutoModel.from_pretrained(published / "text_encoder", dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(published / "text_encoder")(
        "a red box", padding="max_length", padding_side="left", max_length=8, return_tensors="pt"
    )
    hidden = gemma(**words, output_hidden_states=True).hidden_states
    theirs = LTX2TextConnectors.from_pretrained(published / "connectors").eval()
    wanted, _, wanted_mask = theirs(torch.stack(hidden, -1), words.attention_mask)
    assert (features - wanted).abs().max() < 1e-5
    assert torch.equal(mask, wanted_mask.bool())

    encoder.release()
    again = Gemma3TextEncoder(published / "text_encoder", published / "connectors", tokens=8, **options)
    assert torch.equal(again.encode(["a red box"])[0], features)
    assert again._loaded is None  # neither Gemma nor the connectors were read


def test_a_published_refiner_opens_from_its_shards(published, tmp_path):
    files = find_refiner(tmp_path, published)
    assert len(files.weights.files) > 1
    refiner = open_refiner(files, Given(), torch.float32, "cpu", "cpu")
    assert isinstance(refiner.text_encoder, Gemma3TextEncoder)
    shards = sorted((published / "transformer").glob("*.safetensors"))
    copy = tmp_path / "copy"
    (copy / "transformer").mkdir(parents=True)
    for file in (published / "transformer").iterdir():
        if file != shards[0]:
            (copy / "transformer" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=shards[0].name):
        find_refiner(tmp_path, copy)
    save_file({}, copy / "transformer" / shards[0].name)
    with pytest.raises(CheckpointError, match="missing"):
        open_refiner(find_refiner(tmp_path, copy), Given(), torch.float32, "cpu", "cpu")


def test_newer_connectors_are_refused(published, tmp_path):
    settings = json.loads((published / "connectors" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"per_modality_projections": True}))
    encoder = Gemma3TextEncoder(published / "text_encoder", tmp_path, tokens=8, cache=tmp_path)
    with pytest.raises(CheckpointError, match=r"LTX-2\.3"):
        encoder.encode(["a"])
