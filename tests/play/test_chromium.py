"""The page in a real browser: Debian's Chromium, driven by Playwright, on the bundled world."""

import os
import shutil
import subprocess
import sys
import time

import pytest

pytest.importorskip("aiohttp", reason="the extra `play` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
PATIENCE = 90
DESKTOP, PHONE = {"width": 1360, "height": 860}, {"width": 390, "height": 844}


def serve(*flags):
    command = [sys.executable, "-m", "sana_wm_env.cli", "play", "--port", "0", "--no-browser", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def address():
    """The first line that `sana-wm play` prints."""
    process = serve()
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """A visitor at a desk, before whom a walk lies."""
    yield from visit(chromium, address, viewport=DESKTOP)


def visit(chromium, address, **options):
    context = chromium.new_context(accept_downloads=True, **options)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda said: errors.append(f"{said.text} {said.location}") if said.type == "error" else None,
    )
    page.goto(address)
    until(page, "!document.getElementById('veil') || document.getElementById('veil').hidden")
    page.evaluate("play.link.tell({kind: 'start', room: 3, seed: 1, prompt: null})")
    until(page, "play.state.seed === 1 && play.state.pose && play.screen.epoch > 1")
    yield page
    assert not errors
    context.close()


def until(page, condition, patience=PATIENCE):
    """Waits until something is true in the page; `wait_for_function` would want what our policy forbids."""
    end = time.monotonic() + patience
    while not page.evaluate(f"!!({condition})"):
        assert time.monotonic() < end, f"never true: {condition}"
        time.sleep(0.05)


def shown(page):
    return page.evaluate("play.screen.log.length")


def pose(page):
    return page.evaluate("play.state.pose")


def walk(page, key, chunks=1):
    """Holds a key until so many more chunks have been begun, and waits until the camera stands."""
    before = page.evaluate("play.screen.log.length")
    page.keyboard.down(key)
    until(page, f"play.screen.log.length >= {before + 24 * (chunks - 1) + 2}")
    page.keyboard.up(key)
    stand(page)


def stand(page):
    """Waits until nothing is held, and the last chunk that was begun till then has been shown."""
    still = "!play.screen.current && play.screen.depth === 0"
    until(page, f"!play.keys.down.size && {still} && play.state.receipt?.seq === play.keys.seq")
    until(page, "play.screen.showing >= play.state.receipt.chunk - (play.state.receipt.take ? 0 : 1)")
    until(page, still)


def in_order(page):
    """Every frame once, in order, within each epoch."""
    log = page.evaluate("play.screen.log.map(([e, c, f]) => [e, 24 * c + f])")
    for epoch in {e for e, _ in log}:
        places = [place for e, place in log if e == epoch]
        assert places == list(range(places[0], places[0] + len(places)))


def pixels(page, canvas="imagined"):
    return page.evaluate(
        f"[...document.getElementById('{canvas}').getContext('2d').getImageData(0, 0, 64, 64).data].join()"
    )


def test_loading_is_told_within_two_seconds(chromium):
    process = serve()
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.goto(process.stdout.readline().strip())
        until(
            page, "/PyTorch|weights|chunk|Starting/.test(document.getElementById('veil-text').textContent)", 2
        )
        until(page, "document.getElementById('veil').hidden")
    finally:
        context.close()
        process.terminate()
        process.wait(20)


def test_walking_shows_each_frame_once_and_in_order(page):
    before = pose(page)
    walk(page, "s", 2)
    after = pose(page)
    assert after[11] < before[11] - 0.2, "s walks back"
    assert shown(page) >= 48
    in_order(page)
    assert page.evaluate("play.state.latency.length") >= 1


def test_the_mouse_turns(page):
    box = page.locator("#imagined").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(10):
        page.mouse.move(x - 12 * step, y)
        time.sleep(0.02)
    page.mouse.up()
    until(page, "play.state.pose[2] > 0.05")  # the heading has turned to the right
    stand(page)


def test_a_gamepad_walks_and_looks(page):
    """Chromium has no pad of its own here: the page is given one, at the place where it asks."""

    def tilt(*axes):
        pads = f"[null, {{connected: true, axes: {list(axes)}}}]"
        page.evaluate(f"navigator.getGamepads = () => {pads}")

    for axes, place in (((0.05, -1, 0, 0), 11), ((0, 0.05, 1, 0), 2)):  # ahead; the heading to the right
        before, there = shown(page), pose(page)
        tilt(*axes)
        until(page, f"play.screen.log.length >= {before + 2}")
        tilt(0, 0, 0, 0)
        until(page, "play.keys.axes().every((axis) => axis === 0)")
        stand(page)
        assert pose(page)[place] > there[place] + 0.1
        assert abs(pose(page)[3] - there[3]) < 0.02, "within its dead zone a stick moves nobody"


def test_a_tap_moves_the_next_chunk(page):
    before = pose(page)
    page.keyboard.press("d", delay=40)
    until(page, "play.screen.log.length >= 24")
    assert pose(page)[3] > before[3] + 0.05


def test_back_in_time_and_another_way(page):
    walk(page, "l", 2)
    first = pixels(page)
    moments = page.evaluate("play.strip.line().length")
    page.keyboard.press(",")
    until(page, f"play.strip.line().length === {moments - 1}")
    until(page, f"play.state.pose.join() === play.strip.line().at(-1).pose.join() || {moments} > 0")
    time.sleep(0.5)
    assert pixels(page) != first
    page.keyboard.press(".")
    until(page, f"play.strip.line().length === {moments}")
    time.sleep(0.5)
    assert pixels(page) == first, "forward again is where we were"
    page.keyboard.press(",")
    until(page, f"play.strip.line().length === {moments - 1}")
    walk(page, "j", 1)
    assert page.evaluate("play.strip.otherWays().length") == 1


def test_a_click_on_a_moment_goes_there(page):
    walk(page, "l", 2)
    page.locator(".moment").first.click()
    until(page, "play.strip.line().length === 1")


def test_four_futures_and_one_is_picked(page):
    page.keyboard.press("f")
    until(page, "play.futures.isOpen && play.futures.frames.length === play.futures.total")
    assert page.locator("#futures button").count() == 4
    page.locator("#futures button").nth(1).click()
    until(page, "!play.futures.isOpen && play.strip.line().length === 3")
    until(page, "play.state.pose[2] < -0.2")  # to the left
    page.keyboard.press("n")
    until(page, "play.futures.isOpen")
    page.keyboard.press("Escape")
    until(page, "!play.futures.isOpen")
    assert page.evaluate("play.strip.line().length") == 3


def test_truth_beside_the_imagination(page):
    page.keyboard.press("t")
    until(page, "!document.getElementById('truth-figure').hidden")
    time.sleep(0.3)
    assert pixels(page) == pixels(page, "truth"), "the first frame is the truth"
    walk(page, "l", 1)
    assert pixels(page) != pixels(page, "truth")
    page.keyboard.press("t")
    until(page, "document.getElementById('truth-figure').hidden")


def test_a_recording_comes_down_as_video_and_poses(page, tmp_path):
    page.keyboard.press("r")
    until(page, "play.state.recording")
    walk(page, "l", 1)
    names = []
    page.on("download", lambda download: names.append(download.suggested_filename))
    page.keyboard.press("r")
    until(page, "!play.state.recording")
    end = time.monotonic() + PATIENCE
    while len(names) < 2 and time.monotonic() < end:
        page.evaluate("0")  # lets Playwright hear of events
        time.sleep(0.1)
    assert sorted(names) == ["walk.mp4", "walk.npz"]


def test_a_saved_session_opens_again(page, tmp_path):
    walk(page, "l", 1)
    there = pose(page)
    with page.expect_download() as coming:
        page.locator("#save").click()
    coming.value.save_as(tmp_path / "walk.sana")
    walk(page, "j", 1)
    page.locator("#file").set_input_files(tmp_path / "walk.sana")
    until(page, "play.strip.line().length === 1 && document.getElementById('veil').hidden")
    assert pose(page) == pytest.approx(there, abs=1e-5)


def test_a_reload_in_mid_session_goes_on(page):
    walk(page, "l", 2)
    line, there, picture = page.evaluate("play.strip.line().length"), pose(page), pixels(page)
    page.reload()
    until(page, f"window.play && play.strip.line().length === {line} && play.state.pose")
    time.sleep(0.5)
    assert pose(page) == pytest.approx(there, abs=1e-5) and pixels(page) == picture
    walk(page, "l", 1)
    assert page.evaluate("play.strip.line().length") > line
    in_order(page)


def test_keys_in_a_text_field_stay_there(page):
    before = pose(page)
    page.locator("#prompt").click()
    page.keyboard.type("wasd f n r t")
    time.sleep(0.5)
    assert pose(page) == before and not page.evaluate("play.futures.isOpen || play.state.recording")
    assert "wasd" in page.locator("#prompt").input_value()


def test_a_lost_focus_lets_go(page):
    page.keyboard.down("l")
    until(page, "play.keys.down.size === 1")
    page.evaluate("dispatchEvent(new Event('blur'))")
    assert page.evaluate("play.keys.down.size") == 0
    page.keyboard.up("l")
    end = time.monotonic() + 6  # what had begun may come to its end
    while time.monotonic() < end:
        assert shown(page) <= 24, "nobody moves, nothing is imagined"
        time.sleep(0.2)


def test_auto_repeat_is_one_press(page):
    before = page.evaluate("play.keys.seq")
    page.keyboard.down("l")
    for _ in range(30):
        page.keyboard.down("l")  # Playwright says `repeat` for a key that is down
    assert page.evaluate("play.keys.seq") == before + 1
    page.keyboard.up("l")
    stand(page)


def test_the_keyboard_is_enough(page):
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement?.id || document.activeElement?.tagName"))
    wanted = {
        "imagined",
        "help-button",
        "prompt",
        "again",
        "agent",
        "hand",
        "pause",
        "back",
        "record",
        "strip",
    }
    assert wanted <= reached
    page.locator("body").evaluate("() => document.activeElement.blur()")
    walk(page, "l", 2)
    page.locator("#strip").focus()
    page.keyboard.press("ArrowLeft")
    moments = page.evaluate("play.strip.throughLine().length")
    until(page, f"play.strip.line().length === {moments - 1}")
    page.keyboard.press("h")
    until(page, "document.getElementById('help').open")
    page.keyboard.press("Escape")
    until(page, "!document.getElementById('help').open")
    page.locator("#rooms-button").focus()
    page.keyboard.press("Enter")
    until(page, "document.getElementById('rooms').open")
    assert page.locator("#room-list button").count() == 49
    page.keyboard.press("Escape")


def test_everything_has_a_name_for_a_screen_reader(page):
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, canvas, [role]')]
        .filter((e) => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
          || e.labels?.length || e.textContent.trim() || e.type === 'file'
          || ['status', 'alert'].includes(e.getAttribute('role'))))
        .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"
    walk(page, "l", 1)
    strip = page.locator("#strip")
    assert int(strip.get_attribute("aria-valuenow")) >= 1
    assert "moment" in strip.get_attribute("aria-valuetext")
    until(page, "/m ahead/.test(document.getElementById('imagined').getAttribute('aria-label'))")


