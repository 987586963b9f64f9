"""`sana-wm play` as it is typed."""

import asyncio
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("aiohttp", reason="the extra `play` is not installed")

from aiohttp import ClientSession
from play_runs import run
from play_visitors import Place, Visitor

from sana_wm_env.play.server import Server, ServerChoice
from sana_wm_env.play.worlds import WorldChoice

PLAY = [sys.executable, "-m", "sana_wm_env.cli", "play", "--no-browser"]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_line_is_the_address_and_a_signal_ends_it(number, code):
    """Even while a visitor walks."""
    process = subprocess.Popen([*PLAY, "--port", "0", "--env", "dummy"], stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    host, port, token = address.split(":")[1], address.split(":")[2], address.partition("/?token=")[2]
    assert host == "//127.0.0.1" and token

    @run
    async def visit():
        async with ClientSession() as http:
            server = Server(WorldChoice(), ServerChoice(token=token))
            visitor = Visitor(Place(server, int(port.partition("/")[0]), http), 0.0)
            await visitor.enter()
            await visitor.hears("welcome")
            await visitor.flow()
            await visitor.sees(1)
            process.send_signal(number)
            await asyncio.to_thread(process.wait, 30)
            await visitor.leave()

    visit()
    assert process.returncode == code


def refused(*flags):
    done = subprocess.run([*PLAY, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "--port 0" in refused("--port", str(taken.getsockname()[1]))


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--env", "CartPole-v1"], "SanaWM-Rooms-v0"),
        (["--port", "70000"], "65535"),
        (["--sessions", "0"], "64"),
        (["--policy", "nowhere.zip"], "nowhere.zip"),
        (["--env", "SanaWM-Rooms-v0", "--refiner", "auto"], "no --refiner"),
        (["--env", "SanaWM-Rooms-v0", "--precision", "int8"], "no --precision"),
        (["--env", "dummy", "--dtype", "float32"], "no --dtype"),
        (["--env", "dummy", "--world", "some/folder"], "no --world"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, words):
    assert words in refused(*flags)


def test_the_page_is_there_before_torch():
    """What serves the page while weights load does not itself load what takes seconds."""
    heavy = ("torch", "scipy", "PIL")
    code = f"import sys, sana_wm_env.play.server; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_listens_on_this_machine_alone():
    from sana_wm_env.serving import open_port

    with open_port(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
