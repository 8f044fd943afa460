"""Word error rates that are expected of models, and those that are not as expected."""

from collections.abc import Iterable, Mapping, Sequence

from wq.study.compare.scenes import is_finished
from wq.study.store.results import Row

Bands = Mapping[str, Sequence[float]]


class UnexpectedError(RuntimeError):
    """A word error rate outside of its band."""


def unexpected(rows: Iterable[Row], bands: Bands) -> list[UnexpectedError]:
    """An error for every finished row whose WER is outside of its model's band, [low, high] as fractions."""
    found = []
    for row in rows:
        low, high = bands.get(str(row.get("model")), (0.0, float("inf")))
        if is_finished(row) and not low <= row["wer"] <= high:
            found.append(
                UnexpectedError(
                    f"{row['model']} {row['point']}: WER {100 * row['wer']:.2f} % is outside of the "
                    f"{100 * low:g} to {100 * high:g} % that expect_wer says; "
                    "check the test set and the decoding"
                )
            )
    return found