def test_a_phone_walks_by_touch(chromium, address):
    options = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    for page in visit(chromium, address, **options):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        box = page.locator("#stick").bounding_box()
        assert box and box["y"] + box["height"] <= PHONE["height"]
        before = pose(page)
        page.evaluate(
            """() => {
              const stick = document.getElementById('stick');
              const box = stick.getBoundingClientRect();
              const at = (type, x, y) => new PointerEvent(type, {
                pointerId: 1, pointerType: 'touch', isPrimary: true,
                clientX: box.left + x * box.width, clientY: box.top + y * box.height});
              stick.setPointerCapture = () => {};
              stick.hasPointerCapture = () => true;
              stick.dispatchEvent(at('pointerdown', 0.5, 0.5));
              stick.dispatchEvent(at('pointermove', 0.5, 0.95));
            }"""
        )
        until(page, "play.screen.log.length >= 24")
        page.evaluate("document.getElementById('stick').dispatchEvent(new PointerEvent('pointerup'))")
        assert pose(page)[11] < before[11] - 0.1, "the stick walks back"
        stand(page)


def test_less_motion_where_it_is_wished(chromium, address):
    for page in visit(chromium, address, viewport=DESKTOP, reduced_motion="reduce"):
        seconds = page.evaluate("getComputedStyle(document.querySelector('.ring')).animationDuration")
        assert float(seconds.removesuffix("s")) >= 4
