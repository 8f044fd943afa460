"""Intervals cover, p-values are calibrated, and both equal what simpler arithmetic gives."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wq.study.score.statistics import (
    bootstrap_interval,
    compare,
    holm,
    lower_rates,
    resampled_rates,
    student_quantile,
)


def corpus(seed: int, utterances: int = 300) -> tuple[np.ndarray, np.ndarray, float]:
    """Errors and words of utterances that differ in length and difficulty, and the true rate."""
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 20, utterances)
    return generator.binomial(words, generator.beta(1, 10, utterances)), words, 1 / 11


def few_errors(seed: int, utterances: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Most utterances without any."""
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 20, utterances)
    return generator.binomial(words, generator.beta(0.1, 3, utterances)), words, 0.1 / 3.1


def loops(seed: int, utterances: int) -> tuple[np.ndarray, np.ndarray, float]:
    """One utterance in a hundred ends in 50 inserted words."""
    generator = np.random.default_rng(seed)
    errors, words, _ = corpus(seed, utterances)
    return errors + 50 * (generator.random(utterances) < 0.01), words, 1 / 11 + 0.5 / 11


def coverage(corpora: int, resamples: int, draw=corpus, utterances: int = 300) -> float:
    """The share of corpora whose interval has the truth in it."""
    covered = 0
    for seed in range(corpora):
        errors, words, truth = draw(seed, utterances)
        interval = bootstrap_interval(errors, words, resamples=resamples, seed=corpora + seed)
        covered += interval.low <= truth <= interval.high
    return covered / corpora


def equals(seed: int, utterances: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two systems of the same quality, alike in what they find hard."""
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 20, utterances)
    rate = generator.beta(1, 10, utterances)
    return generator.binomial(words, rate), words, generator.binomial(words, rate)


def near_equals(seed: int, utterances: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two systems that differ in some twenty utterances only, for the better or the worse."""
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 20, utterances)
    changes = generator.choice([-2, -1, 0, 1, 2], utterances, p=[0.01, 0.025, 0.93, 0.025, 0.01])
    return 2 + changes, words, np.full(utterances, 2)


def false_alarms(pairs: int, resamples: int, draw, utterances: int = 300, level: float = 0.05) -> float:
    """How often systems of the same quality are told apart."""
    alarms = 0
    for seed in range(pairs):
        first, words, second = draw(seed, utterances)
        result = compare(
            first, words, second, changed=first != second, resamples=resamples, seed=pairs + seed
        )
        assert (result.p < level) == (not result.low <= 0 <= result.high) or abs(result.p - level) < 0.02
        alarms += result.p < level
    return alarms / pairs


def test_interval_covers_the_truth_in_95_percent_of_corpora():
    assert 0.93 <= coverage(1000, 400, utterances=150) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "utterances"), [(corpus, 300), (few_errors, 300), (loops, 2000)])
def test_interval_covers_the_truth_of_corpora_of_many_kinds(draw, utterances):
    assert 0.93 <= coverage(1000, 2000, draw, utterances) <= 0.97


@pytest.mark.parametrize("draw", [equals, near_equals])
def test_paired_test_is_calibrated_under_the_null(draw):
    assert abs(false_alarms(1000, 400, draw, utterances=150) - 0.05) <= 0.015


@pytest.mark.slow
@pytest.mark.parametrize("draw", [equals, near_equals])
def test_paired_test_is_calibrated_with_all_resamples(draw):
    assert abs(false_alarms(1000, 10_000, draw) - 0.05) <= 0.015


def test_one_sided_test_is_calibrated_under_the_null():
    """Either of two equal systems is called the better one in 2.5 % of corpora: together in 5 %."""
    alarms = sum(
        lower_rates(np.stack([first, second]), words, resamples=300, seed=1000 + seed).any()
        for seed, (first, words, second) in ((seed, equals(seed, 150)) for seed in range(1000))
    )
    assert abs(alarms / 1000 - 0.05) <= 0.02


def plain_lower_rates(errors, words, resamples, seed, level):
    """Romano and Wolf's step-down as the paper writes it: a loop over hypotheses."""
    rates = resampled_rates(errors, words, resamples, seed)
    points, utterances = errors.shape
    pairs = [(i, j) for i in range(points) for j in range(points) if i != j]
    shift = {(i, j): rates[:, j] - rates[:, i] for i, j in pairs}
    spread = {pair: shift[pair].std(ddof=1) for pair in pairs}
    observed = {(i, j): (errors[j].sum() - errors[i].sum()) / words.sum() for i, j in pairs}
    freedom = utterances - 1

    def statistic(pair):
        t = observed[pair] / spread[pair] * math.sqrt(freedom / utterances)
        z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
        return math.copysign(z, t)

    left, rejected = set(pairs), set()
    while True:
        largest = np.max([(shift[pair] - shift[pair].mean()) / spread[pair] for pair in left], axis=0)
        new = {pair for pair in left if statistic(pair) > np.quantile(largest, 1 - level)}
        if not new:
            return rejected
        rejected, left = rejected | new, left - new


