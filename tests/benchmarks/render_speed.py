"""Frames per second of the rooms renderer, scenes and paths included: python tests/benchmarks/render_speed.py [device]."""

import sys
import time

import torch

from sana_wm_env.train.data import render_clips

if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    render_clips([0], (64, 64), device)
    rates = []
    for trial in range(5):
        began = time.perf_counter()
        frames = render_clips(list(range(8 * trial, 8 * trial + 8)), (64, 64), device).frames
        if device != "cpu":
            torch.cuda.synchronize()
        rates.append(frames.shape[0] * frames.shape[1] / (time.perf_counter() - began))
    spread = f"median of 5; {min(rates):.0f} to {max(rates):.0f}"
    print(f"{device}, {torch.get_num_threads()} threads, 64x64: {sorted(rates)[2]:.0f} frames/s ({spread})")
