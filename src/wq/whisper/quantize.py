"""Fake quantization of a model's weights, in place and undone afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wq.numerics.fake_quant import NonFiniteError, fake_quantize
from wq.numerics.formats import Format
from wq.whisper.layers import Layer


@contextmanager
def quantized_weights(
    layers: Sequence[Layer], format: Format, granularity: str, group: int | None
) -> Iterator[None]:
    """Inside, the layers' weights hold the values that the format can represent; afterwards the original ones
    again.

    The model is shared by all points of a grid, so it must come back exactly as it was, whatever happens
    inside. Raises NonFiniteError that names the layer whose weight holds NaN or Inf.
    """
    originals = [layer.weight.data for layer in layers]
    try:
        for layer in layers:
            try:
                values = fake_quantize(layer.weight.data.flatten(1), format, granularity, group)
            except NonFiniteError as error:
                raise NonFiniteError(f"layer {layer.name}: {error}") from None
            layer.weight.data = values.view(layer.weight.shape)
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.weight.data = original
