"""How sure a word error rate is, and how sure a difference between two: the bootstrap over utterances.

Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004. A
corpus of N utterances is drawn again and again, N utterances at a time with replacement; each draw gives a
pooled rate, errors / words, and the draws show how the rate would vary over corpora like this one. For two
systems the same draws serve both, so that what makes an utterance hard for both of them cancels out. The same
seed gives the same digits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

DRAWS_AT_ONCE = 1 << 20  # utterances; bounds the memory to tens of MB whatever the corpus


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A system against a reference system, on the same utterances.

    delta      WER minus the reference's WER: positive is worse
    low, high  confidence interval of delta
    p          two-sided p-value of "there is no difference"; with R resamples never below 2 / (R + 1)
    no_worse   share of utterances with no more errors than the reference system made
    unchanged  share of utterances with the very transcript of the reference system
    """

    delta: float
    low: float
    high: float
    p: float
    no_worse: float
    unchanged: float


def bootstrap_interval(
    errors: ArrayLike, words: ArrayLike, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval of the pooled rate sum(errors) / sum(words).

    errors, words: [utterances]. ValueError: unequal shapes, no utterances, or an utterance without words.
    """
    errors, words = _checked(words, errors)
    rates = _resampled_rates(errors, words, resamples, seed)
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
    transcript differs from the reference system's. p is twice the smaller share of resampled differences on
    either side of zero (Efron & Tibshirani 1993, chapter 15), counting the observed corpus as one more
    resample. Raises as `bootstrap_interval` does.
    """
    errors, reference_errors, changed, words = _checked(words, errors, reference_errors, changed)
    difference = errors - reference_errors
    deltas = _resampled_rates(difference, words, resamples, seed)
    interval = _percentile_interval(deltas, level)
    tail = min(np.count_nonzero(deltas <= 0), np.count_nonzero(deltas >= 0))
    return Comparison(
        delta=float(difference.sum() / words.sum()),
        low=interval.low,
        high=interval.high,
        p=min(1.0, 2 * (int(tail) + 1) / (resamples + 1)),
        no_worse=float(np.mean(difference <= 0)),
        unchanged=float(np.mean(changed == 0)),
    )


def _checked(words: ArrayLike, *others: ArrayLike) -> list[np.ndarray]:
    """The arrays as int64, `words` last."""
    arrays = [np.asarray(array).astype(np.int64) for array in (*others, words)]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[-1].ndim != 1:
        raise ValueError(f"arrays of shapes {sorted(shapes)}; give one entry per utterance in each")
    if arrays[-1].size == 0:
        raise ValueError("no utterances; a rate needs at least one")
    if arrays[-1].min() < 1:
        raise ValueError("an utterance has no reference words; leave such utterances out")
    return arrays


def _resampled_rates(errors: np.ndarray, words: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[resamples] pooled rates of resampled corpora."""
    return np.concatenate(
        [
            errors[draws].sum(axis=1) / words[draws].sum(axis=1)
            for draws in _draws(len(words), resamples, seed)
        ]
    )


def _draws(utterances: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Indices [some resamples, utterances] into the corpus, a block at a time."""
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // utterances)
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), utterances)
        yield generator.integers(utterances, size=size, dtype=np.int32)


def _percentile_interval(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
