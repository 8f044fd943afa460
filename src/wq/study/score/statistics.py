"""How sure a word error rate is, and how sure a difference between two: the bootstrap over utterances.

Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004. A
corpus of N utterances is drawn again and again, N utterances at a time with replacement; each draw gives a
pooled rate, errors / words, and the draws show how the rate would vary over corpora like this one. For two
systems the same draws serve both, so that what makes an utterance hard for both of them cancels out. The same
seed gives the same digits.

Percentile intervals are the plainest, and hold what they promise for corpora of some hundred utterances and
more. Where fewer have any errors, or rare bursts of them, they are too narrow. Corrected (BCa) and
studentised ones do a little better there, but tell systems apart that differ by chance in a few utterances,
which is what quantization mostly does.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

DRAWS_AT_ONCE = 1 << 20  # utterances; bounds the memory to tens of MB whatever the corpus
MAXIMA = 2000  # resamples of which the quantile of a maximum is taken: its level is known to half a percent
FEWEST_MAXIMA = 200
DIFFERENCES = 1 << 29  # at most, in all of them together: a thousand points take some 500 resamples
AT_ONCE = 128  # of them, so that the differences of a thousand points stay in a core's cache
ROUNDING = 1e-6  # a standard error that is this small a part of the largest is none


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A system against a reference system, on the same utterances.

    delta      its rate minus the reference's: positive is worse
    low, high  confidence interval of delta
    p          two-sided p-value of "there is no difference"; with R resamples never below 2 / (R + 1)
    """

    delta: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison(Difference):
    """Of two word error rates.

    no_worse   share of utterances with no more errors than the reference system made
    unchanged  share of utterances with the very transcript of the reference system
    """

    no_worse: float
    unchanged: float


def bootstrap_interval(
    errors: ArrayLike, words: ArrayLike, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval of the pooled rate sum(errors) / sum(words).

    errors, words: [utterances]; in place of errors may stand any sums over an utterance, such as nats, and in
    place of words the number of what they are sums over. ValueError: unequal shapes, no utterances, or an
    utterance without words.
    """
    errors, words = _checked(words, errors)
    rates = resampled_rates(errors[None], words, resamples, seed)[:, 0]
    return _percentile_interval(rates, level)


def compare(
    errors: ArrayLike,
    words: ArrayLike,
    reference_errors: ArrayLike,
    *,
    changed: ArrayLike,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Paired bootstrap of the difference in WER between a system and a reference system.

    errors, reference_errors, words: [utterances], in the same order; changed: bool [utterances], whether the
    transcript differs from the reference system's. Raises as `bootstrap_interval` does.
    """
    errors, reference_errors, changed, words = _checked(words, errors, reference_errors, changed)
    more = errors - reference_errors
    found = difference(more, words, resamples=resamples, seed=seed, level=level)
    return Comparison(
        **vars(found), no_worse=float(np.mean(more <= 0)), unchanged=float(np.mean(changed == 0))
    )


def difference(
    differences: ArrayLike,
    words: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Paired bootstrap of a difference of rates, sum(differences) / sum(words), each [utterances].

    p is twice the smaller share of resampled differences on either side of zero (Efron & Tibshirani 1993,
    chapter 15), counting the observed corpus as one more resample. Raises as `bootstrap_interval` does.
    """
    differences, words = _checked(words, differences)
    deltas = resampled_rates(differences[None], words, resamples, seed)[:, 0]
    interval = _percentile_interval(deltas, level)
    tail = min(np.count_nonzero(deltas <= 0), np.count_nonzero(deltas >= 0))
    return Difference(
        delta=float(differences.sum() / words.sum()),
        low=interval.low,
        high=interval.high,
        p=min(1.0, 2 * (int(tail) + 1) / (resamples + 1)),
    )


def lower_rates(
    errors: ArrayLike, words: ArrayLike, *, resamples: int = 10_000, seed: int = 0, level: float = 0.05
) -> np.ndarray:
    """Which points have a lower rate than which: bool [points, points], the first than the second.

    errors: [points, utterances]; words: [utterances]; as of `bootstrap_interval`. One-sided tests of every
    point against every other, stepped down by the largest statistic over shared resamples (Romano & Wolf,
    "Exact and approximate stepdown methods for multiple hypothesis testing", JASA 2005): any wrong one among
    them all has a probability of at most `level`, and points that err alike cost little, unlike in a
    Bonferroni correction.
    A statistic is a difference in units of its bootstrap standard error, shrunk to what Student's t with
    utterances - 1 degrees of freedom makes of it. One utterance tells nothing. Raises as `bootstrap_interval`
    does.
    """
    errors, words = _checked(words, errors)
    rates = resampled_rates(errors, words, resamples, seed)
    rates -= rates.mean(axis=0)
    covariance = rates.T @ rates / (resamples - 1)
    variance, freedom = np.diag(covariance), len(words) - 1
    spread = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0))
    total = errors.sum(axis=1)
    delta = (total - total[:, None]) / words.sum()  # [i, j]: how much lower the rate of i is
    lower = np.zeros(delta.shape, bool)
    if not freedom:
        return lower
    with np.errstate(divide="ignore"):  # a difference without spread is as sure as can be
        t = np.divide(delta, spread, out=np.zeros_like(delta), where=delta > 0)
        weights = np.where(spread > ROUNDING * spread.max(initial=0), 1 / spread, 0).astype(np.float32)
    statistic = _as_normal(t * math.sqrt(freedom / len(words)), freedom)
    kept = min(MAXIMA, max(FEWEST_MAXIMA, DIFFERENCES // len(errors) ** 2))
    shifts = rates[:kept].astype(np.float32)
    while True:
        critical = np.quantile(_largest(shifts, np.where(lower, 0, weights)), 1 - level)
        more = statistic > critical
        if (more == lower).all():
            return lower
        lower = more


def _largest(shifts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The largest (shift of j - shift of i) * weight [i, j] in a resample; shifts: [resamples, points]."""
    largest = np.zeros(len(shifts), np.float32)
    for start in range(0, len(shifts), AT_ONCE):
        block = shifts[start : start + AT_ONCE]
        room, most = np.empty_like(block), largest[start : start + AT_ONCE]
        for point, weight in enumerate(weights):
            np.subtract(block, block[:, point : point + 1], out=room)
            np.multiply(room, weight, out=room)
            np.maximum(most, room.max(axis=1), out=most)
    return largest


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values, in the order given: rejecting those of at most `level` makes any false rejection
    among them all have a probability of at most `level` (Holm 1979).

    A p from R resamples is never below 2 / (R + 1), so that of more than level * (R + 1) / 2 of them, 250 of
    10,000 resamples, none can pass.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, float)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError("p-values are a list of numbers from 0 to 1; leave out those that are missing")
    order = np.argsort(p_values, kind="stable")
    remaining = np.arange(len(order), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * remaining), 1)
    return adjusted


