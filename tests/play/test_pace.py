"""When chunks are begun: as late as possible, and never more than one ahead of the page."""

from hypothesis import given
from hypothesis import strategies as st

from sana_wm_env.play.pace import (
    CHUNK_SECONDS,
    Pace,
    hear_begun,
    hear_ended,
    measure,
    next_in,
    next_stride,
    restart,
)


def test_from_rest_the_next_chunk_begins_at_once():
    assert next_in(Pace(), 5.0) == 0


def test_while_a_chunk_waits_at_the_page_none_is_begun():
    assert next_in(Pace(sent=2, begun=1, ended=1), 5.0) is None


def test_the_next_chunk_begins_as_late_as_it_takes():
    pace = measure(Pace(sent=1, begun=1, begun_at=10.0), 0.2)
    wait = next_in(pace, 10.0)
    assert wait is not None and abs(wait - (CHUNK_SECONDS - pace.lead)) < 1e-9
    assert 0.2 < pace.lead < 0.3
    assert next_in(pace, 11.4) == 0


def test_a_slow_world_begins_as_soon_as_the_last_chunk_is_shown():
    pace = measure(Pace(sent=1, begun=1, begun_at=10.0), 3.0)
    assert next_in(pace, 10.0) == 0


def test_what_was_not_sent_is_not_shown():
    pace = Pace(sent=3, begun=2, ended=2)
    assert hear_begun(pace, 4, 1.0) == pace
    assert hear_ended(pace, 9, 1.0) == pace
    assert hear_begun(pace, 1, 1.0) == pace


def test_the_end_of_a_chunk_says_that_it_was_begun():
    pace = hear_ended(Pace(sent=3, begun=2, ended=2), 3, 1.0)
    assert (pace.begun, pace.ended) == (3, 3)


def test_a_jump_forgets_the_chunks_and_keeps_the_measurements():
    pace = restart(measure(Pace(sent=9, begun=8), 0.5), 4)
    assert (pace.sent, pace.begun, pace.ended, pace.took) == (4, 4, 4, (0.5,))


def test_a_page_that_falls_behind_gets_fewer_frames_and_then_more_again():
    stride, good = next_stride(1, 2.5, 3)
    assert (stride, good) == (2, 0)
    for _ in range(20):
        stride, good = next_stride(stride, 9.0, good)
    assert stride == 6
    for _ in range(40):
        stride, good = next_stride(stride, 1.5, good)
    assert stride == 1


@given(st.lists(st.tuples(st.sampled_from(["begun", "ended"]), st.integers(0, 60), st.floats(0, 5))))
def test_whatever_a_page_says_at_most_one_chunk_waits(said):
    pace, now = Pace(), 0.0
    for kind, chunk, seconds in said:
        now += seconds
        pace = (hear_begun if kind == "begun" else hear_ended)(pace, chunk, now)
        if next_in(pace, now) == 0:
            assert pace.sent - pace.begun == 0
            pace = Pace(pace.sent + 1, pace.begun, pace.begun_at, pace.ended, pace.took)
        assert pace.ended <= pace.begun <= pace.sent <= pace.begun + 1
