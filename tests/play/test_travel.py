"""Going back, branching, recording, saving, parking: in the dummy world, and in the bundled one."""

import asyncio
import io
import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the extra `play` is not installed")

from PIL import Image
from play_runs import run
from play_visitors import FRAMES, decode, playing
from tiny_refiners import write_refiner

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.model.world import WorldModel
from sana_wm_env.play.worlds import WorldChoice, open_world

AHEAD = np.array([0, 0, 1, 0, 0, 0], np.float32)


@pytest.fixture(scope="module")
def opens():
    """The bundled world, loaded once."""
    env = open_world(WorldChoice(), lambda stage: None)
    return lambda choice, report: env


async def walk(visitor, keys, chunks):
    """Walks so many chunks, holding keys, and then stands. Returns the frames of the last of them."""
    done = len(visitor.all("applied"))
    session = visitor.place.visitors.sessions[visitor.all("hello")[-1]["session"]]
    await visitor.hold(*keys)
    await visitor.until(lambda: len(visitor.all("applied")) >= done + chunks)
    await visitor.hold()
    await visitor.until(lambda: session.pace.ended == session.pace.sent and session.pace.sent)
    return visitor.frames[-FRAMES:]


async def gone(session):
    """Waits until the server knows that the page has gone."""
    while session.link is not None:
        await asyncio.sleep(0.01)


def last_picture(visitor):
    return decode(visitor.frames[-1]["pictures"][0])


@run
async def test_going_back_shows_the_moment_and_the_same_steps_lead_on_alike():
    async with playing() as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await walk(visitor, "w", 3)
        moments = {m["moment"]["chunk"]: m["moment"]["id"] for m in visitor.all("applied")}
        third = decode(next(f for f in visitor.frames if f["chunk"] == 3 and f["frame"] == 23)["pictures"][0])
        await visitor.say("go", moment=moments[2])
        jumped = await visitor.hears("jumped")
        assert jumped["present"] == moments[2]
        await visitor.until(lambda: visitor.stills[-1]["chunk"] == 2)
        await walk(visitor, "w", 1)
        frames = [f for f in visitor.frames if f["epoch"] == visitor.epoch and f["chunk"] == 3]
        assert np.array_equal(decode(frames[-1]["pictures"][0]), third)
        session = next(iter(place.visitors.sessions.values()))
        children = [m for m in session.timeline.moments.values() if m.parent == moments[2]]
        assert len(children) == 2, "two ways from one moment"


@run
async def test_four_futures_side_by_side_and_one_is_picked():
    async with playing() as place, place.visitor() as visitor:
        start = await visitor.hears("welcome")
        await visitor.say("futures", by="actions")
        told = await visitor.hears("futures")
        assert told["names"] == ["ahead", "left", "right", "back"] and told["frames"] == 2 * FRAMES
        await visitor.until(lambda: len(visitor.futures) == 2 * FRAMES)
        ends = [decode(picture) for picture in visitor.futures[-1]["pictures"]]
        assert len({end.tobytes() for end in ends}) == 4
        session = next(iter(place.visitors.sessions.values()))
        assert session.timeline.present == start["present"], "nothing has happened yet"
        await visitor.say("pick", future=2)
        welcome = await visitor.hears("welcome", 2)
        assert np.allclose(session.timeline.now.c2w[:3].ravel(), told["ends"][2], atol=1e-4)
        assert len(welcome["moments"]) == 3
        await visitor.say("pick", future=0)
        assert "no futures" in (await visitor.hears("refused"))["text"]


@run
async def test_whoever_stays_stays():
    async with playing() as place, place.visitor() as visitor:
        start = await visitor.hears("welcome")
        await visitor.say("futures", by="actions")
        await visitor.hears("futures")
        await visitor.say("pick", future=None)
        assert (await visitor.hears("welcome", 2))["present"] == start["present"]


