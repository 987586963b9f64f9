"""The three execution rules are one network."""

import pytest
import torch
from tiny_networks import clip, tiny_network
from torch import Tensor

from sana_wm_env.model.network.execution import chunk_sizes, chunk_spans
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.state import TransformerState
from sana_wm_env.model.tree import tensors_of

LEVEL = 727.0


def contexts(
    network: Transformer, given: dict[str, Tensor], start: int = 0, stop: int | None = None, first_frame=None
):
    frames = slice(start, stop)
    first = start if first_frame is None else first_frame
    return network.text_context(given["text"], given["mask"]), network.camera_context(
        given["camera"][:, frames], given["plucker"][:, :, frames], first
    )


def stream(network: Transformer, given: dict[str, Tensor]) -> tuple[list[Tensor], list[TransformerState]]:
    """Velocity of every chunk at one level on top of clean earlier chunks, and the states."""
    velocities, states, state = [], [], None
    for start, stop in chunk_spans(given["x"].shape[2], network.config.chunk):
        text, cameras = contexts(network, given, start, stop)
        x = given["x"][:, :, start:stop]
        t = torch.full((x.shape[0], stop - start), LEVEL)
        velocities.append(network.stream(x, t, text, cameras, state))
        state = network.commit(x, text, cameras, state)
        states.append(state)
    return velocities, states


def test_chunks_of_a_clip():
    assert [chunk_sizes(t) for t in (1, 4, 7, 13, 8, 9)] == [(1,), (4,), (4, 3), (4, 3, 3, 3), (4, 4), (4, 5)]
    assert chunk_spans(10) == ((0, 4), (4, 7), (7, 10))


@pytest.mark.parametrize(
    ("frames", "changes"), [(13, {}), (8, {}), (6, {"chunk": 1}), (10, {"cam_rms_clamp": "all"})]
)
@torch.no_grad()
def test_streaming_with_everything_cached_equals_the_chunk_causal_forward(frames, changes):
    network = tiny_network(num_cached_blocks=-1, **changes)
    given = clip(frames, batch=2)
    text, cameras = contexts(network, given)
    velocities, _ = stream(network, given)
    for (start, stop), velocity in zip(chunk_spans(frames, network.config.chunk), velocities, strict=True):
        t = torch.zeros(2, frames)
        t[:, start:stop] = LEVEL
        whole = network(given["x"], t, text, cameras, "chunk_causal")
        assert (whole[:, :, start:stop] - velocity).abs().max() < 1e-5


@torch.no_grad()
def test_the_first_chunk_equals_the_bidirectional_forward(network):
    given = clip(4, batch=2)
    text, cameras = contexts(network, given)
    t = torch.tensor([[0.0, 960, 960, 960], [0.0, 889, 889, 889]])
    whole = network(given["x"], t, text, cameras)
    assert (whole - network.stream(given["x"], t, text, cameras, None)).abs().max() < 1e-12


@torch.no_grad()
def test_chunk_causal_sees_no_later_chunk_and_bidirectional_does(network):
    given = clip(10)
    text, cameras = contexts(network, given)
    t = torch.full((1, 10), LEVEL)
    changed = given["x"].clone()
    changed[:, :, 7:] += 1
    causal = [network(x, t, text, cameras, "chunk_causal") for x in (given["x"], changed)]
    both_ways = [network(x, t, text, cameras) for x in (given["x"], changed)]
    assert torch.equal(causal[0][:, :, :7], causal[1][:, :, :7])
    assert (both_ways[0][:, :, :7] - both_ways[1][:, :, :7]).abs().max() > 1e-3


@torch.no_grad()
def test_the_window_is_the_first_chunk_and_the_previous_one(network):
    given = clip(16)
    _, states = stream(network, given)
    windows = [state.blocks[3].attention.entries for state in states]
    assert [len(w) for w in windows] == [1, 2, 2, 2, 2]
    assert windows[4][0] is windows[0][0]  # shared, not copied
    assert windows[4][0].key.shape[2] == 4 * 6 and windows[4][1].key.shape[2] == 3 * 6
    assert windows[4][1] is not windows[3][1]


