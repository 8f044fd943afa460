"""Linear layers and attention through oneDNN, where torch's own are slower, or sum in several orders.

torch's x86 builds multiply float32 matrices with MKL, which on AMD processors leaves out AVX-512: there
oneDNN, which comes in the same build, is two to three times as fast; on others with AVX-512 the two are
level. Without AVX-512 MKL is the faster, and so is torch's attention.

The encoder, which multiplies a whole window at least, takes the faster: either gives a row of so many the
same bits. The decoder takes oneDNN anywhere. A row of its products has the same bits whatever other rows
there are, but for one row alone, which it sums in another order, while MKL has orders of its own for a few
rows to a thread. Where activations are rounded, a last bit can become another code and then another token.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Packed weights are copies: so many bytes of them at most, enough for all of Whisper small's decoder
MOST_PACKED = 2**30
# The number of rows that oneDNN chooses their layout for
PACKED_FOR = 32
# For fewer queries, torch's own attention is as fast
ENOUGH_QUERIES = 512
# The weights of so many queries over 1,500 keys stay in the cache between the two products
QUERIES_AT_ONCE = 256


def encoder_library() -> str:
    """What multiplies and attends in the encoder, in float32 on a CPU: torch itself, or onednn.

    By the kind of processor and of torch's build, so that a machine always gives the same bits.
    """
    is_torch_faster = torch.backends.mkl.is_available() and "AVX512" not in cpu_capability()
    return "torch" if is_torch_faster or not torch.backends.mkldnn.is_available() else "onednn"


def cpu_capability() -> str:
    """The vector instructions that torch uses here, as it names them: AVX2, AVX512, ..."""
    return torch.backends.cpu.get_cpu_capability()


@contextmanager
def fast_products(*modules: nn.Module) -> Iterator[None]:
    """Inside, the linear layers of these modules are computed by `linear` where they are in float32 on a CPU,
    with all their hooks. Their weights may not change meanwhile; not differentiable."""
    layers = [
        layer for layer in linear_layers(modules) if is_fast(layer.weight) and "forward" not in vars(layer)
    ]
    for layer in layers:
        weight = getattr(layer.weight, "packed", layer.weight)
        forward: Any = partial(linear, weight=weight, bias=layer.bias)
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def packed_weights(*modules: nn.Module) -> Iterator[None]:
    """Inside, the weights of these modules' linear layers are also there in the layout that oneDNN computes
    in, which `linear` would otherwise make anew for every product: with the same bits, and for a few rows in
    down to half the time. The weights may not change meanwhile."""
    packed, room = [], MOST_PACKED
    for layer in linear_layers(modules):
        weight: Any = layer.weight
        room -= weight.nbytes
        if room >= 0 and is_fast(weight):
            weight.packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), PACKED_FOR)
            packed.append(weight)
    try:
        yield
    finally:
        for weight in packed:
            del weight.packed


def linear_layers(modules: Iterable[nn.Module]) -> Iterator[nn.Linear]:
    return (part for module in modules for part in module.modules() if isinstance(part, nn.Linear))


def is_fast(weight: Tensor) -> bool:
    return is_float_on_cpu(weight) and weight.is_contiguous() and torch.backends.mkldnn.is_available()


def is_float_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of float32 tensors on a CPU, with the same bits for a row of x [..., K] whatever its other
    rows, and whether or not the weight [N, K] is packed."""
    product = torch.ops.mkldnn._linear_pointwise.default
    if x.numel() > x.shape[-1]:
        return product(x.contiguous(), weight, bias, "none", [], "")
    both = x.reshape(1, -1).expand(2, -1)
    return product(both, weight, bias, "none", [], "")[:1].view(*x.shape[:-1], -1)


def convolve(x: Tensor, layer: nn.Conv1d) -> Tensor:
    """The layer's output for x [rows, channels, frames], with the same bits for a row whatever other rows
    there are: torch takes another kernel for a single row of few frames."""
    if not is_fast(layer.weight):
        return layer(x)
    x, weight = x.unsqueeze(2), layer.weight.unsqueeze(2)
    padding, stride = (0, int(layer.padding[0])), (1, layer.stride[0])
    return torch.mkldnn_convolution(x, weight, layer.bias, padding, stride, (1, 1), 1).squeeze(2)


def suits_attention(query: Tensor) -> bool:
    """Whether `attention` is faster than torch's own for queries [rows, heads, positions, head size]."""
    return query.shape[2] >= ENOUGH_QUERIES and is_float_on_cpu(query) and encoder_library() == "onednn"


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
