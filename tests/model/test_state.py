"""Session states: rows, branches, files, and the origin of time; with a tiny untrained world."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_networks import clip, paths, tiny_config, tiny_network

from sana_wm_env.model.codecs.autoencoder import Autoencoder, AutoencoderConfig
from sana_wm_env.model.codecs.text import TextEncoder, TextEncoderConfig
from sana_wm_env.model.config import WorldConfig
from sana_wm_env.model.network.execution import chunk_spans
from sana_wm_env.model.network.time_origin import shift_time
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.state import WorldState, concatenate
from sana_wm_env.model.tree import tensors_of
from sana_wm_env.model.world import WorldModel

AUTOENCODER = AutoencoderConfig(latent_channels=4, fine=8, coarse=8, encoder_blocks=1, decoder_blocks=1)
TEXT = TextEncoderConfig(width=6, tokens=5)


def tiny_world(name: str = "tiny") -> WorldModel:
    config = WorldConfig(name, tiny_config(), asdict(AUTOENCODER), asdict(TEXT), (16, 24), (2, 3))
    torch.manual_seed(0)
    transformer = Transformer(config.transformer)
    for block in transformer.blocks:  # what starts at zero in training
        torch.nn.init.normal_(block.attn.out_proj_cam.weight, std=0.1)
        torch.nn.init.normal_(block.plucker_proj.weight, std=0.1)
    return WorldModel(config, transformer, Autoencoder(AUTOENCODER), TextEncoder(TEXT))


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return tiny_world()


def begin(world: WorldModel, batch: int) -> WorldState:
    images = torch.randint(
        256, (batch, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
    intrinsics = torch.tensor([[20.0, 20.0, 12.0, 8.0]]).repeat(batch, 1)
    return world.start(
        images, intrinsics, ["a red room"] * batch, [torch.Generator().manual_seed(i) for i in range(batch)]
    )


def go_on(world: WorldModel, state: WorldState, chunks: int = 1) -> tuple[torch.Tensor, WorldState]:
    path = paths(25)[:, 1:]  # the same for every row
    frames = []
    for _ in range(chunks):
        new, state = world.step(state, state.c2w[:, None] @ path)
        frames.append(new)
    return torch.cat(frames, 1), state


def same(one: WorldState, other: WorldState) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


# ---- rows


def test_rows_are_views_and_join_again_without_a_copy(world):
    _, state = go_on(world, begin(world, 3))
    rows = [state[i] for i in range(3)]
    assert [len(row) for row in rows] == [1, 1, 1] and same(rows[-1], state[-1])
    joined = concatenate(rows)
    assert same(joined, state)
    assert all(
        a.data_ptr() == b.data_ptr() for a, b in zip(tensors_of(joined), tensors_of(state), strict=True)
    )
    mixed = concatenate([rows[2], rows[0]])
    assert same(mixed, state[[2, 0]])
    assert not {t.data_ptr() for t in tensors_of(mixed)} & {t.data_ptr() for t in tensors_of(state)}
    assert same(concatenate([state[:2], rows[2]]), state)
    with pytest.raises(IndexError):
        state[3]


def test_sessions_of_different_age_share_a_batch_when_their_windows_are_full(world):
    _, old = go_on(world, begin(world, 1), 4)
    _, young = go_on(world, begin(world, 2)[1], 2)
    both = concatenate([old, young])
    assert both.chunk_index.tolist() == [4, 2] and both.transformer.next_frame.tolist() == [13, 7]
    together, after = go_on(world, both)
    for row, state in enumerate((old, young)):
        alone, next_state = go_on(world, state)
        assert (together[row].int() - alone[0].int()).abs().max() <= 1
        assert torch.equal(after[row].c2w, next_state.c2w) and torch.equal(
            after[row].generators, next_state.generators
        )
    with pytest.raises(ValueError, match=r"after \[\[4\], \[0\]\] chunks"):
        concatenate([old, begin(world, 1)])
    with pytest.raises(ValueError, match="of one world"):
        concatenate([old, replace(young, world="elsewhere")])


def test_a_branch_copies_nothing_and_the_sink_stays_shared(world):
    _, state = go_on(world, begin(world, 1), 3)
    assert state.nbytes_shared == 0
    branches = state.expand(8)
    assert branches.nbytes == 8 * state.nbytes and branches.nbytes_shared == 7 * state.nbytes
    _, after = go_on(world, branches, 2)
    sink = next(
        b.attention.entries[0].key for b in after.transformer.blocks if hasattr(b.attention, "entries")
    )
    assert sink.stride(0) == 0
    assert 7 * sink[0].nbytes < after.nbytes_shared < 7 * state.nbytes
    first, _ = go_on(world, state)
    assert (go_on(world, branches)[0].int() - first.int()).abs().max() <= 1  # common noise
    for sessions, n in ((branches, 2), (state, 0)):
        with pytest.raises(ValueError, match="wanted one session"):
            sessions.expand(n)


def test_a_detached_row_does_not_keep_its_batch(world):
    _, state = go_on(world, begin(world, 3), 2)
    row = state[1]
    assert sum(t.untyped_storage().nbytes() for t in tensors_of(row)) > 2 * row.nbytes
    alone = row.detached()
    assert same(alone, row) and sum(t.untyped_storage().nbytes() for t in tensors_of(alone)) == alone.nbytes


def test_states_keep_nothing_larger_alive_and_lie_as_a_file_gives_them_back(world):
    _, state = go_on(world, begin(world, 2), 3)
    assert sum(t.untyped_storage().nbytes() for t in tensors_of(state)) <= 1.01 * state.nbytes
    assert all(t.is_contiguous() for t in tensors_of(state))


# ---- files


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_a_file_gives_the_state_back_to_the_byte(world, tmp_path, chunks):
    state = begin(world, 2)
    if chunks:
        _, state = go_on(world, state, chunks)
    state = replace(state, task={"goal_c2w": torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)})
    state.save(tmp_path / "state.safetensors")
    loaded = world.accept(WorldState.load(tmp_path / "state.safetensors"))
    assert (
        same(loaded, state)
        and loaded.layout == state.layout
        and list(tmp_path.iterdir()) == [tmp_path / "state.safetensors"]
    )
    one, end = go_on(world, state)
    two, again = go_on(world, loaded)
    assert torch.equal(one, two) and same(end, again)


def stored(path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {
            name: t.clone() for name, t in load_file(path).items()
        }, file.metadata()  # clones: the file is about to be overwritten


def test_files_that_are_no_state_of_this_version_are_refused(world, tmp_path):
    path = tmp_path / "state.safetensors"
    _, state = go_on(world, begin(world, 1))
    state.save(path)
    whole = path.read_bytes()
    tensors, header = stored(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        WorldState.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"format None; wanted 'sana-wm-state'"):
        WorldState.load(path)
    for version in ("0", "4"):
        save_file(tensors, path, header | {"version": version})
        with pytest.raises(ValueError, match=f"in version {version} of the state format; .* reads 1, 2, 3"):
            WorldState.load(path)
    old = json.loads(header["structure"])  # the first version has no checksum, and nothing was observed
    del old["WorldState"]["observed"]
    before = {name: value for name, value in tensors.items() if name != ".observed"}
    about = {name: header[name] for name in header if name != "sha256"}
    save_file(before, path, about | {"version": "1", "structure": json.dumps(old)})
    loaded = WorldState.load(path)
    assert torch.equal(loaded.c2w, state.c2w) and loaded.observed.tolist() == [0]
    changed = tensors | {".c2w": tensors[".c2w"] + 0}
    changed[".c2w"][0, 0, 3] += 1
    save_file(changed, path, header)
    with pytest.raises(ValueError, match=r"was changed after it was saved"):
        WorldState.load(path)
    header |= {"version": "1", "structure": json.dumps(old)}  # for what a checksum does not notice
    del tensors[".c2w"]
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match=r"do not fit .*\.c2w"):
        WorldState.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        WorldState.load(tmp_path / "nowhere")


def test_a_save_that_fails_leaves_the_file_before(world, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    begin(world, 1).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "sana_wm_env.model.state.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        begin(world, 2).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_another_world_is_refused_with_both_named(world):
    state = begin(world, 1)
    with pytest.raises(ValueError, match=r"world 'tiny' with weights \w{12}; this is 'other'"):
        tiny_world("other").accept(state)
    trained = tiny_world()
    assert trained.fingerprint == world.fingerprint
    trained = tiny_world()
    trained.transformer.final_layer.linear.weight.mul_(1.001)
    with pytest.raises(ValueError, match="this is 'tiny' with weights"):
        trained.accept(state)


# ---- the origin of time


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"cam_rms_clamp": "all", "width": 64}])
def test_a_shift_of_time_changes_nothing_that_is_imagined(changes):
    network = tiny_network(torch.float64, **changes)
    given = clip(19, batch=2)
    text = network.text_context(given["text"], given["mask"])

    def play(shift_at: int | None) -> tuple[torch.Tensor, object]:
        velocities, state = [], None
        for index, (start, stop) in enumerate(chunk_spans(19)):
            if index == shift_at:
                state = shift_time(state, torch.tensor([7, -1030]))
            first = 0 if state is None else state.next_frame
            cameras = network.camera_context(
                given["camera"][:, start:stop], given["plucker"][:, :, start:stop], first
            )
            x, t = given["x"][:, :, start:stop], torch.full((2, stop - start), 727.0)
            velocities.append(network.stream(x, t, text, cameras, state))
            state = network.commit(x, text, cameras, state)
        return torch.cat(velocities, 2), state

    (plain, before), (shifted, after) = play(None), play(3)
    # the tables are float64, the carried matrices float32
    assert (plain - shifted).abs().max() < 2e-6 * plain.abs().max()
    assert after.next_frame.tolist() == [19 - 7, 19 + 1030]
    back = shift_time(after, torch.tensor([-7, 1030]))
    assert all(
        torch.allclose(a, b, atol=1e-5, rtol=1e-4)
        for a, b in zip(tensors_of(back), tensors_of(before), strict=True)
    )
    wrong = shift_time(before, 3)
    assert (
        wrong.blocks[0].attention.matrix - before.blocks[0].attention.matrix
    ).abs().max() > 1e-3  # it does turn
