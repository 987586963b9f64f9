"""The server with pages that are no browsers, in the dummy world: who comes in, and what people have reported
about other interactive worlds.
"""

import asyncio
import json
import random
import time

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the extra `play` is not installed")

from aiohttp import WSServerHandshakeError
from play_runs import run
from play_visitors import FRAMES, decode, playing

from sana_wm_env.play import worlds
from sana_wm_env.play.dummy import DummyEnv, read_number
from sana_wm_env.play.worlds import WorldChoice


def dummy(delay=0.0):
    return WorldChoice("dummy", delay=delay)


def places(frames):
    """(chunk, frame) of frames in the order in which they were shown."""
    return [(frame["chunk"], frame["frame"]) for frame in frames]


def in_order(first, chunks):
    return [(chunk, frame) for chunk in range(first, first + chunks) for frame in range(FRAMES)]


# ---- who may come in


@run
async def test_without_the_token_nothing_is_there():
    async with playing() as place:
        token = place.server.choice.token
        for path in ("/", "/?token=", "/?token=wrong", f"/?token={token}x", "/t/", "/t/wrong/play.js"):
            async with place.http.get(place.address + path) as answer:
                assert answer.status == 403, path
                assert token not in await answer.text()
        with pytest.raises(WSServerHandshakeError, match="403"):
            await place.http.ws_connect(f"{place.address}/t/wrong/link")
        async with place.http.post(f"{place.address}/t/wrong/of/{'0' * 16}/open", data=b"x") as answer:
            assert answer.status == 403


