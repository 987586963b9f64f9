"""One validator for what a page says, and the packing of frames."""

import io
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sana_wm_env.play.messages import (
    KINDS,
    LONGEST,
    encode_picture,
    encode_thumbnail,
    pack_frame,
    read_message,
    unpack_frame,
)

CONTROL = {
    "kind": "control",
    "seq": 1,
    "at": 12.5,
    "held": ["w"],
    "tapped": [],
    "look": [0, 1.5],
    "axes": [0, 0, 0.5, -1],
    "showing": 0,
}
GOOD = [
    CONTROL,
    {"kind": "release", "seq": 2, "at": 1},
    {"kind": "begun", "epoch": 1, "chunk": 3},
    {"kind": "ended", "epoch": 1, "chunk": 3},
    {"kind": "start", "room": 3, "seed": None, "prompt": "a red room"},
    {"kind": "start", "room": "held-out", "seed": 2**62, "prompt": None},
    {"kind": "go", "moment": 0},
    {"kind": "futures", "by": "noises"},
    {"kind": "pick", "future": None},
    {"kind": "agent", "name": "cem"},
    {"kind": "set", "name": "flow", "on": True},
    {"kind": "record", "on": False},
    {"kind": "export"},
]


@pytest.mark.parametrize("message", GOOD, ids=lambda message: message["kind"])
def test_good_messages_come_through(message):
    assert read_message(json.dumps(message)) == message
    assert message["kind"] in KINDS


def test_every_kind_is_among_the_good_ones():
    assert {message["kind"] for message in GOOD} == set(KINDS)


@pytest.mark.parametrize(
    "field, value",
    [
        ("seq", 0),
        ("seq", True),
        ("seq", 1.5),
        ("seq", 2**60),
        ("at", float("nan")),
        ("at", "now"),
        ("held", ["x"]),
        ("held", ["w"] * 9),
        ("held", "w"),
        ("held", [["w"]]),
        ("look", [1]),
        ("look", [0, float("inf")]),
        ("axes", [0, 0, 0, 1.01]),
        ("axes", [0, 0, 0]),
        ("axes", None),
        ("showing", -1),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        read_message(json.dumps(CONTROL | {field: value}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"go"',
        '{"kind": "quit"}',
        '{"kind": ["go"]}',
        '{"kind": "go"}',
        '{"kind": "go", "moment": 1, "more": 2}',
        '{"kind": "go", "moment": 1e400}',
        "[" * 2000,
        '{"kind": "go", "moment": 1' + "0" * 5000 + "}",
        json.dumps({"kind": "start", "room": 0, "seed": 1, "prompt": "x" * 1001}),
        json.dumps({"kind": "agent", "name": "__class__"}),
        json.dumps({"kind": "set", "name": "env", "on": True}),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError, match="got") as caught:
        read_message(text)
    assert len(str(caught.value)) < 400


def test_a_long_message_is_refused_unread():
    with pytest.raises(ValueError, match=str(LONGEST)):
        read_message(json.dumps(CONTROL) + " " * LONGEST)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(GOOD), st.data())
def test_whatever_stands_in_a_field_is_right_or_refused(message, data):
    fields = [name for name in message if name != "kind"]
    if fields:
        message = message | {data.draw(st.sampled_from(fields)): data.draw(plain)}
    with suppress(ValueError):
        assert read_message(json.dumps(message))["kind"] == message["kind"]


@given(st.text(max_size=200) | plain.map(json.dumps))
def test_any_text_is_read_or_refused(text):
    with suppress(ValueError):
        assert read_message(text)["kind"] in KINDS


def test_frames_come_out_as_they_went_in():
    pose = np.vstack([np.arange(12).reshape(3, 4) / 8, [0, 0, 0, 1]])
    data = pack_frame(0, 7, 2**31, 1, 23, pose, [b"one", b"", b"three"])
    numbers, read, pictures = unpack_frame(data)
    assert numbers == {"stream": 0, "take": 1, "frame": 23, "epoch": 7, "chunk": 2**31}
    assert np.array_equal(read, pose) and pictures == [b"one", b"", b"three"]


def test_small_pictures_lose_nothing_and_large_ones_are_small():
    def decode(data):
        return np.asarray(Image.open(io.BytesIO(data)))

    small = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    assert np.array_equal(decode(encode_picture(small)), small)
    large = np.tile(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], (360, 1, 3))
    encoded = encode_picture(large)
    assert encoded[:2] == b"\xff\xd8" and len(encoded) < large.nbytes / 20
    assert decode(encode_thumbnail(large)).shape[0] < 192
