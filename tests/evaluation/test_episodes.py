"""How the sessions of an evaluation begin."""

import pytest
import torch
from known_worlds import SIZE

from sana_wm_env.evaluation.episodes import draw_episodes, open_sessions
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.render import render


class Watcher:
    """Keeps what it is shown."""

    class config:
        image_size, looks_around = SIZE, True

    def start(self, images, intrinsics_px, prompts, generators):
        assert len(images) == len(intrinsics_px) == len(prompts) == len(generators)
        return [images]

    def observe(self, state, frames, c2w):
        return [*state, frames, c2w]


@pytest.mark.parametrize("rooms", ["home", "held-out"])
def test_a_world_that_looks_around_does_so_at_home_alone(rooms):
    episodes, lens = draw_episodes(3, 1, 5, rooms), torch.tensor(default_intrinsics(SIZE))
    starts = episodes.path[:, 0]
    first = render(episodes.scenes, episodes.path[:, :1], lens.expand(3, 4), SIZE).rgb[:, 0]
    pictures, *seen = open_sessions(Watcher(), episodes, starts, first, lens)
    assert torch.equal(pictures, first)
    if rooms == "held-out":
        assert not seen
        return
    frames, c2w = seen
    assert frames.shape == (3, 120, *SIZE, 3) and c2w.shape == (3, 120, 4, 4)
    exact = render(episodes.scenes, starts[:, None] @ c2w, lens.expand(3, 4), SIZE).rgb
    assert (frames.int() - exact.int()).abs().float().mean() < 0.1
    assert torch.equal(frames[:, -1], first), "it ends where the session begins"