@torch.no_grad()
@pytest.mark.parametrize(("sinks", "kept"), [(2, [0, 1, 4]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_a_window_keeps_as_many_of_the_first_chunks_as_it_is_told(sinks, kept):
    _, states = stream(tiny_network(num_cached_blocks=3, num_sink_blocks=sinks), clip(16))
    windows = [state.blocks[3].attention.entries for state in states]
    assert [len(window) for window in windows] == [1, 2, 3, 3, 3]
    newest = {index: window[-1] for index, window in enumerate(windows[:3])}
    for place, index in enumerate(kept):
        if index in newest:
            assert windows[4][place] is newest[index]
        else:
            assert all(windows[4][place] is not entry for entry in windows[3])


@torch.no_grad()
def test_a_state_is_as_large_after_200_chunks_as_after_two():
    network = tiny_network(torch.float32, depth=4, width=16, heads=1)
    given = clip(7, dtype=torch.float32)
    text, opening = contexts(network, given, 0, 4)
    state, sizes = network.commit(given["x"][:, :, :4], text, opening, None), []
    for _ in range(200):
        _, cameras = contexts(network, given, 4, 7, first_frame=state.next_frame)
        state = network.commit(given["x"][:, :, 4:], text, cameras, state)
        sizes.append(state.nbytes)
    assert len(set(sizes)) == 1
    assert state.next_frame.tolist() == [4 + 3 * 200]
    assert all(t.isfinite().all() for t in tensors_of(state))
    assert (
        sum(t.untyped_storage().nbytes() for t in tensors_of(state)) <= 1.01 * state.nbytes
    )  # nothing larger is kept alive


@torch.no_grad()
def test_slots_of_a_batch_are_independent_and_may_stand_at_different_frames(network):
    """A shift of the time origin changes nothing, because positions meet only as differences."""
    given = clip(7, batch=2)
    text, early = contexts(network, given, 0, 4)
    _, late = contexts(network, given, 0, 4, first_frame=torch.tensor([0, 5000]))
    x, t = given["x"][:, :, :4], torch.full((2, 4), LEVEL)
    assert (
        network.stream(x, t, text, early, None) - network.stream(x, t, text, late, None)
    ).abs().max() < 1e-9
    state = network.commit(x, text, late, None)
    alone = network.commit(x[1:], *(c.map(lambda v: v[1:]) for c in (text, late)), None)
    row = state.map(lambda v: v[1:])
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(tensors_of(row), tensors_of(alone), strict=True)
    )


def test_matrices_are_float32_whatever_the_weights_are():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        network = tiny_network(dtype)
        given = {key: t.to(dtype) if key in ("x", "text") else t for key, t in clip(4).items()}
        text, cameras = contexts(network, given)
        with torch.no_grad():
            state = network.commit(given["x"], text, cameras, None)
        delta = state.blocks[0].attention
        assert {delta.matrix.dtype, delta.normaliser.dtype, delta.camera_matrix.dtype} == {torch.float32}
        assert delta.conv_tail.dtype == state.blocks[0].ffn_tail.dtype == dtype


def test_gradients_pass_through_stream_and_commit(network):
    given = clip(7)
    text, opening = contexts(network, given, 0, 4)
    state = network.commit(given["x"][:, :, :4], text, opening, None)
    _, cameras = contexts(network, given, 4, 7)
    x = given["x"][:, :, 4:].requires_grad_()
    network.stream(x, torch.full((1, 3), LEVEL), text, cameras, state.detach()).square().mean().backward()
    assert x.grad.abs().max() > 0
    assert network.blocks[0].attn.qkv.weight.grad.abs().max() > 0


def test_sizes_that_do_not_fit_are_refused(network):
    given = clip(7)
    text, cameras = contexts(network, given)
    with pytest.raises(
        ValueError, match=r"the latent has \(T, H, W\) = \(4, 2, 3\), the cameras have \(7, 2, 3\)"
    ):
        network(given["x"][:, :, :4], torch.zeros(1, 4), text, cameras)
    with pytest.raises(ValueError, match="rule is 'causal'"):
        network(given["x"], torch.zeros(1, 7), text, cameras, "causal")
