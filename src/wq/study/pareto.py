"""The Pareto front: which points no other point beats."""

import math
from collections.abc import Sequence
from itertools import groupby


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