@pytest.mark.parametrize("seed", range(5))
def test_the_step_down_equals_a_plain_one(seed):
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 20, 120)
    ease = generator.uniform(0.2, 1.8, 120)
    rates = np.array([0.1, 0.11, 0.14, 0.18, 0.2, 0.21])
    errors = generator.binomial(words, rates[:, None] * ease)
    found = lower_rates(errors, words, resamples=500, seed=seed, level=0.2)
    expected = plain_lower_rates(errors, words, 500, seed, 0.2)
    assert set(zip(*np.nonzero(found), strict=True)) == expected
    assert 0 < len(expected) < 15


def test_points_that_err_alike_cost_nothing():
    """Twenty copies of a pair decide what the pair decides, where a correction by their number would not."""
    errors, words, _ = equals(3, 300)
    worse = errors + (np.arange(300) % 60 == 0)
    pair = np.stack([errors, worse])
    assert lower_rates(pair, words)[0, 1]
    many = lower_rates(np.repeat(pair, 20, axis=0), words)
    assert many[:20, 20:].all()
    assert many.sum() == 400


def test_memory_is_bounded():
    generator = np.random.default_rng(0)
    errors = generator.binomial(9, 0.1, (300, 400))
    tracemalloc.start()
    lower_rates(errors, np.full(400, 9), resamples=1000)
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("freedom", "value"), [(4, 2.776), (9, 2.262), (29, 2.045), (199, 1.972), (math.inf, 1.960)]
)
def test_quantiles_of_student(freedom, value):
    """From tables."""
    assert student_quantile(0.975, freedom) == pytest.approx(value, rel=0.015)
    assert student_quantile(0.025, freedom) == pytest.approx(-student_quantile(0.975, freedom))


def test_one_utterance_tells_no_points_apart():
    assert not lower_rates([[0], [5]], [5]).any()


def test_all_points_are_resampled_together():
    errors, words, second = equals(7, 300)
    rates = resampled_rates(np.stack([errors, second, errors]), words, 200, 5)
    assert rates.shape == (200, 3)
    assert (rates[:, 0] == rates[:, 2]).all()
    alone = resampled_rates(second[None], words, 200, 5)
    assert (rates[:, 1] == alone[:, 0]).all()
    generator = np.random.default_rng(5)
    draws = generator.integers(300, size=(200, 300), dtype=np.int32)
    assert (rates[:, 0] == errors[draws].sum(axis=1) / words[draws].sum(axis=1)).all()


def test_sums_stay_exact_however_large():
    errors = np.array([[(1 << 30) + 1, 1 << 30]])
    assert set(resampled_rates(errors, np.array([1, 1]), 20, 0)[:, 0]) == {
        2.0**30,
        2.0**30 + 0.5,
        2.0**30 + 1,
    }


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.02], [0.02]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.01, 0.01], [0.03, 0.03, 0.03]),
        ([0.5, 0.9, 1.0], [1.0, 1.0, 1.0]),
        ([0.0, 0.04], [0.0, 0.04]),
        ([0.012, 0.013, 0.6], [0.036, 0.036, 0.6]),  # never smaller than that of a smaller p
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values).tolist() == pytest.approx(adjusted)


@given(st.lists(st.sampled_from([0.001, 0.01, 0.0124, 0.02, 0.05, 0.2, 1.0]), min_size=1), st.randoms())
def test_holm_rejects_step_by_step(p_values, shuffle):
    shuffle.shuffle(p_values)
    rejected = set()
    for step, n in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[n] * (len(p_values) - step) > 0.05:
            break
        rejected.add(n)
    assert {n for n, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


@pytest.mark.parametrize("p_values", [[0.1, math.nan], [-0.1], [1.1], [[0.1]]])
def test_what_is_no_list_of_p_values(p_values):
    with pytest.raises(ValueError, match="p-values are a list of numbers from 0 to 1"):
        holm(p_values)


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


def test_memory_does_not_grow_with_the_resamples():
    errors, words, _ = corpus(5, utterances=2620)
    tracemalloc.start()
    bootstrap_interval(errors, words, resamples=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6  # all draws at once are 200 MB
