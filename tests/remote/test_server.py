"""Who may come in, how much they may have, and what nonsense does: nothing."""

import shutil
import ssl
import threading
import time

import gymnasium as gym
import msgspec
import numpy as np
import pytest

for library in ("websockets", "msgspec", "prometheus_client"):
    pytest.importorskip(library, reason="needs the extra remote")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from remote_here import ALICE, BOB, Serving  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from sana_wm_env.cli import main  # noqa: E402
from sana_wm_env.env import SanaWMEnv  # noqa: E402
from sana_wm_env.remote import wire  # noqa: E402
from sana_wm_env.remote.client import RemoteWorld, SessionLost  # noqa: E402
from sana_wm_env.remote.session import Limits  # noqa: E402

STILL = np.zeros(6, np.float32)


@pytest.fixture(scope="module")
def weights():
    env = SanaWMEnv()
    env.model  # noqa: B018
    return env


@pytest.fixture(scope="module")
def serving(weights):
    with Serving(weights) as running:
        yield running


def link(serving, token=ALICE):
    return connect(
        serving.address + wire.LINK,
        additional_headers={"Authorization": f"Bearer {token}"},
        max_size=None,
        compression=None,
    )


def answer(connection):
    return wire.read_server(connection.recv(30))


def hello(connection, session=None):
    connection.send(wire.encode(wire.Hello(wire.PROTOCOL, session)))
    return answer(connection)


def ask(connection, number, call, **more):
    connection.send(wire.encode(wire.Request(number, call, **more)))
    return answer(connection)


def make(serving, token=ALICE, **options):
    return gym.make("SanaWM-v0", world=RemoteWorld(serving.address, token, patience_s=5), **options)


# ---- tokens


@pytest.mark.parametrize("token", ["", "wrong-token-of-the-right-length", ALICE[:-1], ALICE + "x"])
def test_a_wrong_token_is_refused(serving, token, monkeypatch):
    monkeypatch.delenv("SANA_WM_TOKEN", raising=False)
    with pytest.raises(PermissionError if token else ValueError, match="token"):
        RemoteWorld(serving.address, token, patience_s=5)
    assert serving.get("/metrics", token)[0] == 401


@pytest.mark.parametrize(
    "address",
    ["http://here", "ws://", "wss://", "ws://a:0", "ws://a:99999", "ws://me:secret@a", "here", 3, None],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="wanted wss://host:port"):
        RemoteWorld(address, ALICE)


def test_two_tokens_do_not_see_each_other(serving):
    one, other = make(serving), make(serving, BOB)
    one.reset(seed=1), other.reset(seed=2)
    theirs = one.unwrapped.remote
    number = one.unwrapped.episode.state.held.number
    with link(serving, BOB) as bob:
        refused = hello(bob, theirs.session)  # even whoever has read its name
        assert isinstance(refused, wire.Failure) and "does not know this session" in refused.text
    with link(serving, BOB) as bob:
        assert isinstance(hello(bob), wire.Welcome)
        calls = (
            wire.Save(number, {}),
            wire.Step([number], wire.to_wire(np.tile(np.eye(4), (1, 24, 1, 1)))),
            wire.Branch(number, 1),
            wire.Start(number, (1, 2, 3)),
        )
        for place, call in enumerate(calls, 1):
            reply = ask(bob, place, call)
            assert reply.answer.kind == "LookupError"
        bob.send(wire.encode(wire.Goodbye()))
    one.step(STILL), other.step(STILL)
    one.close(), other.close()


def test_a_page_of_a_browser_may_not_connect(serving):
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus, match="403"):
        connect(
            serving.address + wire.LINK,
            additional_headers={"Authorization": f"Bearer {ALICE}"},
            origin="https://elsewhere.example",
        ).__enter__()


# ---- limits


def test_sessions_of_a_token_are_counted(weights):
    with Serving(weights, Limits(sessions=2)) as serving:
        kept = [RemoteWorld(serving.address, ALICE) for _ in range(2)]
        with pytest.raises(MemoryError, match="2 open sessions"):
            RemoteWorld(serving.address, ALICE)
        RemoteWorld(serving.address, BOB).close()  # another's are another's
        kept[0].close()
        until(lambda: serving.server.snapshot().sessions == 1)
        RemoteWorld(serving.address, ALICE).close()