@run
async def test_a_reload_in_mid_session_goes_on_and_the_old_tab_is_told():
    async with playing() as place, place.visitor() as old:
        session = (await old.hears("welcome"))["session"]
        await walk(old, "w", 2)
        async with place.visitor(session) as new:
            welcome = await new.hears("welcome")
            assert [moment["chunk"] for moment in welcome["moments"]] == [0, 1, 2][: len(welcome["moments"])]
            await old.hears("taken")
            shown = await new.until(lambda: new.stills)
            assert np.array_equal(decode(shown[0]["pictures"][0])[:-4], last_picture(old)[:-4])
            await walk(new, "w", 1)
            assert new.frames[0]["chunk"] == welcome["moments"][-1]["chunk"] + 1


@run
async def test_who_is_away_is_parked_on_disk_and_comes_back():
    async with playing(idle=1000) as place:
        async with place.visitor() as visitor:
            id = (await visitor.hears("welcome"))["session"]
            await walk(visitor, "w", 2)
            session = place.visitors.sessions[id]
        await gone(session)
        session.left_at -= 2000
        await place.visitors.park_idle()
        assert session.timeline.nbytes == 0 and not any(m.episode for m in session.timeline.moments.values())
        assert all(m.file.is_file() for m in session.timeline.moments.values())
        async with place.visitor(id) as visitor:
            welcome = await visitor.hears("welcome")
            await visitor.say("go", moment=welcome["moments"][1]["id"])
            assert (await visitor.hears("jumped"))["chunk"] == 1
            await walk(visitor, "w", 1)
        await gone(session)
        session.left_at -= 10_000
        await place.visitors.park_idle()
        assert id not in place.visitors.sessions and not list(place.visitors.folder.glob(f"{id}*"))


@run
async def test_a_recording_is_a_video_with_the_pose_of_each_frame():
    async with playing() as place, place.visitor() as visitor:
        id = (await visitor.hears("welcome"))["session"]
        await walk(visitor, "w", 1)
        await visitor.say("record", on=True)
        await visitor.hears("recording")
        await walk(visitor, "l", 2)
        await visitor.say("record", on=False)
        told = await visitor.hears("recording", 2)
        chunks = (told["frames"] - 1) // FRAMES
        assert chunks >= 2 and told["frames"] == FRAMES * chunks + 1
        async with place.http.get(f"{place.base}/of/{id}/video.npz") as answer:
            sidecar = np.load(io.BytesIO(await answer.read()))
        assert sidecar["c2w"].shape == (told["frames"], 4, 4) and sidecar["actions"].shape == (chunks, 6)
        shown = [f["pose"] for f in visitor.frames][-FRAMES * chunks :]
        assert np.allclose(sidecar["c2w"][1:], shown, atol=1e-5)
        async with place.http.get(f"{place.base}/of/{id}/video.mp4") as answer:
            assert answer.status == 200 and b"ftyp" in (await answer.read())[:32]


@run
async def test_a_saved_session_is_opened_by_another_visitor():
    async with playing() as place, place.visitor() as one, place.visitor() as two:
        ids = [(await visitor.hears("welcome"))["session"] for visitor in (one, two)]
        await walk(one, "wl", 2)
        async with place.http.get(f"{place.base}/of/{ids[0]}/save") as answer:
            saved = await answer.read()
        async with place.http.post(f"{place.base}/of/{ids[1]}/open", data=saved) as answer:
            assert answer.status == 200, await answer.text()
        welcome = await two.hears("welcome", 2)
        assert welcome["moments"][0]["pose"] == pytest.approx(one.all("applied")[-1]["moment"]["pose"])
        await walk(one, "d", 1)
        await walk(two, "d", 1)
        assert np.array_equal(last_picture(one)[:-4], last_picture(two)[:-4])


def archive(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("_", "."), data)
    return out.getvalue()


