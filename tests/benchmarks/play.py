"""Visitors of `sana-wm play`: python tests/benchmarks/play.py [--visitors 8] [--minutes 10] [--presses 40].

Without --presses: N pages that are no browsers walk at 16 frames per second in one server; prints chunks of
each, the server's memory, and what was wrong with the frames. With --presses: the time from a key to the
first picture that it has changed, in Chromium.
"""

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import tyro
from aiohttp import ClientSession

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from play_visitors import FRAMES, Place, Visitor

from sana_wm_env.play.pace import MOST_STRIDE
from sana_wm_env.play.server import Server, ServerChoice
from sana_wm_env.play.worlds import WorldChoice

MIB = 2**20
STEP_M = 0.6 / 24 + 1e-3
"""The longest way along an axis between two frames."""


@dataclass(frozen=True)
class PlayBenchmark:
    """What is measured."""

    visitors: int = 8
    minutes: float = 10.0
    presses: int = 0
    """keys pressed in Chromium, in place of visitors"""
    env: str = "SanaWM-v0"


def serve(config: PlayBenchmark) -> subprocess.Popen[str]:
    """Starts the server as a process of its own."""
    command = [sys.executable, "-m", "sana_wm_env.cli", "play", "--port", "0", "--no-browser"]
    flags = ["--env", config.env, "--sessions", str(max(1, config.visitors))]
    return subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)


def resident(pid: int) -> float:
    """MiB of a process in memory (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def load() -> str:
    """How busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


class Watcher:
    """Checks the frames of a visitor as they come, and keeps only the last one."""

    def __init__(self, visitor: Visitor, number: int):
        self.visitor, self.number = visitor, number
        self.chunks, self.thinned, self.faults, self.last = 0, 0, [], None

    def look(self) -> None:
        """Looks at the frames since the last look."""
        new, self.visitor.frames[:] = list(self.visitor.frames), []
        poses = {m["chunk"]: m["moment"]["pose"] for m in self.visitor.all("applied")}
        for frame in new:
            place, before = FRAMES * frame["chunk"] + frame["frame"], self.last
            steps = 1 if before is None else place - before[0]
            self.thinned += steps - 1
            if not 1 <= steps <= MOST_STRIDE:
                self.faults.append(f"frame {place} comes {steps} after the last")
            if before is not None and np.abs(frame["pose"][:3, 3] - before[1][:3, 3]).max() > steps * STEP_M:
                self.faults.append(f"a leap before frame {place}")
            self.last = place, frame["pose"]
            if frame["frame"] == FRAMES - 1:
                self.chunks += 1
                if not np.allclose(frame["pose"][:3].ravel(), poses[frame["chunk"]], atol=1e-4):
                    self.faults.append(f"chunk {frame['chunk']} ends elsewhere")
        self.visitor.told[:] = [m for m in self.visitor.told if m["kind"] != "received"][-50:]


async def walk(watcher: Watcher, end: float) -> None:
    """Changes keys now and then, and stands still for no chunk."""
    visitor, numbers = watcher.visitor, random.Random(watcher.number)
    await visitor.hears("welcome")
    await visitor.say("start", room=watcher.number, seed=watcher.number, prompt=None)
    await visitor.hears("welcome", 2)
    visitor.frames.clear()
    await visitor.flow()
    while time.monotonic() < end:
        await visitor.hold(*numbers.sample("wasdijkl", numbers.randint(0, 2)))
        await asyncio.sleep(numbers.uniform(0.5, 4))
        watcher.look()


async def visit(config: PlayBenchmark) -> None:
    """All visitors at once."""
    process = serve(config)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    port, token = int(address.split(":")[2].split("/")[0]), address.partition("token=")[2]
    server = Server(WorldChoice(), ServerChoice(token=token))
    async with ClientSession() as http:
        place = Place(server, port, http)
        watchers = [Watcher(Visitor(place, 1.5), i) for i in range(config.visitors)]
        for watcher in watchers:
            await watcher.visitor.enter()
        end = time.monotonic() + 60 * config.minutes
        walks = [asyncio.create_task(walk(watcher, end)) for watcher in watchers]
        began, before = time.monotonic(), 0
        while not all(task.done() for task in walks):
            await asyncio.sleep(min(60.0, max(1.0, end - time.monotonic())))
            chunks = [watcher.chunks for watcher in watchers]
            minute = (time.monotonic() - began) / 60
            print(
                f"{minute:5.1f} min: chunks {chunks}, {sum(chunks) - before} new, "
                f"server {resident(process.pid):.0f} MiB, {load()}",
                flush=True,
            )
            before = sum(chunks)
        await asyncio.gather(*walks)
        for watcher in watchers:
            await watcher.visitor.leave()
    faults = [f"visitor {w.number}: {fault}" for w in watchers for fault in w.faults]
    thinned = sum(w.thinned for w in watchers)
    print(f"{sum(w.chunks for w in watchers)} chunks in all, {thinned} frames left out for slow pages")
    print(f"{len(faults)} faults {faults[:9]}")
    process.terminate()
    process.wait(20)


def press(config: PlayBenchmark) -> None:
    """Key to picture, in a browser."""
    from playwright.sync_api import sync_playwright

    process = serve(config)
    assert process.stdout is not None
    numbers = random.Random(0)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1360, "height": 860})
        page.goto(process.stdout.readline().strip())
        while not page.evaluate("document.getElementById('veil').hidden"):
            time.sleep(0.1)
        for flows in (False, True):
            page.locator("#flow-switch").set_checked(flows)
            time.sleep(6 if flows else 2)
            page.evaluate("play.state.latency.length = 0; play.screen.log.length = 0")
            for _ in range(config.presses):
                page.keyboard.press(numbers.choice("jl"), delay=numbers.uniform(30, 300))
                time.sleep(numbers.uniform(2.2, 3.7) if flows else 2.6)
            time.sleep(3)
            seconds = [value / 1000 for value in page.evaluate("play.state.latency")]
            log = page.evaluate("play.screen.log.map(([e, c, f, t]) => [24 * c + f, t])")
            gaps = [b[1] - a[1] for a, b in pairwise(log)]
            print(f"{'time flows' if flows else 'from standing'}: {len(seconds)} keys, ", end="")
            print(f"median {median(seconds):.2f} s, most {max(seconds):.2f} s; ", end="")
            print(f"chunk {page.evaluate('play.state.step')} ms, {median(gaps):.1f} ms a frame, {load()}")
        browser.close()
    process.terminate()
    process.wait(20)


if __name__ == "__main__":
    config = tyro.cli(PlayBenchmark, description=__doc__)
    if config.presses:
        press(config)
    else:
        asyncio.run(visit(config))
