"""The second stage's training, after the published recipe: a base, pairs, then streaming on its own past.

Truncated flow: x_start = (1 - s0) imagined + s0 noise, s0 the sampler's first level; a point on the straight
line from the truth to it, x = (1 - a) true + a x_start at level s = a s0; the network learns v = (x_start -
true) / s0, with which the sampler arrives at the truth whatever its steps.

| phase | learns | weights | past |
|---|---|---|---|
| base | plain flow from noise to true frames | all | true |
| pairs | truncated flow from imagined frames to true ones | LoRA, merged | true |
| streaming | likewise | all | true, worn, or its own roll-out |

Published are phase 2 on LTX-2 (rank 384), merged into its few-step version, and phase 3's mixture. Not
published are steps, rates and amounts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sana_wm_env.files import replacing_folder, write_json
from sana_wm_env.model.codecs.autoencoder import SPATIAL_STRIDE, TEMPORAL_STRIDE
from sana_wm_env.model.codecs.refiner import NETWORK, WEIGHTS, find_refiner
from sana_wm_env.model.codecs.text import TextEncoder, TextEncoderConfig
from sana_wm_env.model.config import check_sigmas
from sana_wm_env.model.network.refiner import RefinerConfig, RefinerNetwork
from sana_wm_env.model.refiner import Refiner, remember, sample
from sana_wm_env.model.state import RefinerState
from sana_wm_env.model.storage.layouts import CONFIG
from sana_wm_env.model.storage.weights import load
from sana_wm_env.model.world import WorldModel
from sana_wm_env.settings import check_settings

from .data.pairs import Pairs, encoded_pairs
from .loop import LoopConfig, train
from .lora import add_lora, merge_lora
from .precision import compute_dtype
from .processes import rank, start_processes
from .stage import Stage

PAST = 2  # blocks before the one that is learned
TEXT_DROP = 0.1
UNIFORM = 0.1
LOWEST, HIGHEST = 0.005, 0.999  # quantiles that levels are stretched between
Phase = Literal["base", "pairs", "streaming"]


@dataclass(frozen=True)
class RefineConfig:
    """Trains the refiner of a world.

    Attributes:
        world: name of a preset; the run lives in runs/WORLD/NAME.
        name: folder of the run, refiner-PHASE if not given.
        loop: steps, batch, rates, see LoopConfig.
        phase: "base", "pairs" or "streaming"; each begins with the run of the one before, if there is one.
        stage1: world whose imagination is refined, by bundled name or by folder.
        init_from: folder of the refiner to begin with ("": the phase before, or from scratch).
        runs: folder of all runs; sessions are rendered into runs/data.
        sessions: files of sessions in rooms that are seen once, each 4 of 961 frames.
        home_sessions: the same at home.
        layers, heads, head_dim: sizes of the network.
        sigmas: levels of the sampler. The first one hides what is smaller than its noise. A small world's
            latents hold little twice: of what stage 1 imagined of them the published 0.909 would leave
            nothing, and 0.2 hides about as much as stage 1 errs by in a first chunk.
        window: latent frames that are seen at most, with the sink.
        lora_rank: of the adapter in the phase "pairs"; 0 to train all weights.
        out: folder to write the refiner to (the run's own if not given).
    """

    stage: ClassVar[str] = "refiner"
    world: str = "rooms"
    name: str = ""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2000, batch=32, preview=0))
    phase: Phase = "streaming"
    stage1: str = "tiny-rooms"
    init_from: str = ""
    runs: Path = Path("runs")
    sessions: int = 20
    home_sessions: int = 60
    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    sigmas: tuple[float, ...] = (0.1, 0.05, 0.0)
    window: int = 1 + 3 * PAST
    lora_rank: int = 32
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    out: Path | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("layers", "heads", "head_dim", "window"), "[1, inf)")
        shards = dict.fromkeys(("sessions", "home_sessions", "lora_rank"), "[0, inf)")
        check_settings(self, **counts, **shards)
        check_sigmas(self.sigmas)

    @property
    def home(self) -> Path:
        """Folder of the run."""
        return self.runs / self.world / (self.name or f"{self.stage}-{self.phase}")


@dataclass(frozen=True)
class Block:
    """A batch of blocks of sessions: true and imagined latents (B, c, 3 + 3 PAST, h, w) of the block and what
    comes before it, their first latents (B, c, 1, h, w), and prompts as features and mask.
    """

    true: Tensor
    imagined: Tensor
    first: Tensor
    features: Tensor
    mask: Tensor
    begin: int


class RefinerStage(Stage):
    """Flow of blocks of three latent frames, behind a past that is made as in use: pass by pass."""

    def __init__(self, config: RefineConfig, pairs: Pairs):
        torch.manual_seed(config.loop.seed)
        self.config, self.pairs, device = config, pairs, config.loop.device
        encoder = TextEncoder(config.text)
        self.features, self.mask = encoder.encode(self.pairs.captions)
        self.null, self.null_mask = encoder.encode([""])
        self.network = RefinerNetwork(self.network_config()).to(device)
        if before := self.before():
            files = find_refiner(before, before)
            with torch.device("meta"):
                whole = RefinerNetwork(files.config)
            load(whole, files.weights, torch.float32, device)
            self.network.load_state_dict(whole.state_dict())
        self.model: nn.Module = self.network
        self.refiner = Refiner(self.network, encoder)
        self.network.requires_grad_(True)
        if config.phase == "pairs" and config.lora_rank:
            add_lora(self.network, config.lora_rank)
        self.dtype = compute_dtype(config.loop.precision, device)

    def network_config(self) -> RefinerConfig:
        """Sizes of the network for these latents. Places are shares of what is seen: angles differ in it."""
        config = self.config
        _, _, channels, height, width = self.pairs.true.shape
        return RefinerConfig(
            in_channels=channels,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            num_layers=config.layers,
            caption_channels=config.text.width,
            vae_scale_factors=(TEMPORAL_STRIDE, SPATIAL_STRIDE, SPATIAL_STRIDE),
            base_height=SPATIAL_STRIDE * height,
            base_width=SPATIAL_STRIDE * width,
            pos_embed_max_pos=4,
            rope_theta=100.0,
            sigmas=config.sigmas,
            window=config.window,
        )

    def before(self) -> Path | None:
        """The refiner that this phase begins with."""
        if self.config.init_from:
            return Path(self.config.init_from)
        order = ("base", "pairs", "streaming")
        home = self.config.runs / self.config.world
        earlier = order[: order.index(self.config.phase)]
        found = [home / f"refiner-{phase}" for phase in reversed(earlier)]
        return next((path for path in found if (path / NETWORK / CONFIG).is_file()), None)

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Returns the squared error of the velocity over that of no answer at all (a scalar), of `batch`
        blocks: blocks late in a session, where stage 1 has drifted, would outweigh its begin otherwise.
        """
        block = self.draw(batch, generator)
        with self._precision():
            state = self.look_back(block, generator)
            true, imagined = block.true[:, :, -3:], block.imagined[:, :, -3:]
            noise = torch.randn(true.shape, generator=generator, device=generator.device)
            sigmas = self.config.sigmas
            highest = 1.0 if self.config.phase == "base" else sigmas[0]
            sigma = highest * draw_levels(batch, true[0, 0].numel(), generator)
            x, target = truncate_flow(true, imagined, noise, sigma, highest)
            velocity, _ = self.refiner.prepare_pass(state, x)(x, sigma)
        return F.mse_loss(velocity, target) / target.square().mean(), {}

    def draw(self, batch: int, generator: torch.Generator) -> Block:
        """Blocks of sessions, all of them equally far from the begin of theirs."""
        device, frames = generator.device, self.pairs.true.shape[1]
        blocks = (frames - 1) // 3
        # alike for all rows of a batch, as windows are; even in the logarithm, so that one batch of five
        # meets the first of forty blocks, where stage 1 is least off and there is most to lose
        spread = torch.rand((), generator=generator, device=device).item()
        at = min(int((blocks + 1) ** spread), blocks) - 1
        begin = 1 + 3 * max(0, at - PAST)
        rows = torch.randint(len(self.pairs.true), (batch,), generator=generator, device=device).cpu()
        cut = slice(begin, 1 + 3 * (at + 1))

        def latents(of: Tensor, which: slice) -> Tensor:
            return of[rows, which].float().transpose(1, 2).to(device)

        keeps = (torch.rand(batch, generator=generator, device=device) >= TEXT_DROP).cpu()[:, None]
        features = torch.where(keeps[..., None], self.features[rows], self.null)
        mask = torch.where(keeps, self.mask[rows], self.null_mask)
        pairs = self.pairs
        first = latents(pairs.true, slice(0, 1))
        return Block(latents(pairs.true, cut), latents(pairs.imagined, cut), first, features, mask, begin)

    def look_back(self, block: Block, generator: torch.Generator) -> RefinerState:
        """The state before a block: passes over the sink and over what lies between, one after the other."""
        state = self.refiner.open(block.first, block.features, block.mask)
        state = _at(state, block.begin - 1)
        kind = float(torch.rand((), generator=generator, device=generator.device))
        for begin in range(0, block.true.shape[2] - 3, 3):
            true, imagined = (t[:, :, begin : begin + 3] for t in (block.true, block.imagined))
            past = true
            if self.config.phase == "streaming" and kind >= 0.5:
                past = self.roll_out(imagined, state, generator)
            elif self.config.phase == "streaming" and kind >= 0.2:
                past = wear(true, imagined, generator)
            state = remember(past, self.refiner.prepare_pass(state, past), state, self.config.window)
        return state

    @torch.no_grad()
    def roll_out(self, imagined: Tensor, state: RefinerState, generator: torch.Generator) -> Tensor:
        """Its own refinement of a block, in one to all of its steps."""
        sigmas = self.config.sigmas
        kept = (*sigmas[: 1 + _whole(len(sigmas) - 1, generator)], 0.0)
        noise = torch.randn(imagined.shape, generator=generator, device=generator.device)
        return sample(self.refiner.prepare_pass(state, imagined), imagined, noise, kept)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        device = torch.device(self.config.loop.device).type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            yield


def truncate_flow(
    true: Tensor, imagined: Tensor, noise: Tensor, sigma: Tensor, highest: float
) -> tuple[Tensor, Tensor]:
    """The point at levels sigma (B,) of the straight line from true latents (B, ...), at 0, to imagined ones
    noised to `highest`; and the velocity along it. With `highest` 1 that is plain flow from noise.
    """
    start = torch.lerp(imagined, noise, highest)
    share = (sigma / highest).view(-1, *[1] * (true.ndim - 1))
    return torch.lerp(true, start, share), (start - true) / highest


def draw_levels(batch: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Levels (B,) from 0 to 1 as LTX-2 is trained: logit-normal, the noisier the more tokens, stretched
    between two of its quantiles, the smallest reflected; a tenth of them uniform.
    """
    kwargs = {"generator": generator, "device": generator.device}
    mean = min(0.95 + (tokens - 1024) / (4096 - 1024) * (2.05 - 0.95), 2.05)
    normal = torch.distributions.Normal(mean, 1.0)
    low, high = (torch.sigmoid(normal.icdf(torch.tensor(q))).item() for q in (LOWEST, HIGHEST))
    drawn = torch.sigmoid(mean + torch.randn(batch, **kwargs))
    drawn = ((drawn - low) / (high - low)).clamp(max=1)
    drawn = torch.where(drawn < 1e-3, 2e-3 - drawn, drawn)
    uniform = torch.rand(batch, **kwargs)
    return torch.where(torch.rand(batch, **kwargs) < UNIFORM, uniform, drawn).clamp(0, 1)


def wear(true: Tensor, imagined: Tensor, generator: torch.Generator) -> Tensor:
    """A past (B, c, n, h, w) with the faults that its own would have: noise, exposure, blur in time, missing
    channels and places, something of what stage 1 imagined.
    """
    batch, channels, _, height, width = true.shape
    kwargs = {"generator": generator, "device": generator.device}

    def amount(most: float) -> Tensor:
        return most * torch.rand(batch, 1, 1, 1, 1, **kwargs)

    worn = torch.lerp(true, imagined, amount(0.5))
    before = torch.cat([worn[:, :, :1], worn[:, :, :-1]], 2)
    worn = torch.lerp(worn, before, amount(0.2))
    worn = worn * (1 + amount(0.3) - 0.15)
    worn = torch.lerp(worn, torch.randn(worn.shape, **kwargs), amount(0.1))
    worn = worn * (torch.rand(batch, channels, 1, 1, 1, **kwargs) >= 0.1 * torch.rand((), **kwargs))
    places = torch.rand(batch, 1, 1, height, width, **kwargs) < 0.1 * torch.rand((), **kwargs)
    return torch.where(places, imagined, worn)


def run(config: RefineConfig) -> None:
    """Trains to config.loop.steps, or resumes; then writes the refiner's folder."""
    start_processes()
    counts = {"sessions": config.sessions, "home-sessions": config.home_sessions}
    pairs = encoded_pairs(config.runs / "data", counts, WorldModel.load(config.stage1), config.loop.device)
    stage = RefinerStage(config, pairs)
    train(stage, config.loop, config.home)
    merge_lora(stage.network)
    if rank() == 0:
        out = config.out or config.home
        write_refiner(out, stage.network)
        print(f"wrote {out}: gym.make('SanaWM-v0', refiner='{out}') sees through it")


def write_refiner(folder: Path, network: RefinerNetwork) -> None:
    """Writes settings and weights, in half precision, as `find_refiner` reads them."""
    tensors = {name: t.detach().cpu().half().contiguous() for name, t in network.state_dict().items()}
    with replacing_folder(folder / NETWORK) as part:
        write_json(part / CONFIG, asdict(network.config))
        save_file(tensors, part / WEIGHTS)


def _at(state: RefinerState, frames: int) -> RefinerState:
    """The state of a session of which so many frames have passed and are not seen any more."""
    return replace(state, frames=torch.full_like(state.frames, frames))


def _whole(count: int, generator: torch.Generator) -> int:
    """A whole number from 0 to count - 1."""
    return int(torch.randint(count, (), generator=generator, device=generator.device))
