import numpy as np
import pytest

from sana_wm_env.contact_sheet import LABEL_PX, MARGIN_PX, contact_sheet, side_by_side


def flat(*colour: int) -> np.ndarray:
    return np.full((8, 12, 3), colour, np.uint8)


def test_every_picture_lands_in_its_place():
    rows = [[flat(250, 0, 0), flat(0, 250, 0)], [flat(0, 0, 250), flat(250, 250, 0)]]
    sheet = np.asarray(contact_sheet(rows, ["a", "b"], ["left", "right"], tile_height=16))
    right, bottom = sheet.shape[1] - MARGIN_PX - 1, sheet.shape[0] - MARGIN_PX - 1
    assert sheet[bottom, right].tolist() == [250, 250, 0]
    assert sheet[bottom, right - 24 - MARGIN_PX].tolist() == [
        0,
        0,
        250,
    ]  # pictures are 24 pixels wide after doubling
    assert sheet[bottom - 16 - MARGIN_PX, right].tolist() == [0, 250, 0]
    assert sheet[bottom - 16 - MARGIN_PX, right - 24 - MARGIN_PX].tolist() == [250, 0, 0]
    assert sheet[:LABEL_PX].max() > 200  # something is written above


def test_a_table_with_holes_is_refused():
    with pytest.raises(ValueError, match="one label per row"):
        contact_sheet([[flat(0, 0, 0)]], ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="one label per row"):
        contact_sheet([[flat(0, 0, 0)]], ["a"], ["c", "d"])


def test_side_by_side_keeps_left_left():
    left, right = np.stack([flat(200, 0, 0)] * 3), np.stack([flat(0, 200, 0)] * 3)
    video = side_by_side([left, right], ["a", "b"], min_height=16)
    assert video.shape == (3, LABEL_PX + 16, 24 + MARGIN_PX + 24, 3)
    assert np.array_equal(video[:, LABEL_PX:, :24], np.full((3, 16, 24, 3), (200, 0, 0)))
    assert np.array_equal(video[:, LABEL_PX:, 24 + MARGIN_PX :], np.full((3, 16, 24, 3), (0, 200, 0)))
    with pytest.raises(ValueError, match="as many frames"):
        side_by_side([left, right[:2]], ["a", "b"])