def test_a_client_that_was_killed_makes_room_for_a_new_one(weights):
    with Serving(weights, Limits(sessions=2)) as serving:
        kept = make(serving)
        kept.reset(seed=1)
        for _ in range(3):
            killed = RemoteWorld(serving.address, ALICE)
            killed._hang_up()
            until(lambda: serving.server.snapshot().connections == 1)
        kept.step(STILL)
        kept.close()


def test_states_of_a_token_are_counted(weights):
    state_bytes = Serving(weights).worker.state_bytes()
    with Serving(weights, memory_bytes=3 * state_bytes + 1) as serving:
        env = make(serving)
        env.reset(seed=1)
        env.step(STILL)
        kept = env.unwrapped.fork(2, independent_noise=True)  # three with its own
        with pytest.raises(MemoryError, match="3 states"):
            env.step(STILL)
        assert env.unwrapped.episode.chunk_index == 1
        with pytest.raises(MemoryError):
            env.unwrapped.imagine(np.zeros((1, 1, 6), np.float32))
        kept.close()
        del kept
        env.step(STILL)  # there is room again
        env.close()


def test_a_session_is_kept_for_a_while(weights):
    with Serving(weights, Limits(keep_s=0.4)) as serving:
        env = make(serving)
        env.reset(seed=1)
        env.unwrapped.remote._hang_up()  # a cut
        env.step(STILL)
        env.unwrapped.remote._hang_up()
        until(lambda: serving.server.snapshot()[:2] == (0, 0))
        with pytest.raises(SessionLost, match="does not know this session any more"):
            env.step(STILL)
        env.reset(seed=1)
        env.step(STILL)
        env.close()


def test_a_message_that_is_too_long_ends_the_connection_alone(weights):
    with Serving(weights, Limits(message_bytes=2**16)) as serving:
        env = make(serving)
        env.reset(seed=1)
        with link(serving) as other:
            hello(other)
            other.send(wire.encode(wire.Request(1, wire.Restore(bytes(2**17)))))
            with pytest.raises(ConnectionClosed):
                other.recv(10)
        env.step(STILL)
        env.close()


def test_calls_come_one_at_a_time_and_in_order(serving):
    with link(serving) as connection:
        hello(connection)
        prepared = ask(connection, 1, wire.Prepare()).answer.numbers[0]
        again = ask(connection, 1, wire.Prepare())
        assert again.answer.numbers == [prepared]  # the same answer, not the same again
        state = ask(connection, 2, wire.Start(prepared, (1, 2, 3))).answer.state
        for number in (1, 4, 0, -1):
            with link(serving) as one:
                session = hello(one).session
                ask(one, 1, wire.Prepare()), ask(one, 2, wire.Prepare())
                reply = ask(one, number, wire.Prepare())
                assert isinstance(reply, wire.Failure) and "wanted 3, or 2 once more" in reply.text
                with pytest.raises(ConnectionClosed):
                    one.recv(10)
            with link(serving) as one:  # the session has taken no harm
                assert hello(one, session).session == session
                assert ask(one, 3, wire.Prepare()).number == 3
                one.send(wire.encode(wire.Goodbye()))
        step = wire.Step([state], wire.to_wire(np.tile(np.eye(4), (1, 24, 1, 1))))
        for number in (3, 4, 5, 6):
            connection.send(wire.encode(wire.Request(number, step)))
        with pytest.raises(ConnectionClosed):
            while True:
                reply = answer(connection)
        assert isinstance(reply, wire.Failure) and "one at a time" in reply.text


