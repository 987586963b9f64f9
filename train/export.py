"""From the runs of the stages to a world folder that `gym.make(world=...)` opens."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import torch
from scipy.spatial.transform import RigidTransform

from sana_wm_env.camera import CHUNK_FRAMES
from sana_wm_env.files import replacing_folder
from sana_wm_env.model.codecs.autoencoder import SPATIAL_STRIDE, TEMPORAL_STRIDE
from sana_wm_env.model.codecs.text import TextEncoder, TextEncoderConfig
from sana_wm_env.model.config import VARIANTS, TransformerConfig, WorldConfig, check_sigmas, preset
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import STREAMING_SIGMAS
from sana_wm_env.model.storage.worlds import CONFIG, save_world
from sana_wm_env.model.world import WorldModel
from sana_wm_env.rooms import paths
from sana_wm_env.settings import check_settings

from .autoencoder import load_trained
from .data.packed import PACKED, packed_paths, packed_tars
from .flow import initial_weights
from .growth import deepen
from .streaming import StreamingConfig


@dataclass(frozen=True)
class ExportConfig:
    """Writes the averaged weights of a stage and the autoencoder as a world.

    Attributes:
        world: name of the preset and of the world.
        runs: folder of all runs.
        stage: stage to take the transformer from, a world, or a safetensors file of its weights.
        average_with: further stages, worlds or files, whose weights are averaged with those of `stage`. Where
            one was trained from another the mean is often better than each (Wortsman et al. 2022, "Model
            soups").
        undistilled: stage to take the transformer of whole clips from, the chunk-causal one say; the world
            then has all three variants.
        out: folder to write (runs/WORLD/world if not given).
        size: height and width of the frames.
        data: folder of your own packed clips, if it was trained on them: its largest action is then the
            largest motion of a chunk in them (95th percentile), and whoever opens the world brings the first
            frame.
        name: name of the world, that of the preset if not given.
        sigmas: noise levels of its streaming sampler, from 1 to 0.
        cached: chunks that its softmax blocks read back when streaming, the session's first among them; -1
            for all.
        sinks: how many of them are the session's first.
        looks_around: whether its sessions at home begin with a look all around, as it was trained on.
    """

    world: str = "rooms"
    runs: Path = Path("runs")
    stage: str = "distill"
    average_with: tuple[str, ...] = ()
    undistilled: str = ""
    out: Path | None = None
    size: tuple[int, int] = (64, 64)
    data: Path | None = None
    name: str = ""
    sigmas: tuple[float, ...] = STREAMING_SIGMAS
    cached: int = 2
    sinks: int = 1
    looks_around: bool = False

    def __post_init__(self) -> None:
        check_settings(self, size="[8, 4096]", cached="[-1, inf)", sinks="[1, inf)")
        check_sigmas(self.sigmas)


def assemble(config: ExportConfig) -> WorldModel:
    """The world that a stage has come to: averaged weights of its transformer, and the autoencoder."""
    home = config.runs / config.world
    autoencoder = load_trained(home / "autoencoder", "cpu")
    height, width = config.size
    text = TextEncoderConfig()
    translation, rotation = (
        largest_motion(config.data) if config.data else (paths.MAX_TRANSLATION_M, paths.MAX_ROTATION_RAD)
    )
    world = WorldConfig(
        name=config.name or config.world,
        transformer=_transformer(config),
        autoencoder=asdict(autoencoder.config),
        text=asdict(text),
        image_size=config.size,
        grid=(height // SPATIAL_STRIDE, width // SPATIAL_STRIDE),
        sigmas=config.sigmas,
        max_translation_m=translation,
        max_rotation_rad=rotation,
        first_frames=None if config.data else "rooms",
        looks_around=config.looks_around,
        variants=VARIANTS if config.undistilled else ("streaming",),
        dtype="auto",
    )
    transformer = trained(config, config.stage, *config.average_with)
    return WorldModel(world, transformer, autoencoder, TextEncoder(text))


def trained(config: ExportConfig, *stages: str) -> Transformer:
    """The transformer with the mean of the averaged weights of stages; a stage from before the preset grew is
    deepened first.
    """
    transformer, home = Transformer(_transformer(config)), config.runs / config.world
    given = [deepen(initial_weights(home, stage), transformer.config) for stage in stages]
    mean = {key: torch.stack([weights[key] for weights in given]).mean(0) for key in given[0]}
    transformer.load_state_dict(mean)
    return transformer


def _transformer(config: ExportConfig) -> TransformerConfig:
    return replace(preset(config.world), num_cached_blocks=config.cached, num_sink_blocks=config.sinks)


def largest_motion(folder: Path) -> tuple[float, float]:
    """Metres and radians of a chunk that 95 % of the chunks in packed clips do not exceed, each at least
    0.01.

    ValueError if no clip has a whole chunk.
    """
    chunks = [
        (c2w[start], c2w[start + CHUNK_FRAMES])
        for c2w in packed_paths(folder)
        for start in range(0, len(c2w) - CHUNK_FRAMES, TEMPORAL_STRIDE)
    ]
    if not chunks:
        raise ValueError(
            f"got no clip of {CHUNK_FRAMES + 1} frames in {packed_tars(folder)[0].parent}; wanted one to "
            "learn how fast it moves"
        )
    before, after = (RigidTransform.from_matrix(np.stack(poses)) for poses in zip(*chunks, strict=True))
    rotation, translation = np.split((before.inv() * after).as_exp_coords(), 2, axis=1)
    lengths = (np.percentile(np.linalg.norm(part, axis=1), 95) for part in (translation, rotation))
    moved, turned = (round(max(float(length), 0.01), 3) for length in lengths)
    return moved, turned


def export(config: ExportConfig) -> None:
    """Writes the world folder and says where it is."""
    world = assemble(config)
    out = config.out or config.runs / config.world / "world"
    undistilled = trained(config, config.undistilled) if config.undistilled else None
    with replacing_folder(out) as part:  # an older world goes as a whole; what else lies there stays
        if out.is_dir():
            copytree(out, part, ignore=ignore_patterns(CONFIG, "*.safetensors"), dirs_exist_ok=True)
        save_world(part, world.config, world.transformer, world.autoencoder, undistilled=undistilled)
    bring = ", reset(options={'image': ..., 'intrinsics': ...}) brings its first frame" if config.data else ""
    print(f"wrote {out}: gym.make('SanaWM-v0', world='{out}') opens it{bring}")


def export_stage(config: StreamingConfig) -> None:
    """Packs what a stage of the few-step model has come to, as runs/WORLD/world.

    The published latent layout has no clips to learn the largest action from: its worlds are packed by hand.
    """
    clips = config.own.data
    if clips and not any(clips.glob(PACKED)):
        print(
            f"{config.home} is done; `sana-wm train export --stage {config.home.name} --data CLIPS` makes a "
            "world of it, with packed clips"
        )
        return
    export(
        ExportConfig(
            config.world,
            config.runs,
            config.home.name,
            config.average_with,
            size=config.size,
            data=clips,
            sigmas=config.sigmas,
            cached=config.cached,
            sinks=config.sinks,
            looks_around=config.looks_around,
        )
    )
