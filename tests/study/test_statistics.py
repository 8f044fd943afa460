"""Intervals cover, p-values are calibrated, and both equal what simpler arithmetic gives."""

import math
import time
import tracemalloc

import numpy as np
import pytest

from wq.study.statistics import bootstrap_interval, compare


def corpus(seed: int, utterances: int = 300) -> tuple[np.ndarray, np.ndarray, float]:
    """Errors and words of utterances that differ in length and difficulty, and the true rate."""
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 20, utterances)
    return generator.binomial(words, generator.beta(1, 10, utterances)), words, 1 / 11


def coverage(corpora: int, resamples: int) -> float:
    covered = 0
    for seed in range(corpora):
        errors, words, truth = corpus(seed)
        interval = bootstrap_interval(errors, words, resamples=resamples, seed=seed)
        covered += interval.low <= truth <= interval.high
    return covered / corpora


def false_alarms(pairs: int, resamples: int, level: float = 0.05) -> float:
    """How often two equally good systems, alike in what they find hard, are told apart."""
    alarms = 0
    for seed in range(pairs):
        generator = np.random.default_rng(seed)
        words = generator.integers(3, 20, 300)
        rate = generator.beta(1, 10, 300)
        first, second = generator.binomial(words, rate), generator.binomial(words, rate)
        result = compare(first, words, second, changed=first != second, resamples=resamples, seed=seed)
        assert (result.p < level) == (not result.low <= 0 <= result.high) or abs(result.p - level) < 0.02
        alarms += result.p < level
    return alarms / pairs


def test_interval_covers_the_truth():
    assert 0.91 <= coverage(corpora=300, resamples=500) <= 0.99


@pytest.mark.slow
def test_interval_covers_the_truth_in_95_percent_of_corpora():
    assert 0.93 <= coverage(corpora=1000, resamples=10_000) <= 0.97


def test_paired_test_rarely_tells_equals_apart():
    assert false_alarms(pairs=300, resamples=500) <= 0.09


@pytest.mark.slow
def test_paired_test_is_calibrated_under_the_null():
    assert abs(false_alarms(pairs=1000, resamples=10_000) - 0.05) <= 0.015


def test_interval_equals_the_normal_approximation_of_a_large_even_corpus():
    generator = np.random.default_rng(0)
    words = np.full(4000, 10)
    errors = generator.binomial(words, 0.2)
    interval = bootstrap_interval(errors, words)
    rate, half = errors.sum() / words.sum(), 1.96 * errors.std() / 10 / math.sqrt(4000)
    assert interval.low == pytest.approx(rate - half, abs=0.03 * half)
    assert interval.high == pytest.approx(rate + half, abs=0.03 * half)


def test_rate_is_pooled_not_a_mean_of_rates():
    # one long utterance without errors, one word that is wrong: 1/101, where a mean of rates is 1/2
    result = compare([0, 1], [100, 1], [0, 0], changed=[False, True])
    assert result.delta == 1 / 101
    assert (result.no_worse, result.unchanged) == (0.5, 0.5)


def test_identical_systems():
    errors, words, _ = corpus(0)
    result = compare(errors, words, errors, changed=np.zeros(300, bool))
    assert (result.delta, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert (result.no_worse, result.unchanged) == (1, 1)


def test_a_system_that_is_worse_everywhere_is_told_apart_with_the_smallest_p():
    errors, words, _ = corpus(0)
    result = compare(errors + 1, words, errors, changed=np.ones(300, bool), resamples=1000)
    assert result.p == 2 / 1001
    assert result.delta == 300 / words.sum()
    assert 0 < result.low < result.delta < result.high
    assert (result.no_worse, result.unchanged) == (0, 0)


def test_swapping_the_systems_mirrors_the_comparison():
    first, words, _ = corpus(1)
    second = np.random.default_rng(9).permutation(first)
    one = compare(first, words, second, changed=first != second)
    other = compare(second, words, first, changed=first != second)
    assert (one.delta, one.p) == (-other.delta, other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_pairing_narrows_the_interval_of_systems_that_find_the_same_utterances_hard():
    errors, words, _ = corpus(2)
    alone = bootstrap_interval(errors, words)
    slightly_worse = errors + (np.arange(300) % 50 == 0)
    paired = compare(slightly_worse, words, errors, changed=slightly_worse != errors)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_same_seed_same_digits_other_seed_other_digits():
    errors, words, _ = corpus(3)
    assert bootstrap_interval(errors, words, seed=1) == bootstrap_interval(errors, words, seed=1)
    assert bootstrap_interval(errors, words, seed=1) != bootstrap_interval(errors, words, seed=2)
    assert compare(errors, words, errors[::-1], changed=errors > 0) == compare(
        errors, words, errors[::-1], changed=errors > 0
    )


def test_a_higher_level_gives_a_wider_interval():
    errors, words, _ = corpus(4)
    narrow = bootstrap_interval(errors, words, level=0.8)
    wide = bootstrap_interval(errors, words, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_utterance_has_no_spread():
    interval = bootstrap_interval([3], [4])
    assert (interval.low, interval.high) == (0.75, 0.75)


@pytest.mark.parametrize(
    ("errors", "words", "message"),
    [
        ([], [], "no utterances"),
        ([1, 0], [2, 0], "no reference words"),
        ([1, 0], [2], r"shapes \[\(1,\), \(2,\)\]"),
        ([[1]], [[2]], "one entry per utterance"),
    ],
)
def test_arrays_that_are_no_corpus(errors, words, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(errors, words)


def test_librispeech_sized_corpus_is_quick_and_small():
    errors, words, _ = corpus(5, utterances=2620)
    tracemalloc.start()
    start = time.perf_counter()
    bootstrap_interval(errors, words, resamples=10_000)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 4  # 0.3 s on an idle core
    assert peak < 64e6