@run
async def test_files_of_strangers_are_refused_and_the_walk_goes_on():
    about = json.dumps({"world": "", "seed": 0, "room": None, "knows_room": True, "caption": ""})
    async with playing() as place, place.visitor() as visitor:
        id = (await visitor.hears("welcome"))["session"]
        present = place.visitors.sessions[id].timeline.present
        bad = [
            b"",
            b"PK\x03\x04",
            b"\x80\x04\x95" + bytes(50),
            archive(state=b"x"),
            archive(about_json="{}", state=b"x"),
            archive(about_json=about, state=b"x"),
            archive(about_json=about, state=b"x", more=b"y"),
            archive(about_json=about.replace("0", "-1"), state=b"x"),
            archive(about_json="[" * 10_000, state=b"x"),
            archive(about_json=" " * 20_000, state=b"x"),
        ]
        for data in bad:
            async with place.http.post(f"{place.base}/of/{id}/open", data=data) as answer:
                assert answer.status == 400, data[:20]
                assert (await answer.json())["error"]
            async with place.http.post(f"{place.base}/of/{id}/picture", data=data) as answer:
                assert answer.status == 400, data[:20]
        assert place.visitors.sessions[id].timeline.present == present
        await walk(visitor, "w", 1)


@run
async def test_the_truth_stands_beside_what_is_imagined(opens):
    async with playing(WorldChoice(), opens, truth=True) as place, place.visitor() as visitor:
        welcome = await visitor.hears("welcome")
        assert welcome["knowsTruth"] and welcome["map"]["air"] and welcome["caption"]
        await walk(visitor, "l", 1)
        pictures = [decode(picture) for picture in visitor.frames[-1]["pictures"]]
        assert len(pictures) == 2
        still = [decode(picture) for picture in (await visitor.until(lambda: visitor.stills))[0]["pictures"]]
        assert np.array_equal(*still), "the first frame is the truth"
        error = np.abs(pictures[0].astype(float) - pictures[1]).mean()
        assert 0 < error < np.abs(pictures[0].astype(float) - still[1]).mean() + 25


@run
async def test_two_visitors_share_weights_and_neither_sees_the_other(opens):
    """Both walk at once, in one forward; each sees what the same environment shows alone."""
    async with playing(WorldChoice(), opens) as place, place.visitor() as one, place.visitor() as two:
        seeds = (3, 4)
        for visitor, seed in zip((one, two), seeds, strict=True):
            await visitor.hears("welcome")
            await visitor.say("start", room=None, seed=seed, prompt=None)
            await visitor.hears("welcome", 2)
        for visitor in (one, two):
            await visitor.hold("w")
        for visitor in (one, two):
            await visitor.sees(3)
            await visitor.hold()
        for visitor, seed, other in zip((one, two), seeds, seeds[::-1], strict=True):
            alone, strange = (gym.make("SanaWM-v0").unwrapped for _ in range(2))
            alone.model = strange.model = place.visitors.env.model
            alone.reset(seed=seed)
            strange.reset(seed=other)
            for chunk in range(3):
                frames, others = alone.step(AHEAD)[0], strange.step(AHEAD)[0]
                shown = [f for f in visitor.frames if f["epoch"] == visitor.epoch and f["chunk"] == chunk + 1]
                for frame in shown:
                    picture, index = decode(frame["pictures"][0]).astype(int), frame["frame"]
                    difference = np.abs(picture - frames[index]).mean()  # products round differently
                    assert difference < 0.5 < 5 < np.abs(picture - others[index]).mean()
        sessions = place.visitors.sessions.values()
        assert len({id(session.env) for session in sessions}) == 2
        assert len({id(session.env.model) for session in sessions}) == 1


