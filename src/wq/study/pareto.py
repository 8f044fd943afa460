"""The Pareto front: which points no other point beats, and how sure that is."""

import math
from collections.abc import Sequence
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

    "Significantly better" means one thing in both: a lower rate, in a paired bootstrap over the utterances
    (`statistics.pairwise_p`) of all pairs of points, Holm-corrected over all of them. So all the points
    called on or off are rightly called so with a probability of at least 1 - level, as all of them are read
    together; the price is that the more points there are, the more evidence each takes. Points of the same
    size that make the same errors on every utterance are one point, and stand where it stands. A point that
    makes the errors of a smaller one is undecided: that is no evidence that it has no lower rate.

    Raises ValueError for a size that is not finite, and as `statistics.bootstrap_interval` does.
    """
    import numpy as np

    from wq.study.statistics import holm, pairwise_p

    if not len(sizes):
        return []
    if not all(math.isfinite(size) for size in sizes):
        raise ValueError("a size is missing or not finite; classify the points whose size is known")
    places = np.column_stack([np.asarray(sizes, float), errors])
    _, distinct, place = np.unique(places, axis=0, return_index=True, return_inverse=True)
    size, errors = np.asarray(sizes, float)[distinct], np.asarray(errors)[distinct]

    pairs = np.triu_indices(len(size), 1)
    adjusted = np.ones((len(size), len(size)))
    adjusted[pairs] = holm(pairwise_p(errors, words, resamples=resamples, seed=seed)[pairs])
    significant = np.minimum(adjusted, adjusted.T) <= level

    total = errors.sum(axis=1)
    beats = significant & (total[:, None] < total)  # [i, j]: i is better than j
    contends = size[:, None] <= size  # [i, j]: i has no more bytes than j
    np.fill_diagonal(contends, False)
    off = (contends & beats).any(axis=0)
    on = (beats | ~contends.T).all(axis=1)
    standing = np.where(on, ON, np.where(off, OFF, UNDECIDED))
    return standing[place.ravel()].tolist()