def resampled_rates(errors: np.ndarray, words: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Pooled rates [resamples, points] of resampled corpora, the same ones for all points.

    errors: [points, utterances]; words: integers [utterances].
    """
    counted = np.vstack([errors, words]).T
    # Sums that are integers below 2^24 are exact in float32, whatever order they are added in
    exact = counted.dtype.kind == "i" and np.abs(counted).max() * len(counted) < 1 << 24
    counted = counted.astype(np.float32 if exact else np.float64)
    rates = np.empty((resamples, len(errors)))
    done = 0
    for counts in _draws(len(words), resamples, seed):
        sums = counts.astype(counted.dtype) @ counted
        np.divide(sums[:, :-1], sums[:, -1:], out=rates[done : done + len(counts)], dtype=np.float64)
        done += len(counts)
    return rates


def _checked(words: ArrayLike, *others: ArrayLike) -> list[np.ndarray]:
    """The arrays as int64 or float64, `words` last. Those before it have one entry per utterance in their
    last axis."""
    given = (np.asarray(array) for array in (*others, words))
    arrays = [array.astype(np.float64 if array.dtype.kind == "f" else np.int64) for array in given]
    if arrays[-1].ndim != 1 or any(array.shape[-1:] != arrays[-1].shape for array in arrays):
        shapes = sorted({array.shape for array in arrays})
        raise ValueError(f"arrays of shapes {shapes}; give one entry per utterance in each")
    if arrays[-1].size == 0:
        raise ValueError("no utterances; a rate needs at least one")
    if arrays[-1].min() < 1:
        raise ValueError("an utterance has no reference words; leave such utterances out")
    return arrays


def _draws(utterances: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each utterance is drawn, [some resamples, utterances], a block at a time."""
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // utterances)
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), utterances)
        draws = generator.integers(utterances, size=size, dtype=np.int32)
        draws += np.arange(size[0], dtype=np.int32)[:, None] * utterances
        yield np.bincount(draws.ravel(), minlength=draws.size).reshape(size)


def _percentile_interval(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _as_normal(t: np.ndarray, freedom: int) -> np.ndarray:
    """The standard normal values as unlikely as those of Student's t, or hardly less so (Wallace 1959)."""
    return (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t * t / freedom))


def student_quantile(probability: float, freedom: float) -> float:
    """The value that Student's t stays below with this probability: the inverse of `_as_normal`.

    >>> round(student_quantile(0.975, 10), 2)
    2.23
    """
    z = NormalDist().inv_cdf(probability)
    if math.isinf(freedom):
        return z
    z *= (8 * freedom + 3) / (8 * freedom + 1)
    return math.copysign(math.sqrt(freedom * math.expm1(z * z / freedom)), z)


def two_sided(z: ArrayLike) -> np.ndarray:
    """The probability of a standard normal value at least as far from zero."""
    return np.vectorize(math.erfc, otypes=[float])(np.abs(z) / math.sqrt(2))
