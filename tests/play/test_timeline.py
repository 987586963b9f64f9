"""Moments: a tree that can be gone back in, and memory that stays under its cap."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sana_wm_env.model.tree import places_of
from sana_wm_env.play.timeline import GONE, NEWEST, Timeline, choose_to_thin


def walk(timeline, chunks):
    first = timeline.now.chunk + 1 if timeline.moments else 0
    for chunk in range(first, first + chunks):
        own = {object(): 1}
        timeline.add(chunk=chunk, c2w=np.eye(4), thumbnail=b"", places=own, episode=object())
        timeline.thin()
    return timeline


def test_a_line_leads_from_the_start_to_the_present():
    timeline = walk(Timeline(), 4)
    assert [moment.chunk for moment in timeline.line()] == [0, 1, 2, 3]


def test_who_goes_back_and_on_branches():
    timeline = walk(Timeline(), 4)
    timeline.present = 1
    walk(timeline, 2)
    assert [moment.id for moment in timeline.line()] == [0, 1, 4, 5]
    assert [moment.id for moment in timeline.line(3)] == [0, 1, 2, 3]


def test_undo_returns_to_the_moment_before():
    timeline = walk(Timeline(), 3)
    assert timeline.undo().id == 1
    assert timeline.present == 1 and 2 not in timeline.moments
    walk(timeline, 1)
    assert timeline.now.id == 3, "an id never comes back"


def test_pictures_of_moments_that_have_just_gone_can_still_be_had():
    timeline = walk(Timeline(), GONE + 3)
    picture = timeline.now.thumbnail
    timeline.undo()
    assert timeline.thumbnail(GONE + 2) == picture and timeline.thumbnail(0) == timeline.moments[0].thumbnail
    timeline.clear()
    assert timeline.thumbnail(GONE + 1) is not None, "the last of them"
    assert timeline.thumbnail(0) is None and timeline.thumbnail(10**6) is None


def test_states_stay_under_the_cap_and_the_newest_and_the_start_stay():
    timeline = walk(Timeline(cap=20), 200)
    kept = [moment.chunk for moment in timeline.line() if moment.is_kept]
    assert timeline.nbytes <= 20
    assert kept[0] == 0 and kept[-NEWEST:] == list(range(200 - NEWEST, 200))
    gaps = np.diff(kept)
    assert gaps[:4].mean() > 4 * gaps[-NEWEST:].mean(), f"the older the thinner: {kept}"


def test_what_states_share_counts_once():
    timeline, sink, chunks = Timeline(), torch.zeros(1, 100), [torch.zeros(1, 10) for _ in range(5)]
    for chunk, newest in enumerate(chunks):
        state = (sink, *chunks[max(0, chunk - 1) : chunk], newest)
        timeline.add(chunk=chunk, c2w=np.eye(4), thumbnail=b"", places=places_of(state), episode=object())
    assert timeline.nbytes == 4 * (100 + 5 * 10)
    timeline.moments[4].episode = None
    assert timeline.nbytes == 4 * (100 + 4 * 10), "the fourth state holds the third chunk, too"


def test_thumbnails_and_poses_of_thinned_moments_stay():
    timeline = walk(Timeline(cap=10), 50)
    assert len(timeline.moments) == 50


def test_going_to_a_thinned_moment_goes_to_the_last_one_before_it():
    timeline = walk(Timeline(cap=10), 50)
    gone = next(moment.id for moment in timeline.line() if not moment.is_kept)
    kept = timeline.nearest_kept(gone)
    assert kept.is_kept and kept.id < gone
    assert not any(timeline.moments[i].is_kept for i in range(kept.id + 1, gone + 1))


def test_an_unknown_moment_is_named():
    with pytest.raises(KeyError):
        walk(Timeline(), 3).nearest_kept(99)


@given(st.integers(1, 12), st.integers(1, 80), st.lists(st.integers(0, 60), max_size=4))
def test_whatever_is_walked_the_present_can_be_gone_on_from(cap, chunks, jumps):
    timeline = walk(Timeline(cap=max(cap, NEWEST + 1)), chunks)
    for jump in jumps:
        timeline.present = timeline.nearest_kept(jump % len(timeline.moments)).id
        walk(timeline, 5)
    assert timeline.now.is_kept and timeline.nbytes <= max(cap, 2 * NEWEST + 6)


def test_the_smallest_gap_for_its_age_goes_first():
    assert choose_to_thin([0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3]) == 1
    assert choose_to_thin([0, 4, 5, 6, 7], [4, 5]) == 5
