"""NaN and Inf in what the model computes, told with the row where they came up."""

import math

from torch import Tensor

from wq.numerics.fake_quant import NonFiniteError


class NonFiniteRow(NonFiniteError):
    """A tensor [rows, ...] of the computation holds NaN or Inf; `row` is the first of its rows that does."""

    def __init__(self, what: str, x: Tensor) -> None:
        self.row = int(x.isfinite().logical_not().flatten(1).any(1).nonzero()[0])
        super().__init__(f"{'NaN' if x[self.row].isnan().any() else 'Inf'} in {what}")


def check_finite(x: Tensor, what: str) -> None:
    """Raises NonFiniteRow. One sum tells for almost all tensors; that of large numbers may itself be Inf."""
    if not math.isfinite(x.sum()) and not x.isfinite().all():
        raise NonFiniteRow(what, x)
