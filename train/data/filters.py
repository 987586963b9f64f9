"""Which clips are good enough: the ranges of the paper's appendix (SANA-WM, Table 6) and its camera checks
(section on annotation).

The published layout keeps one file of scores per clip and filter, `NAME_SUFFIX.json` or `.jsonl`. The first
five suffixes are the published ones; `colorsat` and `cuts` are filters of the paper for which no file was
published, under names of ours.
"""

import math
from collections.abc import Mapping

Ranges = Mapping[str, tuple[float, float]]

FILTERS: dict[str, dict[str, tuple[float, float]]] = {
    # VMAF motion; UniMatch optical flow; DOVER quality; number of people, cars and animals; quality flag of a
    # vision-language model
    "omniworld": {
        "vmafmotion": (0.5, 100),
        "unimatch": (3, 100),
        "dover": (0.35, 1),
        "vlm_entity_filter": (0, 10),
        "vlm_quality_filter": (0.5, 1.5),
    },
    "sekai-game": {
        "vmafmotion": (0.5, 50),
        "unimatch": (3, 80),
        "dover": (0.25, 1),
        "vlm_entity_filter": (0, 10),
        "vlm_quality_filter": (0.5, 1.5),
    },
    "sekai-walking": {
        "vmafmotion": (0.5, 50),
        "unimatch": (3, 50),
        "dover": (0.35, 1),
        "colorsat": (0, 180),
        "vlm_entity_filter": (0, 25),
        "vlm_quality_filter": (0.5, 1.5),
    },
    "miradata": {
        "vmafmotion": (0.5, 50),
        "unimatch": (3, 80),
        "dover": (0.40, 1),
        "colorsat": (0, 180),
        "cuts": (0, 1),
    },
    "dl3dv-gs": {
        "vmafmotion": (6, 50),
        "unimatch": (3, 80),
        "dover": (0.40, 1),
        "colorsat": (0, 180),
        "cuts": (0, 1),
    },
    "spatialvid-hq": {
        "vmafmotion": (0.5, 50),
        "unimatch": (3, 80),
        "dover": (0.35, 1),
        "colorsat": (0, 180),
        "vlm_entity_filter": (0, 10),
        "vlm_quality_filter": (0.5, 1.5),
    },
}

FOV_DEG = (25.0, 120.0)
MAX_FOCAL_DIFFERENCE = 0.2


def filter_ranges(name: str) -> Ranges:
    """Returns the ranges of a source, none for "". ValueError that lists the known sources otherwise."""
    if name and name not in FILTERS:
        raise ValueError(f"got the filters {name!r}; wanted one of {', '.join(FILTERS)}, or none")
    return FILTERS[name] if name else {}


def rejected(scores: Mapping[str, float | None], ranges: Ranges) -> str | None:
    """Returns why a clip with these scores is dropped, None if it is kept. A missing score that a filter asks
    for drops it.
    """
    for name, (low, high) in ranges.items():
        score = scores.get(name)
        if score is None:
            return f"no {name} score"
        if not low <= score <= high:  # NaN is in no range
            return f"{name} outside {low:g} to {high:g}"
    return None


def bad_camera(intrinsics_px: tuple[float, float, float, float], size: tuple[int, int]) -> str | None:
    """Returns why a camera fx, fy, cx, cy of an image of (height, width) is not believed, None if it is."""
    fx, fy, _, _ = intrinsics_px
    if not (fx > 0 and fy > 0):
        return "focal length not positive"
    height, width = size
    angles = (math.degrees(2 * math.atan(width / 2 / fx)), math.degrees(2 * math.atan(height / 2 / fy)))
    if not all(FOV_DEG[0] <= angle <= FOV_DEG[1] for angle in angles):
        return f"field of view outside {FOV_DEG[0]:g} to {FOV_DEG[1]:g} degrees"
    if abs(fx - fy) / ((fx + fy) / 2) > MAX_FOCAL_DIFFERENCE:
        return f"focal lengths differ by more than {MAX_FOCAL_DIFFERENCE:.0%}"
    return None
