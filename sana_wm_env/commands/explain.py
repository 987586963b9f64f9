"""`sana-wm actions explain`: what a key string does, in words and figures. Loads no world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..actions import check_whole_chunks, least_limits
from ..arrays import write_array
from ..camera import CHUNK_FRAMES, FPS, Array, step_twists
from ..extras import check_installed
from ..files import write_whole
from ..keys import MOTIONS, SCHEMES, WORDS, key_scheme, keys_to_path, motions, segments, words
from ..outputs import Output, check_outputs

ASSUMED = "sana-v2"
NEGLIGIBLE = 5e-3
"""Metres and degrees that are not worth a word."""


@dataclass(frozen=True)
class ExplainConfig:
    """The key string, and what it is written to."""

    actions: Annotated[str, tyro.conf.Positional]
    """<keys>-<frames> joined by commas, such as w-48,dw-24,none-24"""
    scheme: Literal["sana-v2", "sana-v1"] | None = None
    """what the keys mean; without it sana-v2 is assumed, and the output says so"""
    out: Path | None = None
    """write the camera-to-world path here: .npy, float64 (frames + 1, 4, 4), OpenCV axes, metres"""
    plot: Path | None = None
    """draw the path from above here, beside that of the other scheme: .png, .pdf or .svg"""


def run(config: ExplainConfig) -> int:
    """Prints the explanation, after writing what was asked for. Returns 0."""
    check_outputs(
        Output("--out", config.out, (".npy",)), Output("--plot", config.plot, (".png", ".pdf", ".svg"))
    )
    if config.plot:
        check_installed("matplotlib.figure", "--plot")
    scheme = config.scheme or ASSUMED
    other = next(name for name in SCHEMES if name != scheme)
    paths = {name: keys_to_path(config.actions, name) for name in (scheme, other)}
    if config.plot:
        plot(paths, config.plot)
    if config.out:
        write_array(config.out, paths[scheme])
    assumed = "" if config.scheme else f" (assumed: no --scheme was given, and {other} means something else)"
    print(f'"{config.actions}" in {scheme}{assumed}', frame_count(len(paths[scheme]) - 1), "", sep="\n")
    print(*explain(config.actions, scheme), sep="\n")
    print("", f"In {other} it would be:", "", *explain(config.actions, other), sep="\n")
    print("", "They differ in:", *differences(config.actions, scheme, other), sep="\n  ")
    for written in filter(None, (config.out, config.plot)):
        print(f"wrote {written}")
    return 0


def frame_count(frames: int) -> str:
    """Describes the length, and whether a world can play it."""
    seconds = f"{frames} frames after the first, {frames / FPS:.1f} s at {FPS} frames per second"
    try:
        return f"{seconds}: {check_whole_chunks(frames)} chunks of {CHUNK_FRAMES}"
    except ValueError as error:
        padding = -frames % CHUNK_FRAMES
        advice = f"none-{padding} at the end makes {frames + padding}"
        return f"{seconds}. It cannot be played like this: {error}; {advice}"


def explain(text: str, scheme: str) -> list[str]:
    """Lines that say what a key string does: a table of its segments, where it ends, how fast it gets."""
    moved, lines, start = motions(text, scheme), [], 0
    parts = segments(text)
    wide = max(len(f"{keys}-{count}") for keys, count in parts)
    for keys, count in parts:
        end = start + count
        where = f"frames {start + 1:>4} to {end:<4}  {start / FPS:5.1f} to {end / FPS:.1f} s"
        lines.append(
            f"  {f'{keys}-{count}':<{wide}}  {where:<36}  {segment_in_words(keys, moved[start:end], scheme)}"
        )
        start = end
    path = keys_to_path(text, scheme)
    yaw, pitch = moved[:, 2].sum(), moved[:, 3].sum()
    x, y, z = path[-1, :3, 3] + 0.0  # no negative zeros
    limits = least_limits(step_twists(path) * CHUNK_FRAMES)
    return [
        *lines,
        f"  It ends at x = {x:.3f} m (right), y = {y:.3f} m (down), z = {z:.3f} m "
        "(forward) of the first frame,",
        f"  turned by {yaw + 0.0:.1f} degrees (to the right) and looking up by {pitch + 0.0:.1f} degrees.",
        f"  At its fastest it moves {limits.translation_m:g} m and turns "
        f"{limits.rotation_rad:g} rad per chunk.",
    ]


def segment_in_words(keys: str, moved: Array, scheme: str) -> str:
    """Describes what the camera does while `keys` are held: motions (n, 4) as `motions` gives them, summed
    up.
    """
    meaning, pressed = key_scheme(scheme), [] if keys == "none" else list(dict.fromkeys(keys))
    wish = dict.fromkeys(MOTIONS, 0)
    for key in pressed:
        motion, sign = meaning.keys[key]
        wish[motion] += sign
    phrases = []
    for motion, total in zip(MOTIONS, moved.sum(axis=0), strict=True):
        if phrase := _amount(motion, total):
            phrases.append(phrase + (" (coasting)" if not wish[motion] else ""))
    if wish["pitch"] and moved[-1, 3] == 0:
        phrases.append(f"and no further than the limit of {meaning.pitch_limit_deg:g} degrees")
    return ", ".join(phrases) or "stand still"


def differences(text: str, one: str, two: str) -> list[str]:
    """Lines that say where two schemes differ in what a key string uses."""
    used = dict.fromkeys(key for keys, _ in segments(text) if keys != "none" for key in keys)
    first, second = key_scheme(one), key_scheme(two)
    lines = [
        f"key {key}: {words(key, one)} in {one}, {words(key, two)} in {two}"
        for key in used
        if first.keys[key] != second.keys[key]
    ]
    ways = {
        "speed per frame": [
            f"{rules.speed_m:g} m or {rules.turn_deg:g} degrees" for rules in (first, second)
        ],
        "after a key": ["coasts to rest" if rules.smooth else "stops at once" for rules in (first, second)],
        "looking up and down": [f"up to {rules.pitch_limit_deg:g} degrees" for rules in (first, second)],
    }
    return lines + [f"{name}: {a} in {one}, {b} in {two}" for name, (a, b) in ways.items()]


def plot(paths: dict[str, Array], file: Path) -> None:
    """Draws paths (n + 1, 4, 4) by name from above: forward is up. The first is drawn bold, with where it
    looks after each chunk.
    """
    check_installed("matplotlib.figure", "--plot")
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]  # comes with an extra

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(aspect="equal", adjustable="datalim", xlabel="right, m", ylabel="forward, m")
    for index, (name, path) in enumerate(paths.items()):
        x, z = path[:, 0, 3], path[:, 2, 3]
        axes.plot(
            x,
            z,
            color=f"C{index}",
            linewidth=2 if index == 0 else 1,
            linestyle="-" if index == 0 else "--",
            label=name,
        )
        if index == 0:
            looks = path[::CHUNK_FRAMES]
            axes.quiver(
                *looks[:, [0, 2], 3].T,
                *looks[:, [0, 2], 2].T,
                angles="xy",
                scale=15,
                zorder=3,
                label="where it looks",
            )
    axes.plot(0, 0, "ko", label="start")
    axes.margins(0.1)
    axes.legend()
    write_whole(file, lambda part: figure.savefig(part, format=file.suffix[1:].lower()))


def _amount(motion: str, total: float) -> str:
    """A motion and how much of it: "forward 1.20 m"; nothing for next to nothing."""
    if abs(total) < NEGLIGIBLE:
        return ""
    unit = f"{abs(total):.2f} m" if motion in ("forward", "strafe") else f"{abs(total):.1f} degrees"
    return f"{WORDS[motion, 1 if total > 0 else -1]} {unit}"
