"""Linear layers through oneDNN, where that is faster than the BLAS that torch was built with.

torch's x86 builds multiply float32 matrices with MKL, which on AMD processors leaves out AVX-512: there
oneDNN, which comes in the same build, is two to three times as fast; on others the two are level.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Fewer rows than this are multiplied at the speed of memory, whoever does it
ENOUGH_ROWS = 32


class OneDNNLinear(TorchFunctionMode):
    """Inside, every float32 `linear` on a CPU is oneDNN's, whichever module calls it. Not differentiable."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.linear and not kwargs and all(map(is_plain, args)):
            x, weight, bias = args
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def is_plain(operand: Tensor | None) -> bool:
    return operand is None or (
        operand.device.type == "cpu" and operand.dtype == torch.float32 and operand.is_contiguous()
    )


def fast_linear(rows: int) -> AbstractContextManager:
    """The faster way to compute linear layers on this many rows."""
    worth_it = rows >= ENOUGH_ROWS and torch.backends.mkldnn.is_available()
    return OneDNNLinear() if worth_it else nullcontext()
