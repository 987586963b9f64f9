"""Modules that have moved can still be imported under their old names, with a DeprecationWarning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "session": "env",
    "model.image": "first_frame",
    "model.intrinsics": "first_frame",
    "model.transformer": "model.network.transformer",
    "model.block": "model.network.block",
    "model.attention": "model.network.attention",
    "model.gated_delta": "model.network.gated_delta",
    "model.camera_branch": "model.network.rays",
    "model.feed_forward": "model.network.feed_forward",
    "model.rope": "model.network.rope",
    "model.execution": "model.network.execution",
    "model.time_origin": "model.network.time_origin",
    "model.autoencoder": "model.codecs.autoencoder",
    "model.ltx2": "model.codecs.ltx2",
    "model.text": "model.codecs.text",
    "model.gemma": "model.codecs.gemma",
    "model.parts": "model.codecs.open",
    "model.weights": "model.storage.weights",
    "model.published": "model.storage.layouts",
    "model.checkpoint": "model.storage.worlds",
    "model.hub": "model.storage.hub",
    "generate": "commands.generate",
    "explain": "commands.explain",
    "doctor": "commands.doctor",
    "download": "commands.download",
    "checkpoint": "commands.checkpoint",
    "model.parity": "commands.parity",
    "model.fit": "model.memory",
    "agents.cem": "agents.planning.cem",
    "agents.mppi": "agents.planning.mppi",
    "agents.planner": "agents.planning.planner",
    "agents.objectives": "agents.planning.objectives",
    "agents.imagination": "agents.planning.imagination",
    "agents.costable": "agents.planning.costable",
    "agents.ppo": "agents.policy.train_ppo",
    "agents.view": "agents.policy.view",
    "agents.redness": "agents.policy.redness",
    "agents.transfer": "agents.policy.transfer",
    "evaluation.contact_sheet": "contact_sheet",
    "evaluation.published_results": "evaluation.paper_results",
    "model.cameras": "model.camera_inputs",
    "model.network.camera_branch": "model.network.rays",
    "model.storage.published": "model.storage.layouts",
    "model.storage.checkpoint": "model.storage.worlds",
    "model.codecs.parts": "model.codecs.open",
}
"""Old name -> new one, both inside this package."""


class MovedModules(MetaPathFinder):
    """Finds modules under their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name, None for any other."""
        package, _, name = fullname.partition(".")
        return (
            ModuleSpec(fullname, _Alias(f"{package}.{MOVED[name]}"))
            if package == __package__ and name in MOVED
            else None
        )


class _Alias(Loader):
    def __init__(self, new: str):
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {self.new}", DeprecationWarning, stacklevel=2)
        module = import_module(self.new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # it has run already, under its new name


sys.meta_path.append(MovedModules())
