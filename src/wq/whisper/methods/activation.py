"""Rounding of what linear layers read, at run time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import WhisperForConditionalGeneration

from wq.numerics.fake_quant import NonFiniteError, fake_quantizer
from wq.whisper.calibration.ranges import Range
from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.layers.layers import Layer, assign, walk
from wq.whisper.layers.schemes import Activation, Assignment


class SharedInput:
    """A tensor that some layers read one after the other: it is rounded once for all of them."""

    def __init__(self, quantize: Callable[[Tensor], Tensor], layers: Sequence[Layer]) -> None:
        self.quantize, self.name, self.readers = quantize, layers[0].name, len(layers)
        self.seen: Tensor | None = None
        self.rounded: Tensor | None = None
        self.reads = 0

    def __call__(self, module: Any, inputs: tuple[Tensor, ...]) -> Tensor | None:
        x = inputs[0]
        if self.reads == 0 or x is not self.seen:
            try:
                self.rounded = self.quantize(x)
            except NonFiniteError:
                raise NonFiniteRow(f"the input of layer {self.name}", x) from None
            self.seen, self.reads = x, 0
        rounded = self.rounded
        self.reads += 1
        if self.reads == self.readers:  # nothing is held for longer than it is needed
            self.seen, self.rounded, self.reads = None, None, 0
        return rounded


@contextmanager
def quantized_activations(
    model: WhisperForConditionalGeneration,
    assignments: Sequence[Assignment[Activation]],
    ranges: Mapping[str, Range],
) -> Iterator[None]:
    """Inside, the linear layers of these roles read rounded inputs.

    ranges   by layer name, of the activations that have a static scale

    Inside, NaN or Inf in such an input raises NonFiniteRow. Raises ValueError where a range is missing.
    """
    sources: dict[tuple[str, Activation, Range | None], list[Layer]] = {}
    for layer, activation in assign(list(walk(model)), assignments):
        if activation.is_static and layer.name not in ranges:
            raise ValueError(
                f"layer {layer.name} has no calibrated range; calibrate it, or use a dynamic scale"
            )
        span = ranges[layer.name] if activation.is_static else None
        sources.setdefault((layer.source, activation, span), []).append(layer)
    with ExitStack() as hooks:
        for (_, activation, span), layers in sources.items():
            source = SharedInput(rounding(activation, span), layers)
            for layer in layers:
                handle = model.get_submodule(layer.name).register_forward_pre_hook(source)
                hooks.callback(handle.remove)
        yield


def rounding(activation: Activation, span: Range | None = None) -> Callable[[Tensor], Tensor]:
    """The function that rounds an input [..., K]; `span` is for those with a static scale."""
    ends = span._asdict() if span else {}
    return fake_quantizer(*activation.quantizer, **ends)
