"""Linear layers and attention through oneDNN, where that is faster than the BLAS that torch was built with.

torch's x86 builds multiply float32 matrices with MKL, which on AMD processors leaves out AVX-512: there
oneDNN, which comes in the same build, is two to three times as fast; on others the two are level.

And a row of its products has the same bits whatever other rows there are, but for one row alone, which it
sums in another order, while MKL has an order for one row, one for two and three, and one for more. Where
activations are rounded, a last bit can become another code and then another token.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Packed weights are copies: so many bytes of them at most, enough for all of Whisper small's decoder
MOST_PACKED = 2**30
# The number of rows that oneDNN chooses their layout for
PACKED_FOR = 32
# For fewer queries, torch's own attention is as fast
ENOUGH_QUERIES = 512
# The weights of so many queries over 1,500 keys stay in the cache between the two products
QUERIES_AT_ONCE = 256


class OneDNN(TorchFunctionMode):
    """Inside, `linear` and long attention without a mask are oneDNN's, whichever module calls them.

    Only in float32 on a CPU, and not differentiable.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs and all(map(is_plain, args)):
            return linear(*args)
        if func is F.scaled_dot_product_attention and is_long_attention(*args, **kwargs):
            return attention(*args, scale=kwargs["scale"])
        return func(*args, **kwargs)


def fast_products() -> AbstractContextManager:
    """The faster way to compute linear layers, and attention between them."""
    return OneDNN() if torch.backends.mkldnn.is_available() else nullcontext()


@contextmanager
def packed_weights(*modules: nn.Module) -> Iterator[None]:
    """Inside, the linear layers of these modules also have their weights in the layout that oneDNN computes
    in, which it would otherwise make anew for every product: with the same bits, and for a few rows in down
    to half the time. The weights may not change meanwhile."""
    parts = (part for module in modules for part in module.modules() if isinstance(part, nn.Linear))
    weights: list[Any] = [part.weight for part in parts]
    packed, room = [], MOST_PACKED
    for weight in weights:
        room -= weight.nbytes
        if room >= 0 and is_plain(weight) and torch.backends.mkldnn.is_available():
            weight.packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), PACKED_FOR)
            packed.append(weight)
    try:
        yield
    finally:
        for weight in packed:
            del weight.packed


def is_plain(operand: Tensor | None) -> bool:
    return operand is None or (is_float_on_cpu(operand) and operand.is_contiguous())


def is_float_on_cpu(operand: Tensor) -> bool:
    return operand.device.type == "cpu" and operand.dtype == torch.float32


def is_long_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> bool:
    return (
        not (is_causal or more)
        and scale is not None
        and query.shape[2] >= ENOUGH_QUERIES
        and all(map(is_float_on_cpu, (query, key, value)))
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, with the same bits for a row of x [..., K] whatever its other rows, and whether or not the
    weight [N, K] is packed."""
    weight = getattr(weight, "packed", weight)
    product = torch.ops.mkldnn._linear_pointwise.default
    if x.numel() > x.shape[-1]:
        return product(x, weight, bias, "none", [], "")
    both = torch.cat((x, x)).view(2, -1)
    return product(both, weight, bias, "none", [], "")[:1].view(*x.shape[:-1], -1)


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """`scaled_dot_product_attention` of [rows, heads, positions, head size], a block of queries at a time."""
    query, key, turned = (query * scale).contiguous(), key.contiguous(), value.mT.contiguous()
    rows, heads, positions, size = query.shape
    mixed = torch.empty(rows, positions, heads, size)
    for row in range(rows):
        for head in range(heads):
            for first in range(0, positions, QUERIES_AT_ONCE):
                block = slice(first, first + QUERIES_AT_ONCE)
                weights = linear(query[row, head, block], key[row, head])
                torch.softmax(weights, -1, out=weights)
                mixed[row, block, head] = linear(weights, turned[row, head])
    return mixed.transpose(1, 2)
