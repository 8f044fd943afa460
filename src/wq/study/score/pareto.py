"""The Pareto front: which points no other point beats, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ON, OFF, UNDECIDED = "on", "off", "undecided"


def front(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Whether each point (size, error), both better when smaller, is on the front.

    A point is off the front when another is no larger and has no more errors, and is better in one of the
    two. So of equal sizes only the fewest errors stay, of equal errors only the smallest size, and equal
    points stay or go together. A point with a coordinate that is missing or not finite is off the front and
    beats nothing. O(n log n).

    >>> front([(4, 0.07), (8, 0.05), (8, 0.06), (16, 0.05)])
    [True, True, False, False]
    """
    known = sorted(
        (size, error, n)
        for n, (size, error) in enumerate(points)
        if size is not None and error is not None and math.isfinite(size) and math.isfinite(error)
    )
    on = [False] * len(points)
    fewest = math.inf
    for _, same_size in groupby(known, key=lambda entry: entry[0]):
        _, best, first = next(same_size)  # sorted: the first of a size has its fewest errors
        if best < fewest:
            fewest = best
            on[first] = True
            for _, error, n in same_size:
                on[n] = error == best
    return on


def classify(
    sizes: Sequence[float],
    errors: "np.ndarray",
    words: "np.ndarray",
    *,
    resamples: int,
    seed: int,
    level: float = 0.05,
) -> list[str]:
    """Where each point stands, given that its error rate is known from this corpus only.

    sizes: [points], exact; errors: integers [points, utterances]; words: integers [utterances]. A point has
    as contenders all other points of no more bytes, and is

    off        if any contender is significantly better,
    on         if it is significantly better than every contender, so that none could replace it: the
               smallest point has none, and is on whatever its errors,
    undecided  otherwise.

    "Significantly better" means one thing in both: see `rank`. So all the points called on or off are rightly
    called so with a probability of at least 1 - level, as all of them are read together; the price is that
    the more points there are, the more evidence each takes. Points of the same size that make the same errors
    on every utterance are one point, and stand where it stands. A point that makes the errors of a smaller
    one is undecided: that is no evidence that it has no lower rate.

    Raises ValueError for a size that is not finite, and as `statistics.bootstrap_interval` does.
    """
    return standings(sizes, rank(errors, words, resamples=resamples, seed=seed, level=level))


@dataclass(frozen=True)
class Ranking:
    """What a corpus says of points, whatever their sizes; bool [points, points].

    better  the first has significantly fewer errors than the second
    same    the two make the same errors on every utterance
    """

    better: "np.ndarray"
    same: "np.ndarray"


def rank(
    errors: "np.ndarray", words: "np.ndarray", *, resamples: int, seed: int, level: float = 0.05
) -> Ranking:
    """Compare every point with every other: a lower rate by a paired bootstrap over the utterances
    (`statistics.pairwise_p`), Holm-corrected over all pairs of points that do not make the same errors."""
    import numpy as np

    from wq.study.score.statistics import holm, pairwise_p

    errors = np.asarray(errors)
    if not len(errors):
        return Ranking(np.zeros((0, 0), bool), np.zeros((0, 0), bool))
    distinct, place = np.unique(errors, axis=0, return_inverse=True)
    place = place.ravel()
    pairs = np.triu_indices(len(distinct), 1)
    significant = np.zeros((len(distinct), len(distinct)), bool)
    significant[pairs] = holm(pairwise_p(distinct, words, resamples=resamples, seed=seed)[pairs]) <= level
    total = distinct.sum(axis=1)
    better = (significant | significant.T) & (total[:, None] < total)
    return Ranking(better[place[:, None], place], place[:, None] == place)


def standings(sizes: Sequence[float], ranking: Ranking) -> list[str]:
    """on, off or undecided, as `classify` says, for one measure of size."""
    import numpy as np

    size = np.asarray(sizes, float)
    if not np.isfinite(size).all():
        raise ValueError("a size is missing or not finite; classify the points whose size is known")
    no_larger = size[:, None] <= size  # [i, j]: i has no more bytes than j
    one_point = ranking.same & (size[:, None] == size)
    contends = no_larger & ~one_point
    off = (contends & ranking.better).any(axis=0)
    on = (ranking.better | ~contends.T).all(axis=1)
    return np.where(on, ON, np.where(off, OFF, UNDECIDED)).tolist()
