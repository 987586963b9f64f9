"""Poses, velocities and key strings as users give them: taken for what they are, or refused with the
place.
"""

import time

import numpy as np
import pytest
import tally
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sana_wm_env import camera
from sana_wm_env.camera import check_poses, twist, twist_path
from sana_wm_env.keys import MAX_FRAMES, keys_to_path, parse_keys, segments

PATH = twist_path([0.1, 0, 0.5, 0, 0.4, 0], 12)
CONVERTERS = [
    camera.from_w2c, camera.to_w2c, camera.from_opengl, camera.to_opengl, camera.from_unreal_cm,
    camera.to_unreal_cm, camera.relative_to_first, camera.step_twists, check_poses, camera.path_twist,
]  # fmt: skip


def at(index: tuple[int, ...], value: float) -> np.ndarray:
    poses = PATH.copy()
    poses[index] = value
    return poses


BAD = {
    "None": (None, "type NoneType"),
    "text": ("poses", "type str"),
    "a number": (1.0, r"shape \(\)"),
    "NaN": (float("nan"), "with NaN or infinity$"),
    "one pose": (PATH[0], r"one pose; .*\[None\]"),
    "poses of a batch": (PATH[None], r"shape \(1, 12, 4, 4\)"),
    "no poses": (PATH[:0], r"shape \(0, 4, 4\)"),
    "a row is missing": (PATH[:, :3], "append the row 0 0 0 1"),
    "quaternions": (np.zeros((12, 7)), r"shape \(12, 7\)"),
    "complex": (PATH.astype(complex), "complex128"),
    "bool": (PATH.astype(bool), "dtype bool"),
    "texts": (PATH.astype(str), "<U"),
    "objects": (PATH.astype(object), "object"),
    "masked": (np.ma.MaskedArray(PATH), "MaskedArray"),
    "a list with None": ([*PATH[:3].tolist(), None], "holds NoneType"),
    "a list with text": ([[["1", 0, 0, 0]] * 4], "holds str"),
    "ragged": ([PATH[0].tolist(), [1]], "no array; wanted"),
    "meta": (torch.zeros(3, 4, 4, device="meta"), "type Tensor"),
    "NaN in a place": (at((7, 1, 3), np.nan), r"NaN or infinity at index \(7, 1, 3\)"),
    "infinity": (at((7, 1, 3), -np.inf), r"at index \(7, 1, 3\)"),
    "far away": (at((7, 1, 3), 1e200), r"\[7\].*no camera is so far"),
    "overflowing rotation": (at((3, 0, 0), 1e200), r"\[3\]"),
    "transposed": (PATH.mT, r"\[0\].*transposed"),
    "scaled": (PATH * [[2, 2, 2, 1]] * [[1], [1], [1], [1]], "scaled by 2"),
    "mirrored": (PATH @ np.diag([1, -1, 1, 1.0]), "mirrored"),
    "sheared": (at((5, 0, 1), 0.4), r"\[5\].*not orthonormal"),
    "projection": (at((4, 3, 2), 1), r"\[4\].*last row"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("convert", CONVERTERS, ids=lambda function: function.__name__)
def test_poses_that_are_none_are_refused_with_the_place(convert, kind):
    poses, said = BAD[kind]
    with pytest.raises(ValueError, match=rf"(?s)got .*{said}"), np.errstate(all="raise"):
        convert(poses)


def test_poses_of_any_real_kind_are_taken():
    for same in (PATH, PATH.tolist(), list(PATH), np.float32(PATH), torch.from_numpy(PATH).requires_grad_()):
        assert np.allclose(check_poses(same), PATH, atol=1e-6)
    assert check_poses(np.eye(4, dtype=int)[None]).dtype == np.float64


def test_many_poses_are_checked_in_no_time_and_the_first_bad_one_is_named():
    many = np.tile(np.eye(4), (200_000, 1, 1))
    many[123_456, 0, 0] = many[150_000, 0, 0] = 2
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"poses\[123456\]"):
        check_poses(many)
    assert time.perf_counter() - began < 5


KEYS = {
    "None": (None, "type NoneType"),
    "bytes": (b"w-3", "type bytes"),
    "a list": (["w-3"], "type list"),
    "a number": (3, "type int"),
    "nothing": ("", "segment ''"),
    "too many": ("w-9999999999", "more than 100000 frames with the segment 'w-9999999999'"),
    "far too many": ("w-" + "9" * 100_000, "more than 100000 frames"),
    "too many in all": (",".join(["w-1000"] * 101), "more than 100000 frames"),
    "none": ("w-0", "segment 'w-0'"),
    "zeros": ("w-000", "segment 'w-000'"),
    "negative": ("w--3", "segment 'w--3'"),
    "a fraction": ("w-1.5", "segment 'w-1.5'"),
    "exponent": ("w-1e3", "segment 'w-1e3'"),
    "other digits": ("w-٣", "segment"),
    "superscript": ("w-³", "segment"),
    "unknown key": ("q-3", "key 'q'"),
    "capital": ("W-3", "key 'W'"),
    "no count": ("w", "segment 'w'"),
    "no keys": ("-3", "segment '-3'"),
    "a hole": ("w-3,,d-3", "segment ''"),
    "long rubbish": ("x" * 10**6, "segment 'xxx"),
    "unprintable rubbish": ("\U00018d09" * 60, "segment"),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("scheme", ["sana-v1", "sana-v2"])
def test_key_strings_that_are_none_are_refused(kind, scheme):
    text, said = KEYS[kind]
    began = time.perf_counter()
    with pytest.raises(ValueError, match=said) as caught:
        keys_to_path(text, scheme)
    assert time.perf_counter() - began < 1 and len(str(caught.value)) < 400


@pytest.mark.parametrize("scheme", [None, "", "sana", ["sana-v1"], {}, 1])
def test_schemes_that_are_none_are_refused(scheme):
    with pytest.raises(ValueError, match="got the key scheme"):
        keys_to_path("w-3", scheme)


def test_the_longest_string():
    assert len(parse_keys(f"w-{MAX_FRAMES}", "sana-v1")) == MAX_FRAMES
    assert segments("w-0003") == [("w", 3)]


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(),
    st.lists(st.one_of(st.floats(), st.text(), st.none(), st.booleans()), max_size=6),
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)),
    hnp.arrays(st.sampled_from(["f8", "c16", "U2", "?"]), st.sampled_from([(2, 4, 4), (2, 3, 4)])),
)  # fmt: skip


