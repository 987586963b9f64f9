"""Labelled pictures for people: a contact sheet of many tiles, and videos side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .video import enlarge

MARGIN_PX, LABEL_PX = 4, 16
BACKGROUND, INK = (24, 24, 24), (235, 235, 235)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    draw.text((x + 2, y + 2), text, fill=INK, font=ImageFont.load_default(size=11))


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    tile_height: int = 96,
) -> Image.Image:
    """A table of pictures with a label above each column and left of each row.

    Args:
        rows: R rows of C pictures, uint8 (H, W, 3), all of one size.
        row_labels: R short texts.
        column_labels: C short texts.
        tile_height: smallest height of a tile in pixels; small pictures are enlarged by a whole factor.
    """
    wrong = [len(row) for row in rows if len(row) != len(column_labels)]
    if not rows or wrong or len(row_labels) != len(rows):
        raise ValueError(
            f"got {len(rows)} rows with {sorted({len(r) for r in rows})} pictures, "
            f"{len(row_labels)} row labels and "
            f"{len(column_labels)} column labels; wanted at least one row, one label per row and per column"
        )
    rows = [[enlarge(picture, tile_height) for picture in row] for row in rows]
    height, width = rows[0][0].shape[:2]
    left = int(max(ImageFont.load_default(size=11).getlength(label) for label in row_labels)) + 2 * MARGIN_PX
    sheet = Image.new(
        "RGB",
        (left + len(column_labels) * (width + MARGIN_PX), LABEL_PX + len(rows) * (height + MARGIN_PX)),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        _write(draw, left + column * (width + MARGIN_PX), 0, label)
    for i, (label, row) in enumerate(zip(row_labels, rows, strict=True)):
        top = LABEL_PX + i * (height + MARGIN_PX)
        _write(draw, 0, top, label)
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (left + column * (width + MARGIN_PX), top))
    return sheet


def side_by_side(videos: Sequence[np.ndarray], labels: Sequence[str], min_height: int = 256) -> np.ndarray:
    """Videos in one, beside each other with thin gaps, a label above each.

    Args:
        videos: uint8 (F, H, W, 3) each, of one number of frames; after enlargement of one height.
        labels: the texts above them.
        min_height: small videos are enlarged by a whole factor to at least this height.

    Returns:
        uint8 (F, H', W', 3).
    """
    videos = [enlarge(video, min_height) for video in videos]
    if len({video.shape[:2] for video in videos}) != 1 or len(labels) != len(videos):
        raise ValueError(
            f"got videos of shape {', '.join(str(video.shape) for video in videos)} and "
            f"{len(labels)} labels; "
            "wanted videos of as many frames and one height, and a label for each"
        )
    frames, height = videos[0].shape[:2]
    lefts = [sum(video.shape[2] + MARGIN_PX for video in videos[:i]) for i in range(len(videos) + 1)]
    canvas = Image.new("RGB", (lefts[-1] - MARGIN_PX, LABEL_PX + height), BACKGROUND)
    for x, label in zip(lefts, labels, strict=False):
        _write(ImageDraw.Draw(canvas), x, 0, label)
    joined = np.repeat(np.asarray(canvas)[None], frames, axis=0)
    for x, video in zip(lefts, videos, strict=False):
        joined[:, LABEL_PX:, x : x + video.shape[2]] = video
    return joined
