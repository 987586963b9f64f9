"""Stage 2: the bidirectional model. One noise level per clip, flow matching, the first frame mostly given."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from sana_wm_env.model.config import TransformerConfig
from sana_wm_env.settings import check_settings

from .flow import FlowConfig, FlowStage
from .loop import LoopConfig, train
from .processes import start_processes


@dataclass(frozen=True)
class BidirectionalConfig(FlowConfig):
    """Trains the bidirectional model of a world, in as many phases as wanted, each with a name and the one
    before as `init_from`.

    The published curriculum is three: all blocks by the delta rule (`--softmax-every 0`), softmax in every
    fourth, then longer clips.

    Attributes:
        softmax_every: which blocks mix time by softmax, 0 for none; as in the preset if not given.
    """

    stage: ClassVar[str] = "bidirectional"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000))
    softmax_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, softmax_every="[0, inf)")


class BidirectionalStage(FlowStage):
    config: BidirectionalConfig

    def transformer(self) -> TransformerConfig:
        network = super().transformer()
        every = self.config.softmax_every
        return network if every is None else replace(network, softmax_every=every)


def run(config: BidirectionalConfig) -> None:
    """Trains to config.loop.steps, or resumes."""
    start_processes()
    train(BidirectionalStage(config), config.loop, config.home)