def try_poses(poses) -> None:
    try:
        given_ = check_poses(poses)
    except ValueError as error:
        assert str(error).startswith("got poses")
        tally.count(refused=1)
    else:
        tally.count(right=1)
        assert given_.shape[1:] == (4, 4) and np.allclose(given_[:, 3], [0, 0, 0, 1], atol=1e-3)
    for name, values in (("v", (poses, (0, 0, 0))), ("w", ((0, 0, 0), poses))):
        try:
            twist(*values)
            tally.count(right=1)
        except ValueError as error:
            assert str(error).startswith(f"got {name} ")
            tally.count(refused=1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_whatever_is_given_as_poses_or_velocities(poses):
    try_poses(poses)


@pytest.mark.heavy
@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_a_thousand_things_given_as_poses_or_velocities(poses):
    try_poses(poses)


@settings(max_examples=300)
@given(st.one_of(st.text(), st.text("wasdijkl-,0123456789 none"), st.from_regex(r"[wasd]{1,2}-[0-9]{1,6}")))
def test_whatever_is_typed_as_keys(text):
    try:
        assert 0 < len(parse_keys(text, "sana-v2")) <= MAX_FRAMES
        tally.count(right=1)
    except ValueError as error:
        tally.count(refused=1)
        assert str(error).startswith("got ") and len(str(error)) < 400
