"""Every stage of the ladder in small, on data of two clips. Run as a script it trains one stage:
small_ladder.py STAGE RUNS STEPS.
"""

import sys
from pathlib import Path

from sana_wm_env.model.codecs.autoencoder import AutoencoderConfig
from sana_wm_env.model.config import PRESETS, TransformerConfig
from sana_wm_env.train import autoencoder, bidirectional, causal, distill, ode, self_forcing, teacher_forcing
from sana_wm_env.train.data import rooms as data
from sana_wm_env.train.loop import LoopConfig
from sana_wm_env.train.optim import OptimConfig

TINY = TransformerConfig(
    depth=4, width=48, heads=2, in_channels=48, text_width=64, text_tokens=32, mlp_ratio=2.0, input_size=8
)
KINDS = {
    "clips": data.ClipFileKind(2, 4, 0),
    "sessions": data.ClipFileKind(2, 8, 2**30),
    "home-clips": data.ClipFileKind(2, 4, 0, home=True),
    "home-sessions": data.ClipFileKind(2, 8, 2**30, home=True),
    "returns": data.ClipFileKind(2, 8, 2**30 + 2**29, retraced=True),
    "home-returns": data.ClipFileKind(2, 8, 2**30 + 2**29, home=True, retraced=True),
    "tours": data.ClipFileKind(2, 8, 2**30 + 2**29 + 2**28, toured=True),
    "home-tours": data.ClipFileKind(2, 8, 2**30 + 2**29 + 2**28, home=True, toured=True),
}
CODER = AutoencoderConfig(fine=16, coarse=32, encoder_blocks=1, decoder_blocks=1)


def configure(stage: str, runs: Path, loop: LoopConfig):
    """The stage's run and config for the world tiny, which has to be in the table of presets."""
    common = {"world": "tiny", "runs": runs, "shards": 1, "loop": loop}
    match stage:
        case "autoencoder":
            return autoencoder.run, autoencoder.AutoencoderStageConfig(**common, model=CODER)
        case "bidirectional":
            return bidirectional.run, bidirectional.BidirectionalConfig(**common)
        case "causal":
            return causal.run, causal.CausalConfig(**common)
        case "teacher-forcing":
            return teacher_forcing.run, teacher_forcing.TeacherForcingConfig(
                **common, sessions=1, frames=7, short_frames=4
            )
        case "ode":
            return ode.run, ode.OdeConfig(**common, trajectories=16, teacher_steps=4)
        case "self-forcing":
            return self_forcing.run, self_forcing.SelfForcingConfig(**common, frames=7)
        case "distill":
            return distill.run, distill.DistillConfig(**common, sessions=1)
    raise ValueError(stage)


def train(stage: str, runs: Path, steps: int) -> None:
    """Trains a stage, or resumes: a checkpoint after every step, and rates that do not depend on where the
    run ends.
    """
    optim = OptimConfig(warmup=1, decay=0.0)
    run, config = configure(
        stage, runs, LoopConfig(steps=steps, batch=2, preview=0, save_minutes=0.0, optim=optim)
    )
    run(config)


if __name__ == "__main__":
    PRESETS["tiny"], data.KINDS = TINY, KINDS
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