def test_a_step_that_runs_when_the_line_is_cut_is_not_run_again(serving):
    with link(serving) as connection:
        session = hello(connection).session
        prepared = ask(connection, 1, wire.Prepare()).answer.numbers[0]
        state = ask(connection, 2, wire.Start(prepared, (1, 2, 3))).answer.state
        before = serving.metric("sana_wm_chunks_total")
        step = wire.Request(3, wire.Step([state], wire.to_wire(np.tile(np.eye(4), (1, 24, 1, 1)))))
        connection.send(wire.encode(step))
        connection.close_socket()
    with link(serving) as connection:
        hello(connection, session)
        connection.send(wire.encode(step))
        assert isinstance(answer(connection).answer, wire.Stepped)
        assert serving.metric("sana_wm_chunks_total") == before + 1
        connection.send(wire.encode(wire.Goodbye()))


def test_a_call_of_a_session_that_ends_meanwhile_keeps_nothing(weights):
    with Serving(weights) as serving, link(serving) as connection:
        hello(connection)
        prepared = ask(connection, 1, wire.Prepare()).answer.numbers[0]
        state = ask(connection, 2, wire.Start(prepared, (1, 2, 3))).answer.state
        step = wire.Step([state], wire.to_wire(np.tile(np.eye(4), (1, 24, 1, 1))))
        connection.send(wire.encode(wire.Request(3, step)))
        time.sleep(0.03)  # it is under way
        connection.send(wire.encode(wire.Goodbye()))
        after = make(serving)
        after.reset(seed=1)  # the world does one call after the other, so that one is over
        after.unwrapped.remote.close()
        until(lambda: serving.server.snapshot()[:2] == (0, 0))


def test_users_take_turns(serving):
    slow = make(serving)
    slow.reset(seed=1)
    quick = make(serving, BOB)
    quick.reset(seed=2)
    imagined = threading.Thread(target=slow.unwrapped.imagine, args=(np.zeros((2, 8, 6), np.float32),))
    imagined.start()
    for _ in range(3):
        quick.step(STILL)
    assert imagined.is_alive()  # three steps of one while eight chunks of the other are played
    imagined.join()
    slow.close(), quick.close()


# ---- pages


def test_health_and_metrics(serving):
    status, text = serving.get("/health", token=None)
    assert status == 200 and msgspec.json.decode(text)["stage"] == "ready"
    env = make(serving)
    env.reset(seed=1)
    env.step(STILL)
    status, text = serving.get("/metrics")
    assert status == 200
    for line in ('sana_wm_calls_total{call="Step",outcome="done"}', "sana_wm_sessions ", "sana_wm_states "):
        assert line in text
    assert ALICE not in text and env.unwrapped.remote.session not in text
    env.close()
    assert serving.get("/elsewhere")[0] == 404


# ---- nonsense


NOISE = st.binary(max_size=200)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | NOISE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ARRAY = st.tuples(
    st.sampled_from([*wire.DTYPES, "object", "float16"]), st.lists(st.integers(-1, 2**33), max_size=5), NOISE
)
NUMBER = st.integers(-2, 5) | ANYTHING
FIELDS = {
    **dict.fromkeys(("room", "prompt", "refine", "show", "own_noise"), ANYTHING),
    **dict.fromkeys(("prepared", "state", "n", "playing", "first"), NUMBER),
    **dict.fromkeys(("image", "c2w", "frames"), ARRAY),
    **dict.fromkeys(("seeds", "states"), st.lists(NUMBER, max_size=4)),
    "intrinsics": ARRAY | ANYTHING,
    "task": st.dictionaries(st.text(max_size=4), ARRAY, max_size=2),
    "data": NOISE,
}
NAMES = st.sampled_from([kind.__name__ for kind in wire.Call.__args__]) | st.text(max_size=6)
CALL = st.fixed_dictionaries({"type": NAMES}, optional=FIELDS)
REQUEST = st.fixed_dictionaries(
    {"type": st.just("Request"), "number": st.integers(0, 3), "call": CALL | ANYTHING},
    optional={"forget": st.lists(NUMBER, max_size=3), "abandoned": ANYTHING},
)
MESSAGE = NOISE | (ANYTHING | REQUEST).map(msgspec.msgpack.encode)
"""Messages that are nearly right, and bytes that are not at all."""


