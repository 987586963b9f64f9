"""Base of the stages of the transformer: flow matching on clips, each under an execution rule and noise
levels of its own.

SANA-WM section 3.1 and the released recipe: x = (1 - sigma) clean + sigma noise, the network learns
v = noise - clean, the first frame is clean and not scored with probability 0.9, captions are dropped with
probability 0.1.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sana_wm_env.model.codecs.autoencoder import TEMPORAL_STRIDE
from sana_wm_env.model.codecs.text import TextEncoderConfig
from sana_wm_env.model.config import TransformerConfig, preset
from sana_wm_env.model.network.execution import Rule
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import STREAMING_SIGMAS, euler
from sana_wm_env.model.storage.tensors import read_tensors
from sana_wm_env.model.storage.weights import is_unused
from sana_wm_env.model.storage.worlds import CONFIG, is_bundled
from sana_wm_env.model.world import WorldModel
from sana_wm_env.settings import check_settings

from .autoencoder import load_trained
from .data.latents import LatentClips, Window, encoded_rooms
from .data.source import OwnData, read_own
from .growth import deepen
from .levels import LEVELS, logit_normal, sigma_of
from .loop import LoopConfig, load_average
from .parallel import RankSegment, context_group
from .precision import prepare_network
from .stage import Stage

IMAGE_GIVEN = 0.9


@dataclass(frozen=True)
class FlowConfig:
    """Settings of all stages of the transformer.

    Attributes:
        world: name of a preset; the run lives in runs/WORLD/NAME.
        name: folder of the run; the stage's own name if not given. Gives a second phase of a stage, longer
            clips say, a place of its own.
        loop: steps, batch, rates, see LoopConfig.
        init_from: stage whose averaged weights this one begins with, or a world, by bundled name or by
            folder, or a safetensors file of a transformer's weights ("": from scratch). Fewer blocks than the
            preset's are enough.
        runs: folder of all runs; rooms are rendered into runs/data and encoded by the autoencoder of
            runs/WORLD/autoencoder.
        own: what to train on in place of rooms, see OwnData.
        shards: clip files to train on, each 32 clips of 97 frames in rooms that are seen once.
        home_shards: clip files at home, likewise, in the 48 rooms that the world is to know by heart.
        sessions: files of sessions to train on as well, each 4 of 961 frames.
        home_sessions: files of sessions at home.
        returns: files of sessions that keep going back on their steps, each 4 of 961 frames.
        home_returns: files of such sessions at home.
        frames: latent frames per clip, 3k + 1.
        shift: flow shift of the noise levels.
    """

    world: str = "rooms"
    name: str = ""
    loop: LoopConfig = field(default_factory=LoopConfig)
    init_from: str = ""
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    runs: Path = Path("runs")
    own: OwnData = field(default_factory=OwnData)
    shards: int = 64
    home_shards: int = 0
    sessions: int = 0
    home_sessions: int = 0
    returns: int = 0
    home_returns: int = 0
    size: tuple[int, int] = (64, 64)
    frames: int = 4
    shift: float = 9.95
    stage: ClassVar[str]

    def __post_init__(self) -> None:
        counts = ("shards", "home_shards", "sessions", "home_sessions", "returns", "home_returns")
        numbers = dict.fromkeys(counts, "[0, inf)")
        check_settings(self, size="[8, 4096]", frames="[1, inf)", shift="(0, inf)", **numbers)

    @property
    def home(self) -> Path:
        """Folder of the run."""
        return self.runs / self.world / (self.name or self.stage)

    @property
    def clip_files(self) -> dict[str, int]:
        """Clip files to train on, by kind."""
        return {
            "clips": self.shards,
            "home-clips": self.home_shards,
            "sessions": self.sessions,
            "home-sessions": self.home_sessions,
            "returns": self.returns,
            "home-returns": self.home_returns,
        }


class FlowStage(Stage):
    """Flow matching under one execution rule; subclasses say which levels the frames get."""

    rule: Rule = "bidirectional"

    def __init__(self, config: FlowConfig):
        torch.manual_seed(config.loop.seed)
        self.config, self.context = config, context_group(config.loop.parallel.context)
        self.model = self.network = Transformer(self.transformer())
        home, device = config.runs / config.world, config.loop.device
        if config.init_from:
            self.begin_with(initial_weights(home, config.init_from))
        self.prepare(self.network)
        self.autoencoder = load_trained(home / "autoencoder", device)
        if config.own.data:
            clips = read_own(config.own, config.size, self.autoencoder, config.frames)
        else:
            folder = config.runs / "data"
            clips = encoded_rooms(folder, config.clip_files, config.size, self.autoencoder, device)
        self.clips = LatentClips(clips, config.size, config.text, device)

    def prepare(self, network: Transformer) -> Transformer:
        """A network of this stage on its device, computing as the loop's settings say. A sharded one takes
        the dtype of its shards.
        """
        loop = self.config.loop
        if loop.parallel.shard:
            return network.to(loop.device).prepare()
        return prepare_network(network, loop.precision, loop.device, loop.compile)

    @property
    def divides_clips(self) -> bool:
        """True if clips may be divided in time among ranks: where the loss is the one below."""
        return type(self).loss is FlowStage.loss

    def segment(self, frames: int) -> RankSegment | None:
        """The part of a clip of `frames` latent frames that this rank holds, None for all of it."""
        return self.context and self.context.segment(frames, self.network.config.chunk)

    def transformer(self) -> TransformerConfig:
        return preset(self.config.world)

    def begin_with(self, weights: dict[str, Tensor]) -> None:
        """Loads all weights. A block that goes from the delta rule to softmax drops its short
        convolutions, and a network that is deeper than the weights begins as they are, see growth.py.
        """
        weights, wanted = deepen(weights, self.network.config), self.network.state_dict()
        unused = {name: value for name, value in wanted.items() if is_unused(name)}  # which files may lack
        left = [name for name in weights if ".attn.conv_k" in name and name not in wanted]
        self.network.load_state_dict(
            unused | {name: value for name, value in weights.items() if name not in left}
        )

    def levels(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Level indices (B, T): one per clip."""
        return logit_normal((batch, 1), generator).expand(batch, frames)

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Returns the mean squared error of the velocity (a scalar) over the scored frames of `batch`
        clips.
        """
        window = self.clips.window(self.clips.draw(batch, self.config.frames, generator), self.config.frames)
        frames = window.latents.shape[2]
        index = self.levels(batch, frames, generator).clone()
        given = torch.rand(batch, generator=generator, device=generator.device) < IMAGE_GIVEN
        index[:, 0] = torch.where(given, 0, index[:, 0])
        scored = torch.ones(batch, frames, device=generator.device)
        scored[:, 0] = (~given).float()
        sigma = sigma_of(index, self.config.shift)
        noise = torch.randn(window.latents.shape, generator=generator, device=generator.device)
        noisy = torch.lerp(window.latents, noise, sigma[:, None, :, None, None])
        if self.context:  # drawn alike by all that share the clip; this makes sure
            window, noise, noisy, sigma, scored = self.context.leaders((window, noise, noisy, sigma, scored))
        velocity = self.velocity(self.network, noisy, LEVELS * sigma, window)
        segment = self.segment(frames)
        local = slice(None) if segment is None else segment.local
        error = (velocity - (noise - window.latents)[:, :, local]).square().mean((1, 3, 4))  # (B, local T)
        # the mean over all ranks, which is what the loop takes, is the loss of the whole clips
        return (error * scored[:, local]).sum() / scored.sum() * self.config.loop.parallel.context, {}

    def velocity(self, model: Transformer, noisy: Tensor, timestep: Tensor, window: Window) -> Tensor:
        """Velocity of the clips noisy (B, C, T, h, w), of the frames that this rank holds where they are
        divided.
        """
        text, segment = model.text_context(window.text, window.text_mask), self.segment(noisy.shape[2])
        if segment is None:
            return model(
                noisy, timestep, text, model.camera_context(window.camera, window.plucker), rule=self.rule
            )
        local = segment.local
        cameras = model.camera_context(window.camera[:, local], window.plucker[:, :, local], segment.first)
        return model(noisy[:, :, local], timestep[:, local], text, cameras, self.rule, segment)

    @torch.no_grad()
    def preview(self, model: Transformer) -> Tensor:
        """Four clips: the true last frame of each latent frame above the one sampled in a few steps."""
        device = self.config.loop.device
        sessions = self.clips.draw(
            4, self.config.frames, torch.Generator(device).manual_seed(1), text_drop=0.0
        )
        window = self.clips.window(sessions, self.config.frames)
        noise = torch.randn(
            window.latents.shape, generator=torch.Generator(device).manual_seed(2), device=device
        )
        sampled = self.sample(model, window, noise)
        pictures = [
            self.autoencoder.decode(latents)[0][:, :, ::TEMPORAL_STRIDE]
            for latents in (window.latents, sampled)
        ]
        pairs = torch.stack(pictures, 1).clamp(-1, 1)  # (4, 2, 3, T, H, W)
        picture = pairs.permute(2, 0, 1, 4, 3, 5).flatten(1, 3).flatten(2, 3)  # (3, 4*2*H, T*W)
        return ((picture + 1) * 127.5).round().to(torch.uint8).cpu()

    def sample(self, model: Transformer, window: Window, noise: Tensor) -> Tensor:
        """Latents like `noise` (B, C, T, h, w), by the streaming sampler's few levels under this stage's
        rule.
        """
        text = model.text_context(window.text, window.text_mask)
        cameras = model.camera_context(window.camera, window.plucker)
        return euler(
            lambda x, t: model(x, t, text, cameras, rule=self.rule),
            noise,
            STREAMING_SIGMAS,
            window.latents[:, :, :1],
        )


def initial_weights(home: Path, name: str) -> dict[str, Tensor]:
    """Loads the weights, in float32, of a stage in `home`, of the transformer of a world, or of one in a
    safetensors file.
    """
    if Path(name).suffix == ".safetensors":
        given = read_tensors(Path(name), "wanted the weights of a transformer")
        return {key: value.float() for key, value in given.items()}
    if (Path(name) / CONFIG).is_file() or (is_bundled(name) and not (home / name).exists()):
        return WorldModel.load(name, dtype=torch.float32).transformer.state_dict()
    return load_average(home / name, "generator")
