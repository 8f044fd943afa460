"""Codes as dense bits, scales in the precision they are counted in: what a file holds, and back, exactly.

Code i of a tensor, counted along its rows, takes the bits i*b to i*b + b-1 of one stream, whose bit k is bit
k % 8 of byte k // 8. So two 4-bit codes share a byte, the first in its low half; eight 3-bit codes share
three bytes. Negative codes are two's complement.
"""

import math

import torch
from torch import Tensor

from wq.numerics.effective import resolve
from wq.numerics.elements import CAST_DTYPES, MANTISSA_BITS, code_dtype
from wq.numerics.fake_quant import Quantized
from wq.numerics.formats import Format
from wq.numerics.granularity import scale_shape

TILE = 1 << 17  # codes worked on at a time, so that all intermediate values stay in the processor's cache
WIDEST = 32

# Elements that have a dtype of their own keep their matrix shape; all others are a stream of bytes.
INT_DTYPES = {8: torch.int8, 16: torch.int16}
FLOAT8_DTYPES = {(4, 3, "nan"): torch.float8_e4m3fn, (5, 2, "ieee"): torch.float8_e5m2}
SCALE_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e8m0": torch.uint8,  # the biased exponent: 2^(byte - 127), OCP MX v1.0 section 5.4.1
    "e4m3": torch.float8_e4m3fn,
}

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class PackingError(ValueError):
    """Tensors that are no packed weight of this shape and format."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """The low `bits` of n integer codes as uint8 [ceil(n * bits / 8)]; what is left of the last byte is zero.

    Codes of more than 8 bits are two streams: their low bytes, then the rest of their bits.
    """
    _check_width(bits)
    flat = codes.reshape(-1)
    if bits > 8:
        return torch.cat([pack(flat, 8), pack(flat >> 8, bits - 8)])
    flat = flat.view(torch.uint8) if flat.element_size() == 1 else (flat & 0xFF).to(torch.uint8)
    if bits == 8:
        return flat.clone()
    packed = torch.empty(math.ceil(len(flat) / 8), bits, dtype=torch.uint8, device=codes.device)
    for first in range(0, len(flat), TILE):
        tile = flat[first : first + TILE]
        if len(tile) % 8:
            tile = torch.nn.functional.pad(tile, (0, -len(tile) % 8))
        words = tile.clone().view(torch.int64)  # eight codes each; torch and safetensors are little-endian
        for field, held, low in _stages(bits):
            words = (words & low).bitwise_or_((words >> (field - held)).bitwise_and_(low << held))
        packed[first // 8 : first // 8 + len(words)] = words.view(torch.uint8).view(-1, 8)[:, :bits]
    return packed.view(-1)[: math.ceil(len(flat) * bits / 8)]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes that `pack` packed, as bit patterns: uint8 [count], or int32 above 8 bits."""
    _check_width(bits)
    if len(packed) != math.ceil(count * bits / 8):
        raise PackingError(
            f"{count} codes of {bits} bits take {math.ceil(count * bits / 8)} bytes, not {len(packed)}; the "
            "packed tensor is cut off or belongs elsewhere"
        )
    if bits > 8:
        low, rest = unpack(packed[:count], 8, count), unpack(packed[count:], bits - 8, count)
        return low.to(torch.int32) | rest.to(torch.int32) << 8
    if bits == 8:
        return packed.clone()
    packed = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits)
    codes = torch.empty(len(packed), dtype=torch.int64, device=packed.device)
    for first in range(0, len(packed), TILE // 8):
        part = packed[first : first + TILE // 8]
        words = torch.nn.functional.pad(part, (0, 8 - bits)).view(torch.int64).view(-1)
        for field, held, low in reversed(_stages(bits)):
            words = (words & low).bitwise_or_((words & (low << held)) << (field - held))
        codes[first : first + len(part)] = words
    return codes.view(torch.uint8)[:count]


def _check_width(bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise PackingError(f"bits={bits} must be from 1 to {WIDEST}; give the width of a code")


def _stages(bits: int) -> list[tuple[int, int, int]]:
    """How eight codes in the bytes of a 64-bit word move together: fields of 8, 16, 32 bits hold 1, 2, 4
    codes in their low bits, and at each stage every second field moves down to its neighbour. The mask is of
    what the others hold."""
    stages = []
    for field, held in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
        low = sum(((1 << held) - 1) << start for start in range(0, 64, 2 * field))
        stages.append((field, held, low))
    return stages


def layout(
    shape: tuple[int, ...], format: Format, granularity: str = "group", group: int | None = None
) -> Layout:
    """dtype and shape of the tensors that a weight [N, K] is packed into: codes, and as far as the format has
    them scale, zero_point and tensor_scale. Their bytes are `storage`'s bits, each rounded up to a byte."""
    effective = resolve(format, granularity, group)
    format, count = effective.format, math.prod(shape)
    dtype = element_dtype(format)
    tensors: Layout = {"codes": (dtype, shape) if dtype else (torch.uint8, (_bytes(count, format.bits),))}
    if format.is_cast:
        return tensors
    scales = scale_shape(shape, effective.granularity, effective.group or shape[-1])
    tensors["scale"] = SCALE_DTYPES[format.scale_dtype], scales
    if format.is_asymmetric:
        tensors["zero_point"] = torch.uint8, (_bytes(math.prod(scales), format.zero_point_bits),)
    if format.has_tensor_scale:
        tensors["tensor_scale"] = torch.float32, ()
    return tensors


def element_dtype(format: Format) -> torch.dtype | None:
    """The dtype that is this element, or None: int8, int16, the casts and the 8-bit floats have one."""
    if format.native_cast:
        return CAST_DTYPES[format.native_cast]
    if format.element == "int":
        return INT_DTYPES.get(format.bits)
    return FLOAT8_DTYPES.get((format.exponent_bits or 0, format.mantissa_bits or 0, format.special))


def pack_quantized(quantized: Quantized) -> dict[str, Tensor]:
    """The tensors of `layout` that hold a quantized weight."""
    format = quantized.effective.format
    dtype = element_dtype(format)
    tensors = {"codes": quantized.codes.view(dtype) if dtype else pack(quantized.codes, format.bits)}
    if quantized.scale is not None:
        tensors["scale"] = encode_scale(quantized.scale, format)
    if quantized.zero_point is not None:
        tensors["zero_point"] = pack(quantized.zero_point, format.zero_point_bits)
    if quantized.tensor_scale is not None:
        tensors["tensor_scale"] = quantized.tensor_scale.view(())
    return tensors


def unpack_quantized(
    tensors: dict[str, Tensor],
    shape: tuple[int, ...],
    format: Format,
    granularity: str = "group",
    group: int | None = None,
) -> Quantized:
    """The inverse of `pack_quantized` for a weight of this shape.

    Raises PackingError where a tensor is missing, left over, or of another dtype or shape than `layout` says.
    """
    effective = resolve(format, granularity, group)
    format = effective.format
    expected = layout(shape, format, granularity, group)
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise PackingError(
                f"{name} of {format.name} [{', '.join(map(str, shape))}] is {_told(found.get(name))}, and "
                f"should be {_told(expected.get(name))}"
            )
    codes, stored = tensors["codes"], element_dtype(format)
    codes = codes.view(code_dtype(format)) if stored else _codes(codes, math.prod(shape), format).view(shape)
    scale = zero_point = None
    if "scale" in tensors:
        scale = decode_scale(tensors["scale"], format)
        if "zero_point" in tensors:
            zero_point = _codes(tensors["zero_point"], scale.numel(), format).view(scale.shape)
    return Quantized(codes, scale, tensors.get("tensor_scale"), zero_point, effective)


def encode_scale(scale: Tensor, format: Format) -> Tensor:
    """Float32 values of stored scales as they are stored."""
    if format.scale_dtype == "e8m0":
        return (scale.view(torch.int32) >> MANTISSA_BITS).to(torch.uint8)  # of 2^-127, a subnormal: 0
    return scale.to(SCALE_DTYPES[format.scale_dtype])


def decode_scale(stored: Tensor, format: Format) -> Tensor:
    """The inverse of `encode_scale`."""
    if format.scale_dtype != "e8m0":
        return stored.float()
    exponent = stored.to(torch.int32)
    bits = torch.where(exponent == 0, 1 << (MANTISSA_BITS - 1), exponent << MANTISSA_BITS)
    return bits.view(torch.float32)


def _codes(packed: Tensor, count: int, format: Format) -> Tensor:
    """Codes as `encode` gives them: in its dtype, and signed where the element is."""
    codes = unpack(packed, format.bits, count)
    dtype = code_dtype(format)
    if format.element != "int" or dtype == torch.uint8:
        return codes.to(dtype)
    spare = 8 * dtype.itemsize - format.bits
    return (codes.to(dtype) << spare) >> spare


def _bytes(count: int, bits: int) -> int:
    return math.ceil(count * bits / 8)


def _told(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor[0]).removeprefix('torch.')} {list(tensor[1])}"