@run
async def test_other_names_other_pages_and_other_sites_are_refused():
    async with playing() as place:
        good = f"{place.address}/?token={place.server.choice.token}"
        port = place.port
        refused = [
            {"Host": "example.com"},
            {"Host": f"example.com:{port}"},
            {"Host": "127.0.0.1"},
            {"Host": f"127.0.0.1:{port + 1}"},
            {"Host": f"127.0.0.1.example.com:{port}"},
            {"Origin": "http://example.com"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{port + 1}"},
            {"Origin": f"https://127.0.0.1:{port}"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ]
        for headers in refused:
            async with place.http.get(good, headers=headers) as answer:
                assert answer.status == 403, headers
            with pytest.raises(WSServerHandshakeError, match="403"):
                await place.http.ws_connect(place.base + "/link", headers=headers)
        for headers in ({}, {"Origin": place.address}, {"Host": f"localhost:{port}"}):
            async with place.http.get(good, headers=headers) as answer:
                assert answer.status == 200, headers


@run
async def test_the_page_brings_everything_and_nothing_from_outside():
    async with playing() as place:
        async with place.http.get(f"{place.address}/?token={place.server.choice.token}") as answer:
            page, policy = await answer.text(), answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert f'<base href="/t/{place.server.choice.token}/">' in page
        names = ["play.css", "play.js", "icon.svg", "link.js", "keys.js", "screen.js", "map.js", "strip.js"]
        for name in names:
            async with place.http.get(f"{place.base}/{name}") as answer:
                text = await answer.text()
                assert answer.status == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
                outside = text.replace("http://www.w3.org", "")
                assert "http://" not in outside and "https://" not in outside, name
        for name in ("nothing.js", "..%2fserver.py", "server.py", "rooms/99", f"of/{'0' * 16}/save"):
            async with place.http.get(f"{place.base}/{name}") as answer:
                assert answer.status == 404, name


@run
async def test_one_more_than_may_be_here_is_told_so():
    async with playing(sessions=2) as place, place.visitor() as one, place.visitor() as two:
        await one.hears("welcome")
        await two.hears("welcome")
        async with place.visitor() as three:
            assert "2 visitors" in (await three.hears("busy"))["text"]
        await two.leave()
        await two.until(lambda: place.visitors.present == 1)
        async with place.visitor() as four:
            await four.hears("welcome")


@run
async def test_while_the_world_loads_every_page_hears_of_it():
    """A page that hangs during the warm-up (flashdreams#241)."""

    def opens(choice, report):
        report("Loading the weights")
        time.sleep(2)
        return DummyEnv(0.0, obs_mode="dict")

    async with playing(opens=opens) as place:
        began = time.monotonic()
        async with place.visitor() as one, place.visitor() as two:
            for visitor in (one, two):
                heard = await visitor.hears("loading", 2)
                assert heard["heard"] - began < 2, "progress within two seconds"
                assert "weights" in heard["stage"]
            await one.hears("welcome")
            await two.hears("welcome")


@run
async def test_a_world_that_cannot_be_opened_is_explained():
    def opens(choice, report):
        raise FileNotFoundError("got the world 'nowhere'; wanted a folder")

    async with playing(opens=opens) as place, place.visitor() as visitor:
        assert "nowhere" in (await visitor.hears("failed"))["text"]


# ---- controls


@run
async def test_a_tap_of_50_ms_moves_the_next_chunk():
    """A key pressed and released between two frames (jy-crpg-bench#2)."""
    async with playing() as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.hold("w", tapped=("w",))
        await asyncio.sleep(0.05)
        await visitor.hold()
        await visitor.sees(1)
        assert visitor.frames[FRAMES - 1]["pose"][2, 3] > 0.1
        assert not visitor.all("refused")


@run
async def test_a_tap_while_a_chunk_is_computed_moves_the_next_chunk():
    async with playing(dummy(0.5)) as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.flow()
        await asyncio.sleep(0.2)  # chunk 1 is being computed
        await visitor.hold("w", tapped=("w",))
        await asyncio.sleep(0.05)
        await visitor.hold()
        await visitor.sees(3)
        moved = {chunk: visitor.frames[FRAMES * chunk - 1]["pose"][2, 3] for chunk in (1, 2, 3)}
        told = {message["seq"]: message["chunk"] for message in visitor.all("received")}
        assert told[1] in (1, 2)
        assert moved[told[1]] > 0.1 and moved[3] == moved[2]


@run
async def test_thirty_keydowns_in_one_slow_step_are_one_held_key():
    """Input that is not read while a frame is computed, auto-repeat that doubles presses (smolvm#1077)."""
    async with playing(dummy(1.0)) as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.flow()
        await asyncio.sleep(0.3)
        began = time.monotonic()
        for i in range(30):
            await visitor.hold("w", tapped=("w",) if i == 0 else ())
        last = await visitor.hears("received", 30)
        assert last["heard"] - began < 0.5, "receipts do not wait for the chunk"
        assert last["seq"] == 30 and last["chunk"] == 2
        await visitor.hold()  # released at once
        await visitor.sees(3)
        applied = {message["chunk"]: message["seq"] for message in visitor.all("applied")}
        assert applied[2] == 31, "the newest state, no backlog"
        ends = [visitor.frames[FRAMES * chunk - 1]["pose"][2, 3] for chunk in (1, 2, 3)]
        assert ends[0] == 0 and 0.1 < ends[1] < 0.3 and ends[2] == ends[1], "one tap, once"


@run
async def test_a_lost_focus_lets_go_of_every_key():
    """Keys that stick after the tab loses focus (FlashDreams ADR-1)."""
    async with playing(dummy(0.1)) as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.flow()
        await visitor.hold("w", tapped=("w",))
        await visitor.sees(2)
        await visitor.say("release", seq=visitor.seq + 1, at=0)
        await asyncio.sleep(0.1)
        done = len(visitor.all("applied"))
        await visitor.sees(done + 3)
        released = [m["chunk"] for m in visitor.all("applied") if m["seq"] == visitor.seq + 1]
        poses = {frame["chunk"]: frame["pose"] for frame in visitor.frames if frame["frame"] == FRAMES - 1}
        assert released and all(
            np.array_equal(poses[chunk], poses[chunk - 1]) for chunk in released if chunk in poses
        )


@run
async def test_a_page_that_goes_lets_go_too():
    async with playing() as place:
        async with place.visitor() as visitor:
            session = (await visitor.hears("welcome"))["session"]
            await visitor.hold("w", tapped=("w",))
            await visitor.sees(1)
        async with place.visitor(session) as visitor:
            before = (await visitor.hears("welcome"))["present"]
            await asyncio.sleep(0.3)
            assert place.visitors.sessions[session].timeline.present == before


@run
async def test_a_key_that_comes_too_late_has_the_unseen_chunk_computed_again():
    async with playing() as place, place.visitor(seconds=0.3) as visitor:
        await visitor.hears("welcome")
        await visitor.flow()
        await visitor.sees(1)
        visitor.holds = True  # a chunk lies here that nobody has seen
        session = next(iter(place.visitors.sessions.values()))
        await visitor.until(lambda: session.pace.waits and len(visitor.all("applied")) == session.pace.sent)
        chunk = session.pace.sent
        await visitor.hold("w", tapped=("w",))
        receipt = await visitor.hears("received")
        assert (receipt["chunk"], receipt["take"]) == (chunk, 1)
        again = await visitor.until(
            lambda: [m for m in visitor.all("applied") if m["chunk"] == chunk and m["take"] == 1]
        )
        first = next(m for m in visitor.all("applied") if m["chunk"] == chunk and m["take"] == 0)
        assert again[0]["moment"]["parent"] == first["moment"]["parent"]
        assert again[0]["seq"] == 1 and again[0]["moment"]["pose"][11] > first["moment"]["pose"][11]
        assert first["moment"]["id"] not in session.timeline.moments, "the first take never happened"


# ---- frames


async def walk_and_check(delay, chunks, seconds):
    """Frames come in order, none lost or doubled, and are never older than two chunks."""
    async with playing(dummy(delay)) as place, place.visitor(seconds=seconds) as visitor:
        await visitor.hears("welcome")
        session = next(iter(place.visitors.sessions.values()))
        await visitor.flow()
        await visitor.sees(chunks, patience=30 + 10 * chunks)
        frames = visitor.frames[: chunks * FRAMES]
        assert places(frames) == in_order(1, chunks)
        numbers = [read_number(decode(frame["pictures"][0])) for frame in frames]
        assert numbers == list(range(1, chunks * FRAMES + 1)), "each picture is that of its frame"
        assert session.pace.sent - session.pace.begun <= 1
        ahead = [
            sum(other["came"] <= frame["shown"] for other in visitor.frames) - i
            for i, frame in enumerate(frames)
        ]
        assert max(ahead) <= 2 * FRAMES, "what waits at the page is bounded, so is the age of what is shown"


@run
async def test_frames_come_in_order_none_lost_or_doubled():
    """Delay that grows, frames that are dropped (aiortc#1192, #764): 60 chunks in the heavy suite."""
    await walk_and_check(delay=0.05, chunks=8, seconds=0.2)


@pytest.mark.heavy
@run
async def test_sixty_chunks_of_a_world_that_is_faster_than_time():
    await walk_and_check(delay=0.2, chunks=60, seconds=1.5)


@pytest.mark.heavy
@run
async def test_sixty_chunks_of_a_world_that_is_slower_than_time():
    await walk_and_check(delay=3.0, chunks=60, seconds=1.5)


@run
async def test_a_slow_page_gets_fewer_frames_and_nobody_else_is_hurt():
    def opens(choice, report):
        return DummyEnv(0.02, obs_mode="dict", image_size=(256, 256))

    async with playing(opens=opens) as place, place.visitor() as quick, place.visitor(seconds=2.4) as slow:
        await quick.hears("welcome")
        await slow.hears("welcome")
        await slow.flow()
        await quick.flow()
        await slow.sees(4)
        of_chunk = [[frame for chunk, frame in places(slow.frames) if chunk == n] for n in (1, 2, 3, 4)]
        assert of_chunk[0] == list(range(FRAMES)) and len(of_chunk[3]) < FRAMES
        assert all(frames[-1] == FRAMES - 1 for frames in of_chunk), "the last one always comes"
        assert places(slow.frames) == sorted(set(places(slow.frames)))
        assert places(quick.frames) == in_order(1, len(quick.frames) // FRAMES + 1)[: len(quick.frames)]
        assert len(quick.frames) > 2 * len(slow.frames)


# ---- strangers


def nonsense(random_numbers):
    """A message that is none."""
    seeds = [
        "",
        "{",
        "null",
        "[]",
        '{"kind": "control"}',
        '{"kind": "go", "moment": -1}',
        '{"kind": "go", "moment": 1e9}',
        '{"kind": "set", "name": "epoch", "on": true}',
        '{"kind": "agent", "name": "os.system"}',
        '{"kind": "start", "room": 5.5, "seed": null, "prompt": null}',
        '{"kind": "pick", "future": 9}',
        '{"kind": "begun", "epoch": 9007199254740993, "chunk": 1}',
        json.dumps({"kind": "control", "seq": 1, "at": 0, "held": ["w"] * 99}),
        "[" * 3000,
        "\ud7ff\x00\x01",
    ]
    text = random_numbers.choice(seeds)
    if text and random_numbers.random() < 0.5:
        cut = random_numbers.randrange(len(text))
        text = text[:cut] + random_numbers.choice('{}[]",:0e\x00é') + text[cut + 1 :]
    return text


async def survive(count):
    async with playing() as place, place.visitor() as good:
        await good.hears("welcome")
        async with place.visitor() as bad:
            session = place.visitors.sessions[(await bad.hears("welcome"))["session"]]
            before = session.timeline.present
            numbers = random.Random(0)
            for i in range(count):
                if i % 10 == 9:
                    await bad.socket.send_bytes(numbers.randbytes(20))
                else:
                    await bad.socket.send_str(nonsense(numbers))
            await bad.hold("w", tapped=("w",))  # and then walks on as if nothing had been
            await bad.sees(1)
            await bad.hold()
            assert session.timeline.moments[before].is_kept and bad.all("refused")
            assert len(bad.all("refused")) <= count
        await good.hold("w", tapped=("w",))
        await good.sees(1)
        assert not good.all("refused")


@run
async def test_malformed_messages_harm_nothing():
    await survive(300)


@pytest.mark.heavy
@run
async def test_ten_thousand_malformed_messages_harm_nothing():
    await survive(10_000)


@run
async def test_a_message_that_is_too_large_ends_the_connection_and_not_the_session():
    async with playing() as place:
        async with place.visitor() as visitor:
            session = (await visitor.hears("welcome"))["session"]
            await visitor.socket.send_str("x" * 100_000)
            await asyncio.wait_for(visitor.reader, 10)
        async with place.visitor(session) as visitor:
            assert (await visitor.hears("welcome"))["session"] == session


@run
async def test_more_wishes_than_can_wait_are_refused():
    async with playing(dummy(0.5)) as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.flow()
        await asyncio.sleep(0.1)
        for _ in range(30):
            await visitor.say("go", moment=0)
        assert "at once" in (await visitor.hears("refused"))["text"]
        await visitor.hears("jumped")


def test_the_list_of_rooms_is_that_of_the_rooms():
    from sana_wm_env.rooms import HOME

    assert len(HOME) == worlds.ROOMS
