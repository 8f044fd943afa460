"""The Pareto front: which points no other point beats, and what a test set can say of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ON, EQUIVALENT, UNDECIDED, OFF = "on", "equivalent", "undecided", "off"


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
    """Compare every point with every other that does not make the same errors (`statistics.lower_rates`).

    errors: [points, utterances], or whatever else is summed over an utterance; words: integers [utterances].
    """
    import numpy as np

    from wq.study.score.statistics import lower_rates

    errors = np.asarray(errors)
    if not len(errors):
        return Ranking(np.zeros((0, 0), bool), np.zeros((0, 0), bool))
    distinct, place = np.unique(errors, axis=0, return_inverse=True)
    place = place.ravel()
    better = lower_rates(distinct, words, resamples=resamples, seed=seed, level=level)
    return Ranking(better[place[:, None], place], place[:, None] == place)


def standings(
    sizes: Sequence[float], ranking: Ranking, good: Sequence[bool], lost: Sequence[bool]
) -> list[str]:
    """Where each point stands, given that its error rate is known from this corpus only.

    sizes: [points], exact; good: [points], which are not inferior to the reference by more than a margin, as
    the reference itself; lost: [points], which are significantly worse than it. A point has as contenders all
    other points of no more bytes, but for those of its size that make its errors: they are one point. It is

    on          if it is the smallest that is good and that no contender is better than; or if it is better
                than every contender, of which there must be one: that nothing is smaller is no merit
    equivalent  if it is good, and no contender is better, but a smaller one is on for being good
    off         if a contender is better; or, if it is not good, where it is lost
    undecided   otherwise: more speech would decide it

    "Better" is significant, all of it together: see `rank`. A point that makes the errors of a smaller one is
    no better, and no worse.

    Raises ValueError for a size that is not finite.
    """
    import numpy as np

    size, kept = np.asarray(sizes, float), np.asarray(good, bool)
    if not np.isfinite(size).all():
        raise ValueError("a size is missing or not finite; give the standings of points whose size is known")
    one_point = ranking.same & (size[:, None] == size)
    contends = (size[:, None] <= size) & ~one_point  # [i, j]: i with j
    beaten = (contends & ranking.better).any(axis=0)
    ahead = contends.any(axis=0) & (ranking.better | ~contends.T).all(axis=1)
    kept = kept & ~beaten
    on = ahead | (kept & (size == size[kept].min(initial=math.inf)))
    off = beaten | np.asarray(lost, bool)
    return np.select([on, kept, off], [ON, EQUIVALENT, OFF], UNDECIDED).tolist()
