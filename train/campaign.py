"""One turn on a big GPU: weights in, better weights out, within minutes (script/gpu-campaign).

The blocks run as programs of torch.compile. Making them one after the other would take as long as the
training, so each is made and checked in a process of its own and found in the compiler's cache; others render
and encode meanwhile what is trained on. What is left of the time is then known, and the rates fall within it.

python -m sana_wm_env.train.campaign OUT --seconds 560
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from safetensors.torch import save

from sana_wm_env.files import replacing
from sana_wm_env.settings import check_settings

from . import autoencoder
from .autoencoder import load_trained
from .checkpoints import latest
from .data.latents import encode_clip_files
from .loop import LoopConfig, load_average, train
from .optim import OptimConfig
from .processes import PARENT, start_processes
from .programs import PlainBlockError, list_programs, make_program
from .teacher_forcing import TeacherForcingConfig, TeacherForcingStage

PART = 15 * 2**20
"""Bytes of a file that is brought home."""
PLAIN_WRONG = 3
"""Exit code of a maker whose plain block errs."""
WATCH_SECONDS = 10.0
"""Between two looks for a new checkpoint."""


@dataclass(frozen=True)
class CampaignConfig:
    """Trains a world of rooms by teacher forcing until the time is over.

    Attributes:
        out: folder for the averaged weights, in half precision and in parts of 15 MiB.
        seconds: from the start of this process to its end.
        reserve: of them, for writing the result.
        encoders: processes that render and encode.
        stage: what is trained, and how.
        program: number in `list_programs` of the one to make and to check, nothing else; -1 for the campaign.
        share: number of the encoder to be, nothing else; -1 for the campaign.
    """

    out: tyro.conf.Positional[Path]
    seconds: float = 560.0
    reserve: float = 12.0
    encoders: int = 6
    stage: TeacherForcingConfig = field(
        default_factory=lambda: TeacherForcingConfig(
            loop=LoopConfig(
                steps=10**9,
                batch=64,
                device="cuda",
                preview=0,
                save_minutes=1.0,
                compile=True,
                optim=OptimConfig(lr=3e-3, adam_lr=2e-3, warmup=30, decay=0.75),
            ),
            init_from="rooms",
            shards=0,
            sessions=50,
            home_sessions=140,
            returns=40,
            home_returns=110,
            frames=37,
            short=0.25,
            lead=12,
            cached=8,
            sigmas=(1.0, 0.889, 0.0),
            own_past=1.0,
            pack=False,
        )
    )
    program: int = -1
    share: int = -1

    def __post_init__(self) -> None:
        check_settings(self, seconds="(0, inf)", reserve="[0, inf)", encoders="[1, inf)")
        check_settings(
            self, program=f"[-1, {len(list_programs(self.stage)) - 1}]", share=f"[-1, {self.encoders - 1}]"
        )


def run(config: CampaignConfig) -> None:
    """Makes the programs and the data, trains, and writes OUT/transformer.safetensors.00, .01, ..

    A turn is short, so nothing ends it: where a program is wrong or cannot be made, none is used; where
    memory is short, the clips get shorter. ValueError without the card that is asked for, TimeoutError if no
    time is left to train, ChildProcessError without data and where even plain blocks are wrong.
    """
    began = time.monotonic()
    stage = config.stage
    if stage.loop.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"got --device {stage.loop.device}; torch {torch.__version__} sees no CUDA card")
    for one in (stage, _small(stage)):
        _take_autoencoder(one)
    TeacherForcingStage(_small(stage))  # renders its files, before others want them
    encoders = [_start("--share", number) for number in range(config.encoders)]
    programs = list_programs(stage)
    makers = [_start("--program", number) for number in range(len(programs))]
    _say(began, f"making {len(makers)} programs and the data")
    if codes := [code for encoder in encoders if (code := encoder.wait())]:
        raise ChildProcessError(f"encoding ended with code {codes[0]}, see above")
    _say(began, "the data are there")
    codes = [maker.wait() for maker in makers]
    if PLAIN_WRONG in codes:
        raise ChildProcessError("this device computes wrongly even without programs, see above")
    wrong = [program for code, program in zip(codes, programs, strict=True) if code]
    shorter = replace(stage, frames=min(stage.frames, 25))
    plain = replace(stage.loop, compile=False, batch=max(1, stage.loop.batch // 2))
    attempts = [] if wrong else [stage, shorter]
    if wrong:
        _say(began, f"training without programs, as of {wrong}, see above")
    end = began + config.seconds - config.reserve
    with _bringing_home(config.out, stage.home):
        for attempt in (*attempts, replace(stage, loop=plain), replace(shorter, loop=plain)):
            if _train(attempt, end):
                break
    _say(began, f"wrote the averaged weights to {config.out}")


def _train(stage: TeacherForcingConfig, end: float) -> bool:
    """Trains until `end`. False, and the reason is printed, if memory or the compiler fail."""
    training = TeacherForcingStage(stage)
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time went by before the training began; give more --seconds")
    print(f"training for {left:.0f} s", flush=True)
    try:
        train(training, replace(stage.loop, hours=left / 3600), stage.home)
    except RuntimeError as error:  # memory's and the compiler's are of this class
        print(f"it failed: {type(error).__name__}: {str(error)[:2000]}", flush=True)
        return False
    return True


def _say(began: float, what: str) -> None:
    print(f"{time.monotonic() - began:.0f} s: {what}", flush=True)


def _small(stage: TeacherForcingConfig) -> TeacherForcingConfig:
    """The stage on one clip file of a kind, in a folder of its own."""
    counts = dict.fromkeys(("shards", "home_shards", "sessions", "returns", "home_returns", "tours"), 0)
    tours = min(1, stage.tours + stage.home_tours)
    return replace(stage, runs=stage.runs / "programs", home_sessions=1, home_tours=tours, **counts)


def _take_autoencoder(stage: TeacherForcingConfig) -> None:
    loop = LoopConfig(steps=0, device=stage.loop.device, preview=0)
    autoencoder.run(
        autoencoder.AutoencoderStageConfig(
            stage.world, loop=loop, runs=stage.runs, start_from=stage.world, shards=0, size=stage.size
        )
    )


def _start(flag: str, number: int) -> subprocess.Popen[bytes]:
    """This command again, for a part of the work."""
    shared = {"TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "2", PARENT: str(os.getpid())}
    command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], flag, str(number)]
    return subprocess.Popen(command, env=os.environ | shared)


def encode_share(config: CampaignConfig) -> None:
    """Renders and encodes every n-th clip file of each kind."""
    stage, device = config.stage, config.stage.loop.device
    coder = load_trained(stage.runs / stage.world / "autoencoder", device)
    for kind, count in (stage.clip_files | stage.tour_files).items():
        share = (config.share, config.encoders)
        encode_clip_files(stage.runs / "data", kind, count, stage.size, coder, device, share)


@contextmanager
def _bringing_home(out: Path, home: Path) -> Iterator[None]:
    """Writes the averaged weights of every checkpoint, as a turn may be cut off, and of the last one in any
    case.
    """
    over = threading.Event()

    def watch() -> None:
        seen = 0.0
        while not over.wait(WATCH_SECONDS):
            if (path := latest(home)) is not None and (now := path.stat().st_mtime) > seen:
                seen = now
                _write_parts(out, home)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        if latest(home) is not None:
            _write_parts(out, home)


def _write_parts(out: Path, home: Path) -> None:
    weights = {
        name: value.half().contiguous().cpu() for name, value in load_average(home, "generator").items()
    }
    body = save(weights)
    out.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, len(body), PART)):
        with replacing(out / f"transformer.safetensors.{number:02d}") as part:
            part.write_bytes(body[begin : begin + PART])


def main() -> None:
    """Runs the campaign, or a part of it, as the flags say."""
    config = tyro.cli(CampaignConfig, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    start_processes()
    if config.program >= 0:
        try:
            make_program(
                TeacherForcingStage(_small(config.stage)), list_programs(config.stage)[config.program]
            )
        except PlainBlockError as error:
            print(error, file=sys.stderr)
            sys.exit(PLAIN_WRONG)
    elif config.share >= 0:
        encode_share(config)
    else:
        run(config)


if __name__ == "__main__":
    main()