@run
async def test_the_second_stage_shows_another_picture_of_the_same_walk(tmp_path):
    choice = WorldChoice(refiner=str(write_refiner(tmp_path / "refiner")))
    async with playing(choice) as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.say("start", room=None, seed=3, prompt=None)
        await visitor.hears("welcome", 2)
        await walk(visitor, "w", 2)
        steps = visitor.all("applied")
        moments = {m["moment"]["chunk"]: m["moment"]["id"] for m in steps}

        def frames(chunk):
            shown = [f for f in visitor.frames if f["epoch"] == visitor.epoch and f["chunk"] == chunk]
            return np.stack([decode(f["pictures"][0]) for f in shown])

        second, model = frames(2), place.visitors.env.model
        seen = {}
        for refiner in (None, model.refiner):
            alone = gym.make("SanaWM-v0").unwrapped
            alone.model = model if refiner else WorldModel.load("tiny-rooms")
            alone.reset(seed=3)
            alone.step(AHEAD)
            seen[bool(refiner)] = alone.step(AHEAD)[0]
        far = {refined: np.abs(second.astype(float) - video).mean() for refined, video in seen.items()}
        assert far[True] < 3 and far[False] > 10  # JPEG, and products round differently
        await visitor.say("go", moment=moments[1])
        await visitor.hears("jumped")
        await walk(visitor, "w", 1)
        assert np.array_equal(frames(2), second), "what it carries went back as well"


@run
async def test_futures_by_noise_differ_though_the_actions_do_not(opens):
    async with playing(WorldChoice(), opens) as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.say("futures", by="noises")
        told = await visitor.hears("futures")
        assert len({tuple(end) for end in told["ends"]}) == 1
        await visitor.until(lambda: len(visitor.futures) == told["frames"])
        assert len(set(visitor.futures[-1]["pictures"])) == 4


@run
async def test_a_saved_state_opens_and_one_of_another_world_is_refused(opens, tmp_path):
    async with playing(WorldChoice(), opens) as place, place.visitor() as visitor:
        id = (await visitor.hears("welcome"))["session"]
        await walk(visitor, "w", 1)
        async with place.http.get(f"{place.base}/of/{id}/save") as answer:
            saved = await answer.read()
        with zipfile.ZipFile(io.BytesIO(saved)) as file:
            state, about = file.read("state"), file.read("about.json")
        async with place.http.post(f"{place.base}/of/{id}/open", data=state) as answer:
            assert answer.status == 200, "WorldState.save alone"
        assert not (await visitor.hears("welcome", 2))["knowsTruth"]
        async with place.http.post(f"{place.base}/of/{id}/open", data=saved) as answer:
            assert answer.status == 200
        assert (await visitor.hears("welcome", 3))["knowsTruth"]
        middle = len(state) // 2
        broken = state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :]
        rooms = gym.make("SanaWM-Rooms-v0").unwrapped
        rooms.reset(seed=0)
        rooms.save_state().save(tmp_path / "rooms.npz")
        for data in (broken, (tmp_path / "rooms.npz").read_bytes(), archive(about_json=about, state=broken)):
            async with place.http.post(f"{place.base}/of/{id}/open", data=data) as answer:
                assert answer.status == 400
        await walk(visitor, "w", 1)


@run
async def test_a_picture_of_a_visitor_begins_a_walk(opens):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).save(out, "JPEG")
    async with playing(WorldChoice(), opens) as place, place.visitor() as visitor:
        id = (await visitor.hears("welcome"))["session"]
        address = f"{place.base}/of/{id}/picture?prompt=a%20red%20room"
        async with place.http.post(address + "&fov=700", data=out.getvalue()) as answer:
            assert answer.status == 400 and "field of view" in (await answer.json())["error"]
        async with place.http.post(address + "&fov=65", data=out.getvalue()) as answer:
            assert answer.status == 200, await answer.text()
        welcome = await visitor.hears("welcome", 2)
        assert welcome["caption"] == "a red room" and welcome["map"] is None and not welcome["knowsTruth"]
        await walk(visitor, "w", 1)


@run
async def test_an_agent_takes_over_and_a_key_takes_back():
    async with playing() as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.say("agent", name="orbit")
        assert (await visitor.hears("agent"))["name"] == "orbit"
        await visitor.sees(2)
        assert abs(visitor.frames[-1]["pose"][0, 3]) > 0.05, "orbit steps aside"
        await visitor.say("agent", name="cem")
        assert "SanaWM-Goal-v0" in (await visitor.hears("refused"))["text"]
        await visitor.hold("s")
        assert (await visitor.hears("agent", 2))["name"] is None
        await visitor.hold()
        await asyncio.sleep(0.2)


