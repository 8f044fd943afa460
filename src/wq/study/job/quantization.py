"""A model under a spec: what is quantized of it, in the order in which it happens, and undone afterwards."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import NonFiniteError
from wq.study.job.outliers import ChannelMaxima, channel_maxima
from wq.study.spec.spec import DECODING_VERSION, NUMERICS_VERSION, Spec
from wq.study.speech.audio import DataError
from wq.study.speech.datasets import Speech
from wq.whisper.calibration.cache import cached
from wq.whisper.calibration.calibration import Observed, observe
from wq.whisper.calibration.ranges import Range, range_of
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.decode import SAMPLING_RATE, NonFiniteUtterance
from wq.whisper.decoding.kv_cache import KVQuantizer
from wq.whisper.layers.layers import Layer, assign, walk
from wq.whisper.methods.activation import quantized_activations
from wq.whisper.methods.alpha_search import search
from wq.whisper.methods.nearest import quantized_weights
from wq.whisper.methods.smoothquant import factors, find_folds, smoothed

Plan = list[tuple[Layer, Quantizer]]


@dataclass
class QuantizedModel:
    """What a model is inside `quantized`.

    plan     the layers whose weights are quantized, and how
    maxima   of the inputs that can be smoothed, before and after, where the spec smooths
    ranges   of the inputs with a static scale, by layer name
    kv_cache how keys and values are rounded as they are stored, which `transcribe` does
    calibrate_seconds  that hearing the calibration speech took; None where statistics were kept or not needed
    """

    plan: Plan
    maxima: list[ChannelMaxima] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)
    kv_cache: KVQuantizer | None = None
    calibrate_seconds: float | None = None


@contextmanager
def quantized(
    whisper: Whisper,
    spec: Spec,
    calibration: Speech | None = None,
    *,
    batch_size: int = 32,
    rounded: bool = True,
) -> Iterator[QuantizedModel]:
    """Inside, the model is what the spec says; afterwards it is as it was, whatever happened.

    calibration   the speech that static scales and smoothing are taken from, where the spec needs any
    rounded       False leaves out the rounding itself: weights are smoothed at most, as for an export

    Raises NonFiniteError that names the layer whose weight or input holds NaN or Inf, and the utterance.
    """
    layers = list(walk(whisper.model))
    state = QuantizedModel(assign(layers, spec.weights))
    cache = spec.kv_cache
    with ExitStack() as undo:
        observed: dict[str, Observed] = {}
        if spec.smoothquant:
            heard = statistics(whisper, spec, calibration, batch_size, state=state)
            state.maxima = undo.enter_context(smoothed_by(whisper, spec, state.plan, heard))
        if any(each.quantizer.is_static for each in spec.activations) or (cache and cache.is_static):
            is_smoothed = spec.smoothquant is not None
            observed = statistics(
                whisper, spec, calibration, batch_size, is_smoothed=is_smoothed, state=state
            )
            state.ranges = activation_ranges(layers, spec, observed)
        if cache:
            state.kv_cache = KVQuantizer(cache, {name: each.output_amax for name, each in observed.items()})
        if rounded:
            undo.enter_context(quantized_weights(state.plan, spec.share_tensor_scale))
            undo.enter_context(quantized_activations(whisper.model, spec.activations, state.ranges))
        yield state


@contextmanager
def smoothed_by(
    whisper: Whisper, spec: Spec, plan: Plan, observed: dict[str, Observed]
) -> Iterator[list[ChannelMaxima]]:
    """Inside, the model is smoothed as the spec says, from what was observed of it before. All inputs are,
    even those of layers that nothing quantizes: it changes no output."""
    smoothing = spec.smoothquant
    assert smoothing is not None
    folds = find_folds(whisper.model, smoothing.fc2)
    alphas = {fold.name: smoothing.alphas[fold.submodule] for fold in folds}
    if smoothing.method == "search":
        alphas = search(
            folds,
            plan,
            spec.activations,
            observed,
            scope=smoothing.scope or "submodule",
            share_tensor_scale=spec.share_tensor_scale,
        )
    scales = factors(folds, {name: each.channel_max for name, each in observed.items()}, alphas)
    with smoothed(folds, scales):
        yield channel_maxima(folds, observed, alphas, scales)


def statistics(
    whisper: Whisper,
    spec: Spec,
    calibration: Speech | None,
    batch_size: int,
    *,
    is_smoothed: bool = False,
    state: QuantizedModel | None = None,
) -> dict[str, Observed]:
    """What the layers read while the model, as it was loaded or smoothed as the spec says, transcribes the
    calibration speech; from the cache where they have been seen to do so before. The time that it takes is
    added to the state's."""
    if calibration is None:
        raise DataError(f"{spec.point} needs calibration and was given no speech; name a calibration split")
    key = {
        "model": spec.model.content_hash,
        "speech": calibration.content_hash,
        "language": spec.decoding_language,
        "max_new_tokens": spec.max_new_tokens,
        "smoothing": smoothing_key(spec) if is_smoothed else None,
        "versions": [NUMERICS_VERSION, DECODING_VERSION],
    }

    def hear() -> dict[str, Observed]:
        started = time.perf_counter()
        found = observed_on(whisper, spec, calibration, batch_size)
        if state:
            state.calibrate_seconds = (state.calibrate_seconds or 0.0) + time.perf_counter() - started
        return found

    return cached(key, hear)


def smoothing_key(spec: Spec) -> str:
    """What the smoothing factors follow from, beside the model and its statistics."""
    searched = spec.smoothquant is not None and spec.smoothquant.method == "search"
    for_what = (spec.weights, spec.activations, spec.share_tensor_scale) if searched else ()
    return repr((spec.smoothquant, *for_what))


def observed_on(whisper: Whisper, spec: Spec, calibration: Speech, batch_size: int) -> dict[str, Observed]:
    """Raises NonFiniteError that names the utterance."""
    try:
        return observe(
            whisper,
            lambda index: calibration.read(index, SAMPLING_RATE),
            len(calibration.utterances),
            batch_size=batch_size,
            max_new_tokens=spec.max_new_tokens,
            language=spec.decoding_language or spec.language,
        )
    except NonFiniteUtterance as error:
        raise named(error, calibration) from None


def activation_ranges(layers: list[Layer], spec: Spec, observed: dict[str, Observed]) -> dict[str, Range]:
    """The range of every input that has a static scale, by layer name."""
    ranges: dict[tuple[str, object], Range] = {}  # layers that read one tensor have one range
    found = {}
    for layer, activation in assign(layers, spec.activations):
        if activation.is_static:
            key = layer.source, activation
            if key not in ranges:
                ranges[key] = range_of(observed[layer.name], activation)
            found[layer.name] = ranges[key]
    return found


def named(error: NonFiniteUtterance, speech: Speech) -> NonFiniteError:
    """The error with the id of the utterance, in one line."""
    utterance = speech.utterances[error.index].id
    return NonFiniteError(
        f"utterance {utterance} of {speech.name} {speech.split}: {error}; "
        "check its audio, or quantize with more bits or another scale"
    )
