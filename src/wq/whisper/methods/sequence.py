"""The methods of a treatment, entered one after the other, and undone afterwards."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from wq.whisper.calibration.calibration import Observed
from wq.whisper.calibration.ranges import Range, range_of
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.kv_cache import KVQuantizer
from wq.whisper.layers.layers import Layer, assign, walk
from wq.whisper.layers.schemes import Smoothing
from wq.whisper.layers.treatment import Gptq, Method, Nearest, Treatment
from wq.whisper.methods import gptq, nearest, smoothquant
from wq.whisper.methods.activation import quantized_activations
from wq.whisper.methods.method import Observe, Treated

# What each method does: inside, the model of the state is what the method makes of it
METHODS: dict[type[Method], Callable[[Any, Treated], AbstractContextManager[None]]] = {
    Smoothing: smoothquant.apply,
    Nearest: nearest.apply,
    Gptq: gptq.apply,
}


@contextmanager
def treated(
    whisper: Whisper, treatment: Treatment, observe: Observe, *, codes_only: bool = False
) -> Iterator[Treated]:
    """Inside, the model is what the treatment makes of it; afterwards it is as it was, whatever happened.

    observe     gives the statistics of calibration, where the treatment needs any
    codes_only  as of `Treated`

    Raises ValueError for a block that the model has not, NonFiniteError that names the layer whose weight
    holds NaN or Inf.
    """
    layers = list(walk(whisper.model))
    state = Treated(whisper, treatment, assign(layers, treatment.plan), observe, codes_only)
    with ExitStack() as undo:
        for method in treatment.preparations:
            undo.enter_context(METHODS[type(method)](method, state))
            state.applied.append(method)
        # Before anything is rounded: ranges are those of undisturbed inputs
        observed = state.observed() if treatment.has_static_ranges else {}
        state.ranges = static_ranges(layers, treatment, observed)
        if treatment.kv_cache:
            amax = {name: each.output_amax for name, each in observed.items()}
            state.kv_cache = KVQuantizer(treatment.kv_cache, amax)
        for method in treatment.roundings:
            undo.enter_context(METHODS[type(method)](method, state))
            state.applied.append(method)
        if not codes_only:
            undo.enter_context(quantized_activations(whisper.model, treatment.activations, state.ranges))
        yield state


def static_ranges(
    layers: list[Layer], treatment: Treatment, observed: Mapping[str, Observed]
) -> dict[str, Range]:
    """The range of every input that has a static scale, by layer name."""
    ranges: dict[tuple[str, object], Range] = {}  # layers that read one tensor have one range
    found = {}
    for layer, activation in assign(layers, treatment.activations):
        if activation.is_static:
            key = layer.source, activation
            if key not in ranges:
                ranges[key] = range_of(observed[layer.name], activation)
            found[layer.name] = ranges[key]
    return found