@pytest.mark.slow
@run
async def test_the_plan_of_a_planner_is_shown_as_pictures():
    async with playing(WorldChoice("SanaWM-Goal-v0")) as place, place.visitor() as visitor:
        welcome = await visitor.hears("welcome")
        assert welcome["task"] == "goal" and welcome["goal"].startswith("data:image/png")
        await visitor.say("agent", name="cem")
        plan = await visitor.hears("plan")
        values = [candidate["value"] for candidate in plan["candidates"]]
        assert len(values) == 4 and values == sorted(values, reverse=True)
        assert all(len(candidate["pictures"]) == 2 for candidate in plan["candidates"])
        await visitor.sees(1)
        assert {"distance_m", "angle_rad"} <= set(visitor.all("applied")[0]["task"])


@pytest.mark.slow
@run
async def test_a_policy_takes_over(tmp_path):
    pytest.importorskip("stable_baselines3", reason="the extra `agents` is not installed")
    from sana_wm_env.agents.choose import EnvConfig
    from sana_wm_env.agents.policy.ppo import PPOAgent
    from sana_wm_env.agents.policy.train_ppo import TrainConfig, train

    where = EnvConfig(env="SanaWM-RoomsGoal-v0", chunks=3, image_size=16)
    train(TrainConfig(where, out=tmp_path, steps=8, envs=2, rollout=4, batch=8, epochs=1))
    policy = tmp_path / "policy.zip"
    async with (
        playing(WorldChoice("SanaWM-RoomsGoal-v0"), policy=policy) as place,
        place.visitor() as visitor,
    ):
        await visitor.hears("welcome")
        assert "policy.zip" in visitor.all("hello")[0]["agents"]["ppo"]
        session = place.visitors.sessions[visitor.all("hello")[-1]["session"]]
        episode, env = session.env.episode, session.env
        seen = env.rules.observe(episode, env.newest_frame(episode)[None])
        wanted = PPOAgent.load(policy).act(seen, env)
        await visitor.say("agent", name="ppo")
        assert (await visitor.hears("agent"))["name"] == "ppo"
        await visitor.sees(2)
        path = env.rules.wish(episode, wanted)
        assert visitor.frames[FRAMES - 1]["pose"] == pytest.approx(path[-1], abs=1e-4)
        await visitor.hold("s")
        assert (await visitor.hears("agent", 2))["name"] is None
        await visitor.hold()


@pytest.mark.slow
@run
async def test_an_exported_walk_replays_exactly(opens, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="the extra `minari` is not installed")
    from sana_wm_env.minari import replay

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    async with playing(WorldChoice(), opens) as place, place.visitor() as visitor:
        await visitor.hears("welcome")
        await visitor.say("export")
        assert "walk first" in (await visitor.hears("refused"))["text"]
        await walk(visitor, "wl", 2)
        await visitor.say("export")
        told = await visitor.hears("exported")
    dataset = minari.load_dataset(told["dataset"])
    (played,) = replay(dataset)
    assert played.exact and played.steps == told["steps"]


@run
async def test_the_same_page_serves_the_exact_rooms():
    async with playing(WorldChoice("SanaWM-Rooms-v0")) as place, place.visitor() as visitor:
        hello, welcome = await visitor.hears("hello"), await visitor.hears("welcome")
        assert not hello["pictures"] and not welcome["knowsTruth"] and welcome["map"]["air"]
        await walk(visitor, "w", 1)
        await visitor.say("futures", by="noises")
        assert "only one" in (await visitor.hears("refused"))["text"]
        await visitor.say("start", room="held-out", seed=5, prompt=None)
        assert (await visitor.hears("welcome", 2))["room"] == "held-out"
