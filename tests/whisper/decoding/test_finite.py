"""NaN and Inf are found, and nothing else is taken for them."""

import pytest
import torch

from wq.whisper.decoding.finite import NonFiniteRow, check_finite

NAN, INF, MOST = float("nan"), float("inf"), torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    "values",
    [
        [[3e38, 3e38, 3e38, 3e38]],  # whose sum is no float32
        [[-3e38, -3e38], [0.0, 1.0]],
        [[MOST, MOST, -MOST, -MOST]],
        [[0.0]],
    ],
)
def test_finite_values_pass(values):
    check_finite(torch.tensor(values), "the logits")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_values_of_few_bits_pass(dtype):
    check_finite(torch.full((2, 3, 4), torch.finfo(dtype).max, dtype=dtype), "the logits")


@pytest.mark.parametrize(
    ("values", "row", "kind"),
    [
        ([[0.0, 1.0], [NAN, 1.0]], 1, "NaN"),
        ([[INF, 1.0], [NAN, 1.0]], 0, "Inf"),
        ([[3e38, 3e38], [3e38, -INF]], 1, "Inf"),
    ],
)
def test_the_first_row_that_is_not_is_told(values, row, kind):
    with pytest.raises(NonFiniteRow, match=f"{kind} in the logits") as caught:
        check_finite(torch.tensor(values), "the logits")
    assert caught.value.row == row
