"""Fake quantization on a GPU as one pass over its memory: what native.py is on a CPU, in Triton.

Triton comes with torch's CUDA builds. Where it is missing everything runs in torch, with the same result to
the bit; WQ_NATIVE=off asks for that.
"""

import os
import warnings
from collections import namedtuple
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from wq.numerics.effective import Effective
from wq.numerics.formats import Format
from wq.numerics.native import ELEMENTS, MAX_LEVELS, SCALES, Run, describe
from wq.numerics.scales import Scale

# A block's lanes are held in registers; longer rows run in torch
MOST_LANES = 1 << 14
# Elements of one program, and with a scale for all of them the length of what is then no real block
PROGRAM = 1 << 11
# Tried before all others
EXAMPLE = Format(name="int8", element="int", integer_bits=8)
# Every operation rounds as torch's does
OPTIONS = {"enable_fp_fusion": False}
# What the kernel reads of native.Description
CONSTANTS = (
    *("low", "high", "unit", "inverse_unit", "min_exponent", "magic_shift", "scale_low", "scale_high"),
    *("scale_min_exponent", "scale_magic_shift", "e8m0_offset", "max_exponent"),
)
Constants = namedtuple("Constants", CONSTANTS)


def covers(x: Tensor, effective: Effective) -> bool:
    """Whether the kernel is there and can do it.

    It does all formats but casts and long tables of levels, on a GPU, in blocks that are not too long.
    """
    format, block = effective.format, effective.group or x.shape[-1]
    return (
        x.is_cuda
        and not format.is_cast
        and (format.element != "levels" or len(format.code_book) <= MAX_LEVELS)
        and (effective.granularity == "tensor" or min(block, x.shape[-1]) <= MOST_LANES)
        and os.environ.get("WQ_NATIVE") != "off"
        and find_spec("triton") is not None
        and runs_on(x.device)
    )


@lru_cache
def runs_on(device: torch.device) -> bool:
    """Whether Triton can compile and start the kernel there. Where not it warns; that costs only speed."""
    try:
        x = torch.ones(1, 2, device=device)
        return fake_quantizer(EXAMPLE)(x, torch.empty_like(x), 2)
    except Exception as error:  # of Triton, of the C compiler that it calls, of the driver
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"Triton's kernel does not run on {device} ({reason}); quantizing in torch, more slowly",
            stacklevel=2,
        )
        return False


@lru_cache
def tables(format: Format, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The levels' edges, the levels, and the divisors and ratios of the candidate scales, on the device."""
    d = describe(format)
    edges, levels, divisors, ratios = (
        torch.tensor(list(table), device=device) for table in (d.edges, d.values, d.divisors, d.ratios)
    )
    return edges, levels, divisors, ratios


def launch_arguments(
    x: Tensor, out: Tensor, block: int, format: Format, tensor_scale: Tensor | None, given: Scale | None
) -> tuple[int, dict[str, Any]]:
    """How many programs are to run, and what the kernel is called with; `is_bad` still to be added."""
    d = describe(format)
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    if given is not None:
        rows, columns, block = 1, x.numel(), PROGRAM
    folds = max(0, (block - 1).bit_length())
    blocks = max(1, PROGRAM >> folds)
    count = rows * -(-columns // block)
    edges, levels, divisors, ratios = tables(format, x.device)
    unused = divisors  # where a pointer must be
    has_zero_point = given is not None and given.zero_point is not None
    arguments = {
        "source": x,
        "target": out,
        "tensor_scales": unused if tensor_scale is None else tensor_scale.contiguous(),
        "given_scale": unused if given is None else given.scale,
        "given_zero_point": given.zero_point if given is not None and has_zero_point else x.new_zeros(1),
        "edges": edges,
        "levels": levels,
        "divisors": divisors,
        "ratios": ratios,
        "columns": columns,
        "block": block,
        "blocks_of_row": -(-columns // block),
        "count": count,
        "tensor_scale_stride": int(tensor_scale is not None and tensor_scale.numel() > 1),
        "d": Constants(*(getattr(d, name) for name in CONSTANTS)),
        "ELEMENT": ELEMENTS[format.element],
        "LEVELS": max(d.levels, 1),
        "SCALE": SCALES["given" if given is not None else format.scale_dtype],
        "ASYMMETRIC": format.is_asymmetric and given is None,
        "TWO_LEVELS": tensor_scale is not None,
        "CANDIDATES": 1 if given is not None else d.candidates,
        "BLOCKS": blocks,
        "WIDTH": 1 << folds,
        "FOLDS": folds,
        "num_warps": 4 if folds < 12 else 8,
    }
    return -(-count // blocks), arguments


def fake_quantizer(format: Format, tensor_scale: Tensor | None = None, given: Scale | None = None) -> Run:
    """As `native.fake_quantizer`, for x and out on a GPU; the scales too stay there."""
    from wq.numerics import fused_kernel

    def run(x: Tensor, out: Tensor, block: int) -> bool:
        programs, arguments = launch_arguments(x, out, block, format, tensor_scale, given)
        kernel: Any = fused_kernel.fake_quantize
        is_bad = torch.zeros(1, dtype=torch.int32, device=x.device)
        with torch.cuda.device_of(x):
            kernel[(programs,)](is_bad=is_bad, **arguments, **OPTIONS)
        return not is_bad.item()

    return run
