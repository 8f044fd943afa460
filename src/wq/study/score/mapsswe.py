"""The matched pairs sentence-segment word error test (MAPSSWE), as NIST's SCTK does it.

Gillick & Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989;
`sc_stats -t mapsswe` of SCTK (src/sclite/mtchprs.c). Two systems' errors are counted in segments that are
bounded by words which both got right, so that errors in one segment say nothing of errors in the next. The
alignment is that of `wer`, all errors of the same cost, where SCTK's own sclite weighs them 4 : 3 : 3; given
the same alignment the results are those of sc_stats.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from wq.study.score.statistics import two_sided

BOUNDARY = 2  # words in a row that both systems got right end a segment; SCTK's default

Alignment = Sequence[tuple[str, str | None, str | None]]  # as `wer.alignment` gives it


@dataclass(frozen=True)
class MatchedPairs:
    """How far the mean difference of errors in a segment is from zero.

    segments  those with an error of either system
    z         mean difference / (standard deviation / sqrt(segments)); positive where the first is worse
    p         two-sided, z being normal
    """

    segments: int
    z: float

    @property
    def p(self) -> float:
        return float(two_sided(self.z))


def mapsswe(pairs: Iterable[tuple[Alignment, Alignment]]) -> MatchedPairs:
    """The test of two systems from the alignments of every utterance, of the first and of the second system
    with the same reference.

    z is 0, as in SCTK, where all differences are equal: their spread is then unknown.
    """
    counts = [segment for first, second in pairs for segment in segments(first, second)]
    differences = np.array([first - second for first, second in counts], float)
    if len(set(differences)) < 2:
        return MatchedPairs(len(counts), 0.0)
    spread = differences.std(ddof=1) / math.sqrt(len(counts))
    return MatchedPairs(len(counts), float(differences.mean() / spread))


def segments(first: Alignment, second: Alignment) -> list[tuple[int, int]]:
    """The errors of both systems in each segment of an utterance.

    A segment begins with an error of either system and ends before `BOUNDARY` words in a row that both got
    right, with nothing inserted between them, or with the utterance.

    Raises ValueError where the two are not aligned with the same reference.
    """
    places, other_places = _errors(first), _errors(second)
    if len(places) != len(other_places):
        raise ValueError(
            f"references of {len(places) // 2} and {len(other_places) // 2} words; align both systems with "
            "the same one"
        )
    found: list[tuple[int, int]] = []
    right = BOUNDARY  # words in a row
    for place, errors in enumerate(zip(places, other_places, strict=True)):
        if any(errors):
            if right >= BOUNDARY:
                found.append((0, 0))
            found[-1] = (found[-1][0] + errors[0], found[-1][1] + errors[1])
            right = 0
        else:
            right += place % 2  # gaps between words are no words
    return found


def _errors(alignment: Alignment) -> list[int]:
    """Errors [2 * reference words + 1]: of every word, and of every gap before, between and after them."""
    places = [0]
    for operation, _, _ in alignment:
        if operation == "insert":
            places[-1] += 1
        else:
            places += [int(operation != "equal"), 0]
    return places
