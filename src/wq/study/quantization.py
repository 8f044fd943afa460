"""A model under a spec: what is quantized of it, in the order in which it happens, and undone afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from wq.numerics.effective import Quantizer
from wq.study.spec import Spec
from wq.whisper.layers import Layer, assign, walk
from wq.whisper.model import Whisper
from wq.whisper.quantize import quantized_weights

Plan = list[tuple[Layer, Quantizer]]


@contextmanager
def quantized(whisper: Whisper, spec: Spec) -> Iterator[Plan]:
    """Inside, the model is what the spec says. Yields the layers whose weights are quantized, and how.

    Raises NonFiniteError that names the layer whose weight holds NaN or Inf.
    """
    plan = assign(list(walk(whisper.model)), spec.weights)
    with quantized_weights(plan, spec.share_tensor_scale):
        yield plan
