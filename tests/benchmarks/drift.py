"""How far a network drifts on its own past: python tests/benchmarks/drift.py WEIGHTS.safetensors ...

Latent error by chunk, in dB below unit variance (mean over paths), in home and in held-out rooms: each chunk
on the true past, and on what was imagined. The same paths and noise for all weights, so small gains show. The
autoencoder, the text encoder, the levels and the window of the softmax blocks are those of the bundled world.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from sana_wm_env.evaluation.episodes import draw_episodes
from sana_wm_env.model.base import as_video
from sana_wm_env.model.camera_inputs import camera_inputs
from sana_wm_env.model.network.execution import chunk_spans
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import sample_chunk
from sana_wm_env.model.storage.tensors import read_tensors
from sana_wm_env.model.world import WorldModel
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.render import render
from sana_wm_env.train.data.latents import Window
from sana_wm_env.train.growth import depth_of
from sana_wm_env.train.precision import prepare_network

PATHS, CHUNKS, SEED, SIZE = 16, 12, 5000, (64, 64)


def draw(world: WorldModel, rooms: str) -> Window:
    """True latents and cameras of paths through rooms."""
    episodes = draw_episodes(PATHS, CHUNKS, SEED, rooms)
    intrinsics = torch.tensor(default_intrinsics(SIZE)).expand(PATHS, 4)
    video = render(episodes.scenes, episodes.path, intrinsics, SIZE).rgb
    latents = torch.cat([world.autoencoder.encode(as_video(v[None])) for v in video])
    latents[:, :, :1] = torch.cat([world.autoencoder.encode(as_video(v[None, :1])) for v in video])
    c2w = (torch.linalg.inv(episodes.path[:, :1]) @ episodes.path).float()
    cameras = camera_inputs(c2w, intrinsics, SIZE, (8, 8), True)
    return Window(latents.float(), *cameras, *world.text_encoder.encode(episodes.scenes.captions))


def measure(network: Transformer, window: Window, sigmas: tuple[float, ...], own_past: bool) -> list[float]:
    """Error of each chunk in dB."""
    text, state, errors = network.text_context(window.text, window.text_mask), None, []
    generator = torch.Generator().manual_seed(0)
    for begin, end in chunk_spans(window.latents.shape[2], network.config.chunk):
        truth = window.latents[:, :, begin:end]
        cameras = network.camera_context(window.camera[:, begin:end], window.plucker[:, :, begin:end], begin)
        image = truth[:, :, :1] if state is None else None
        noise = torch.randn(truth.shape, generator=generator)
        made = sample_chunk(network, noise, text, cameras, state, image, sigmas)
        error = (made - truth)[:, :, 0 if image is None else 1 :].square().mean((1, 2, 3, 4))
        errors.append(float(-10 * error.log10().mean()))
        state = network.commit(made if own_past else truth, text, cameras, state)
    return errors


@torch.no_grad()
def main() -> None:
    world = WorldModel.load("tiny-rooms")
    windows = {rooms: draw(world, rooms) for rooms in ("home", "held-out")}
    for path in map(Path, sys.argv[1:]):
        weights = read_tensors(path, "wanted the weights of a transformer")
        config = replace(world.config.transformer, depth=depth_of(weights))
        network = prepare_network(Transformer(config), "auto", "cpu", False)
        network.load_state_dict(network.state_dict() | {k: v.float() for k, v in weights.items()})
        for rooms, window in windows.items():
            for own_past in (False, True):
                errors = measure(network, window, world.config.sigmas, own_past)
                row = " ".join(f"{error:5.1f}" for error in errors)
                past = "own" if own_past else "true"
                print(
                    f"{path.name} {rooms:8} {past:4} past {row}  mean {sum(errors) / CHUNKS:.2f}", flush=True
                )


if __name__ == "__main__":
    main()
