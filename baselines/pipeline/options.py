"""The options of the pipeline."""

from typing import ClassVar

from baselines.options import Shared


class PipelineOptions(Shared, frozen=True, kw_only=True):
    """`shares` are the proportions of the devices' memories."""

    fixed: ClassVar = {"window": None}
    told: ClassVar = ("shares",)
    where: ClassVar = "systems.pipeline."
