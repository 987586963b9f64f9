"""Worlds whose right figures are known: one that knows the truth, and one that never moves."""

from sana_wm_env.model.world import World
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.paths import sample_starts
from sana_wm_env.rooms.render import render
from sana_wm_env.rooms.scene import sample_scenes

SIZE = (32, 32)


class Config:
    image_size = SIZE


class LosslessAutoencoder:
    def encode(self, video):
        return video

    def decode(self, latents):
        return latents, None


class Oracle(World):
    """Renders what it is asked to imagine: the noise generator's seed tells the room."""

    config, autoencoder, frames_per_step = Config(), LosslessAutoencoder(), 24

    def start(self, images, intrinsics_px, prompts, generators):
        seeds = [generator.initial_seed() for generator in generators]
        scenes = sample_scenes(seeds)
        assert prompts == scenes.captions
        return scenes, sample_starts(scenes, seeds)

    def step(self, state, c2w, sigmas=None):
        scenes, starts = state
        return render(scenes, starts[:, None] @ c2w, default_intrinsics(SIZE), SIZE).rgb, state


class Still(Oracle):
    """Never moves."""

    def start(self, images, intrinsics_px, prompts, generators):
        return images

    def step(self, state, c2w, sigmas=None):
        return state[:, None].expand(-1, 24, -1, -1, -1), state