@pytest.mark.heavy
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(MESSAGE, min_size=1, max_size=3))
def test_nonsense_is_answered_or_hung_up_on_and_nobody_else_feels_it(serving, sent):
    env = _bystander(serving)
    before = serving.server.snapshot()
    with link(serving, BOB) as connection:
        assert isinstance(hello(connection), wire.Welcome)
        try:
            for data in sent:
                connection.send(data)
                answer(connection)  # a reply, or why not
            connection.send(wire.encode(wire.Goodbye()))
        except ConnectionClosed:
            pass
    assert serving.server.stage == "ready" and not failed(serving)
    if int(time.monotonic() * 10) % 8 == 0:
        env.step(STILL)
    assert serving.server.snapshot().states <= before.states + 8


def failed(serving) -> float:
    """Calls that ended by an error that nobody had thought of."""
    samples = next(iter(serving.server.metrics.calls.collect())).samples
    return sum(one.value for one in samples if one.labels.get("outcome") == "failed" and "total" in one.name)


def _bystander(serving):
    if not hasattr(serving, "bystander"):
        serving.bystander = make(serving)
        serving.bystander.reset(seed=1)
    return serving.bystander


@pytest.mark.heavy
def test_damaged_messages_are_refused(serving):
    """A step of which bytes were flipped or cut off: refused, or another step that is right."""
    draw = np.random.default_rng(0)
    answered = hung_up = 0
    for _ in range(300):
        with link(serving, BOB) as connection:
            hello(connection)
            prepared = ask(connection, 1, wire.Prepare()).answer.numbers[0]
            state = ask(connection, 2, wire.Start(prepared, (1, 2, 3))).answer.state
            step = wire.Step([state], wire.to_wire(np.tile(np.eye(4), (1, 24, 1, 1))))
            data = bytearray(wire.encode(wire.Request(3, step)))
            for place in draw.integers(0, len(data), draw.integers(1, 4)):
                data[place] = draw.integers(256)
            connection.send(bytes(data[: draw.integers(1, 2 * len(data))]))
            try:
                reply = answer(connection)
            except ConnectionClosed:
                reply = None
            answered, hung_up = answered + isinstance(reply, wire.Reply), hung_up + (reply is None)
            hung_up += isinstance(reply, wire.Failure)
    assert answered + hung_up == 300 and answered and hung_up and not failed(serving)
    env = make(serving, BOB)
    env.reset(seed=0)
    env.step(STILL)
    env.close()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (wire.Array("object", [1], b""), "object"),
        (wire.Array("float64", [2], b"12345678"), "8 bytes for"),
        (wire.Array("float64", [-1], b""), "shape"),
        (wire.Array("uint8", [2**31], b""), "shape"),
        (wire.Array("uint8", [2**30, 2**30, 2**30, 2**30, 2**30], b""), "0 bytes for"),
        (wire.Array("uint8", [1] * 9, b"1"), "shape"),
    ],
)
def test_what_is_no_array_is_refused_before_memory_is_taken(array, message):
    with pytest.raises(ValueError, match=message):
        wire.from_wire(array)


@pytest.mark.parametrize("dtype", wire.DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (1, 2, 3, 4)])
def test_arrays_cross_unchanged(dtype, shape):
    given = (np.random.default_rng(0).random(shape) * 2).astype(dtype)
    crossed = wire.from_wire(wire.to_wire(given), dtype, shape)
    assert np.array_equal(crossed, given) and crossed.dtype == given.dtype
    if crossed.size:
        crossed[...] = 0  # its own memory


# ---- TLS


def test_a_certificate_that_is_not_trusted_is_refused(weights, tmp_path, monkeypatch):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Serving(weights, tls=context) as serving:
        with pytest.raises(ConnectionError, match="SSL_CERT_FILE"):
            RemoteWorld(serving.address, ALICE, patience_s=5)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        env = make(serving)
        env.reset(seed=1)
        env.step(STILL)
        env.close()


def until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_world_that_cannot_be_loaded_ends_the_command(weights, tmp_path, capsys):
    broken = shutil.copytree(weights.model_folder, tmp_path / "broken")
    with open(broken / "transformer.safetensors", "r+b") as file:
        file.truncate(4096)
    assert main(["serve", "--world", str(broken), "--port", "0"]) == 2
    assert "transformer.safetensors" in capsys.readouterr().err
