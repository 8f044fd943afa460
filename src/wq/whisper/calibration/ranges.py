"""Which range a static scale covers, from calibration: by maximum, percentile, squared error or entropy."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import fake_quantize, fake_quantizer
from wq.whisper.calibration.calibration import Observed, bin_edges
from wq.whisper.layers.schemes import Activation

# Shares of the whole range that are tried: a twelfth of an octave apart, eight octaves down
SHARES = tuple(2.0 ** (-step / 12) for step in range(97))
# Of the linear histogram whose divergence is minimised, and of the smallest range that is tried: with fewer
# bins than levels no rounding would be seen
ENTROPY_BINS, LEAST_ENTROPY_BINS = 2048, 128
LEAST_SHARE = 1e-12  # of a bin


class Range(NamedTuple):
    """What a static scale covers; beyond it values saturate. Without a zero point amin is -amax."""

    amin: float
    amax: float


def range_of(observed: Observed, activation: Activation) -> Range:
    """The range of an activation with a static scale, as its calibrator has it; of zeros, zero."""
    if observed.amin == observed.amax:
        return Range(0.0, 0.0)
    return CALIBRATORS[activation.calibrator or "max"](observed, activation)


def whole_range(observed: Observed, activation: Activation) -> Range:
    return _range(observed.amin, observed.amax, activation.quantizer)


def percentile_range(observed: Observed, activation: Activation) -> Range:
    """What covers so many percent of the magnitudes; with a zero point, of the values, with equal tails."""
    beyond = 1.0 - (activation.percentile or 100.0) / 100.0
    if not activation.quantizer.format.is_asymmetric:
        magnitude = quantile(observed.histogram, beyond)
        return _range(max(observed.amin, -magnitude), min(observed.amax, magnitude), activation.quantizer)
    total = int(observed.histogram.sum())
    low, high = (
        quantile(counts, min(beyond / 2 * total / max(int(counts.sum()), 1), 1.0))
        for counts in (observed.negative, observed.positive)
    )
    return _range(max(observed.amin, -low), min(observed.amax, high), activation.quantizer)


def quantile(counts: Tensor, beyond: float) -> float:
    """The magnitude that at most this share of the counted ones exceed: the upper edge of a bin."""
    above = counts.flip(0).cumsum(0).flip(0)  # in this bin and in those above it
    inside = int((above > beyond * int(counts.sum())).sum())
    return float(bin_edges()[inside])


def least_squares_range(observed: Observed, activation: Activation) -> Range:
    """The share of the whole range that gives the least squared rounding error: of all values where one scale
    is for all of them; of the sampled vectors where blocks have their own scales under a tensor scale."""
    quantizer, whole = activation.quantizer, whole_range(observed, activation)
    if quantizer.granularity == "tensor":
        values, counts = centers(observed)
    else:
        values, counts = observed.sample, torch.ones(())
    wide = values.double()

    def error(share: float) -> float:
        rounded = fake_quantize(values, *quantizer, amin=share * whole.amin, amax=share * whole.amax)
        return float(((rounded.double() - wide).square_() * counts).sum())

    share = min(SHARES, key=error)
    return Range(share * whole.amin, share * whole.amax)


def centers(observed: Observed) -> tuple[Tensor, Tensor]:
    """The middles of the bins that are not empty, float32 [1, n], and the counts of their values."""
    edges = bin_edges()
    middles = (edges[1:] + edges[:-1]) / 2
    middles[0] = 0.0
    values = torch.cat([-middles, middles]).clamp(observed.amin, observed.amax).float()
    counts = torch.cat([observed.negative, observed.positive])
    return values[counts > 0][None], counts[counts > 0]


def least_divergence_range(observed: Observed, activation: Activation) -> Range:
    """The range whose rounded values lose the least information (Migacz 2017, "8-bit inference with
    TensorRT"), in a linear histogram of magnitudes.

    For every range from 128 of its 2048 bins up, the reference P is the histogram inside it, with all that
    lies beyond counted in its last bin; Q has, in the bins that round to one value, the mean of those of P's
    own that are not empty.
    """
    amax = max(observed.amax, -observed.amin)
    counts = linear_histogram(observed, amax)
    rounded = fake_quantizer(*activation.quantizer, amax=1.0)
    bounds = range(LEAST_ENTROPY_BINS, ENTROPY_BINS + 1)
    best = min(bounds, key=lambda bins: divergence(counts, bins, rounded))
    magnitude = amax * best / ENTROPY_BINS
    return _range(-magnitude, magnitude, activation.quantizer)


def linear_histogram(observed: Observed, amax: float) -> np.ndarray:
    """float64 [ENTROPY_BINS], of the magnitudes from 0 to amax; a bin that is cut shares out its count."""
    edges = bin_edges().numpy().clip(max=amax)
    below = np.concatenate([[0.0], np.cumsum(observed.histogram.numpy())])
    return np.diff(np.interp(np.linspace(0.0, amax, ENTROPY_BINS + 1), edges, below))


def divergence(counts: np.ndarray, bins: int, rounded: Callable[[Tensor], Tensor]) -> float:
    """Kullback and Leibler's, of the first bins [0, 1) of the histogram from their rounded selves.

    It would be infinite where all that is beyond falls into an empty bin: a bin has `LEAST_SHARE` at least.
    """
    middles = (torch.arange(bins) + 0.5) / bins
    values = rounded(middles[None])[0].numpy()
    level = np.cumsum(np.diff(values, prepend=values[0]) > 0)
    inside = counts[:bins]
    filled = inside > 0
    mass, width = np.bincount(level, inside), np.bincount(level, filled)
    reference = inside.copy()
    reference[-1] += counts[bins:].sum()
    spread = np.where(filled, (mass / np.maximum(width, 1))[level], 0.0)
    some = reference > 0
    p, q = reference[some] / reference.sum(), spread[some] / max(spread.sum(), 1e-300)
    q = np.maximum(q, LEAST_SHARE)
    return float((p * np.log(p / q)).sum())


def _range(low: float, high: float, quantizer: Quantizer) -> Range:
    """With zero in it; without a zero point both ends are as far from it."""
    if quantizer.format.is_asymmetric:
        return Range(min(low, 0.0), max(high, 0.0))
    magnitude = max(-low, high)
    return Range(-magnitude, magnitude)


CALIBRATORS: Mapping[str, Callable[[Observed, Activation], Range]] = {
    "max": whole_range,
    "percentile": percentile_range,
    "mse": least_squares_range,
    "entropy": least_divergence_range,
}
