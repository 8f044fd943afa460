"""What a method works on: a model under treatment, and what the methods before it have left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import Quantized
from wq.whisper.calibration.calibration import Observed
from wq.whisper.calibration.ranges import Range
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.kv_cache import KVQuantizer
from wq.whisper.layers.layers import Layer
from wq.whisper.layers.treatment import Method, Treatment
from wq.whisper.methods.folds import SmoothedInput

Plan = list[tuple[Layer, Quantizer]]

# What layers read on calibration speech, by layer name, after these methods of a treatment
Observe = Callable[[Treatment, Sequence[Method]], dict[str, Observed]]


class ClampedScales(NamedTuple):
    """How many of the scales of a layer's weight their precision does not reach."""

    layer: str
    clamped: int
    scales: int


@dataclass
class Treated:
    """A model under treatment.

    plan        the layers whose weights are rounded, and how
    observe     gives the statistics of calibration
    codes_only  whether rounded weights are left as codes and scales in `codes`, for an export, and not as
                values in the model, which then transcribes as if none were rounded
    applied     the methods so far
    codes       by layer name
    clamped     of layers that have any
    smoothed    the inputs that were smoothed
    ranges      of inputs with a static scale, by layer name
    kv_cache    how keys and values are rounded as they are stored, which `transcribe` does
    """

    whisper: Whisper
    treatment: Treatment
    plan: Plan
    observe: Observe
    codes_only: bool = False
    applied: list[Method] = field(default_factory=list)
    codes: dict[str, Quantized] = field(default_factory=dict)
    clamped: list[ClampedScales] = field(default_factory=list)
    smoothed: list[SmoothedInput] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)
    kv_cache: KVQuantizer | None = None

    def observed(self) -> dict[str, Observed]:
        """What layers read on calibration speech, by layer name, as the model now is."""
        return self.observe(self.treatment, tuple(self.applied))
