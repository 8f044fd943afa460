"""Which points are no worse than a reference by more than a margin: what a recommendation rests on.

An interval of the change that contains zero is absence of evidence, and the less speech there is the more
points have one. A point is *not inferior* where what its change can be at most lies at or below the margin
(the convention of trials: ICH E9, section 3.3.2). Out of many points that are tested the smallest of those
that pass is chosen, and that one may be wrong with a probability of 5 % only: so the points are tested in an
order that is fixed beforehand, from the most bytes to the fewest, by the fallback procedure (Wiens 2003,
"A fixed sequence Bonferroni procedure for testing multiple endpoints"). Each point brings an equal share of
the 5 %; one that passes hands on what it was tested at to the next smaller one, one that fails keeps it.
So a grid that is in order is tested almost as if it were one point, and a bad large point closes no way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from wq.study.score.statistics import student_quantile

MARGIN = 0.005  # half a point of WER, as a fraction
LEVEL = 0.05
HALF_WIDTHS = 2 * NormalDist().inv_cdf(0.975)  # a 95 % interval in standard errors


@dataclass(frozen=True)
class Change:
    """A point's WER minus the reference's, with its 95 % interval, on `utterances` of `words` in all; without
    these two nothing but the interval counts."""

    delta: float
    low: float
    high: float
    utterances: float = math.inf
    words: float = math.inf


def bounds(changes: Sequence[Change], margin: float, level: float = LEVEL) -> list[float]:
    """What each change can be at most, the points given from the most bytes to the fewest: those whose bound
    is at or below the margin are not inferior, all of them with a probability of at least 1 - level.

    A bound is never below the interval's own end. Beside that it is a score bound (Wilson 1927), with
    Student's t: were the change as large as the bound, the errors that were not seen would widen the interval
    too, one by one. So where no utterance has changed at all some three errors may still have been missed
    (the rule of three, Hanley & Lippman-Hand 1983), and an interval of no width is no certainty.

    Points whose interval lies beyond the margin are lost already: they bring no share of the level, and stop
    none.
    """
    tested = [change.low <= margin for change in changes]
    share = level / max(1, sum(tested))
    found, carried = [], 0.0
    for change, is_tested in zip(changes, tested, strict=True):
        found.append(_bound(change, carried + share))
        if is_tested:
            carried = carried + share if found[-1] <= margin else 0.0
    return found


def _bound(change: Change, level: float) -> float:
    freedom = change.utterances - 1
    if freedom < 1:
        return math.inf
    spread = (change.high - change.low) / HALF_WIDTHS * math.sqrt(1 + 1 / freedom)
    t = student_quantile(1 - level, freedom)
    unseen = t / change.words  # the reach solves reach = t * sqrt(spread^2 + reach / words)
    reach = t * (unseen + math.hypot(unseen, 2 * spread)) / 2
    return max(change.high, change.delta + reach)


def utterances_needed(change: Change, bound: float, margin: float) -> float:
    """How many utterances would show that a point is not inferior, if it is as it seems, and no better than
    the reference where it seems better: widths go with 1 / sqrt(utterances). Infinite where it seems worse by
    the margin."""
    room = margin - max(change.delta, 0.0)
    return change.utterances * ((bound - change.delta) / room) ** 2 if room > 0 else math.inf


def parse_margin(text: str | None) -> float:
    """A margin as given to a command. Raises ValueError for what is none."""
    try:
        margin = MARGIN if text is None else float(text)
    except ValueError:
        margin = math.nan
    if not 0 <= margin <= 1:
        raise ValueError(f"margin={text} is no fraction of WER; give one from 0 to 1: 0.005 is half a point")
    return margin
