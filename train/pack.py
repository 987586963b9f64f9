"""From the runs of the stages to a world folder that `gym.make(world=...)` opens."""

from dataclasses import asdict, dataclass
from pathlib import Path

from sana_wm_env.model.autoencoder import SPATIAL_STRIDE
from sana_wm_env.model.checkpoint import save_world
from sana_wm_env.model.config import WorldConfig, preset
from sana_wm_env.model.sampler import STREAMING_SIGMAS
from sana_wm_env.model.text import TextEncoder, TextEncoderConfig
from sana_wm_env.model.transformer import Transformer
from sana_wm_env.model.world import WorldModel
from sana_wm_env.rooms import paths

from .autoencoder import load_trained
from .loop import load_average


@dataclass(frozen=True)
class PackConfig:
    """Writes the averaged weights of a stage and the autoencoder as a world.

    Attributes:
        world: name of the preset and of the world.
        runs: folder of all runs.
        stage: stage to take the transformer from.
        out: folder to write (runs/WORLD/world if not given).
        size: height and width of the frames.
    """

    world: str = "rooms"
    runs: Path = Path("runs")
    stage: str = "distill"
    out: Path | None = None
    size: tuple[int, int] = (64, 64)


def assemble(config: PackConfig) -> WorldModel:
    """The world that a stage has come to: averaged weights of its transformer, and the autoencoder."""
    home = config.runs / config.world
    autoencoder = load_trained(home / "autoencoder", "cpu")
    transformer = Transformer(preset(config.world))
    transformer.load_state_dict(load_average(home / config.stage, "generator"))
    height, width = config.size
    text = TextEncoderConfig()
    world = WorldConfig(
        name=config.world,
        transformer=preset(config.world),
        autoencoder=asdict(autoencoder.config),
        text=asdict(text),
        image_size=config.size,
        grid=(height // SPATIAL_STRIDE, width // SPATIAL_STRIDE),
        sigmas=STREAMING_SIGMAS,
        max_translation_m=paths.MAX_TRANSLATION_M,
        max_rotation_rad=paths.MAX_ROTATION_RAD,
        first_frames="rooms",
    )
    return WorldModel(world, transformer, autoencoder, TextEncoder(text))


def pack(config: PackConfig) -> None:
    """Writes the world folder and says where it is."""
    world = assemble(config)
    out = config.out or config.runs / config.world / "world"
    save_world(out, world.config, world.transformer, world.autoencoder)
    print(f"wrote {out}: gym.make('SanaWM-v0', world='{out}') opens it")
