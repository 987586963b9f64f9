"""Frames per second of the rooms renderer at 64x64 on one thread: python tests/benchmarks/render_speed.py
[device].

Plain torch and compiled C++ alternate in one run, the renderer alone; then `render_clips`, scenes and paths
included. On another device there is plain torch alone.
"""

import statistics
import sys

import torch
from timing import seconds
from torch import Tensor

from sana_wm_env.rooms import default_intrinsics, paths, render_native
from sana_wm_env.rooms.render import render, render_reference
from sana_wm_env.rooms.scene import Scenes, sample_scenes
from sana_wm_env.train.data.rooms import render_clips

SIZE, ROOMS, CHUNKS, TRIALS = (64, 64), 8, 4, 9


def scenes_and_paths(seeds: list[int], device: str) -> tuple[Scenes, Tensor]:
    scenes = sample_scenes(seeds, device)
    starts = paths.sample_starts(scenes, seeds)
    return scenes, paths.twist_paths(starts, paths.sample_twists(scenes, starts, seeds, CHUNKS))


def describe(frames: int, taken: list[float]) -> str:
    rates = sorted(frames / t for t in taken)
    return (
        f"{statistics.median(rates):.0f} frames/s (median of {len(rates)}; {rates[0]:.0f} to {rates[-1]:.0f})"
    )


if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.set_num_threads(1)
    seeds = list(range(ROOMS))
    scenes, c2w = scenes_and_paths(seeds, device)
    calls = {
        "plain torch": lambda: render_reference(scenes, c2w, default_intrinsics(SIZE), SIZE),
        "C++": lambda: render(scenes, c2w, default_intrinsics(SIZE), SIZE),
        "render_clips": lambda: render_clips(seeds, SIZE, device, CHUNKS),
        "  of which scenes and paths": lambda: scenes_and_paths(seeds, device),
    }
    if device != "cpu" or not render_native.available():
        del calls["C++"]
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for trial in range(TRIALS + 1):
        for name, call in calls.items():
            once = seconds(call, device)
            if trial > 0:  # the first round warms up
                taken[name].append(once)
    frames = c2w.shape[0] * c2w.shape[1]
    print(f"{device}, one thread, 64x64, {frames} frames")
    for name in calls:
        print(f"{name}: {describe(frames, taken[name])}")
    if "C++" in calls:
        ratios = sorted(slow / fast for slow, fast in zip(taken["plain torch"], taken["C++"], strict=True))
        print(f"C++ is {statistics.median(ratios):.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f})")
    share = statistics.median(taken["  of which scenes and paths"]) / statistics.median(taken["render_clips"])
    print(f"scenes and paths take {share:.0%} of render_clips")
