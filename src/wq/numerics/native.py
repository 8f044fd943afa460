"""native.c, the same fake quantization as one pass over the memory, where the machine has a C compiler.

Compiled once per machine in half a second and kept in `wq.caches`. Without a compiler everything runs in
torch, with the same result to the bit; WQ_NATIVE=off asks for that.
"""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from wq import caches
from wq.numerics.elements import BIAS, MANTISSA_BITS, level_edges
from wq.numerics.formats import Format
from wq.numerics.scales import SCALE_LIMITS, e8m0_offset, search_ratios

KIND = "kernels"  # of wq.caches
SOURCE = Path(__file__).with_name("native.c")
# No contraction and no fast math: every operation rounds as torch's does.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-shared", "-fPIC")
COMPILE_SECONDS = 60

ELEMENTS = {"int": 0, "float": 1, "levels": 2}
SCALES = {"given": 0, "e8m0": 1, "fp32": 2, "fp16": 3, "bf16": 4, "e4m3": 5}
SCALE_SHAPES = {
    "fp16": (5, 10),
    "e4m3": (4, 3),
}  # exponent and mantissa bits of scales that round as elements do
MAX_LEVELS = 16
MAX_CANDIDATES = 24
FLOAT_BYTES = 4
MIN_ELEMENTS_PER_THREAD = 1 << 16


class Description(ctypes.Structure):
    """`Description` of native.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("element", "scale", "asymmetric")),
        *((name, ctypes.c_float) for name in ("low", "high", "unit", "inverse_unit")),
        *((name, ctypes.c_int32) for name in ("min_exponent", "magic_shift", "levels")),
        *((name, ctypes.c_float * MAX_LEVELS) for name in ("values", "edges")),
        ("candidates", ctypes.c_int32),
        *((name, ctypes.c_float * MAX_CANDIDATES) for name in ("divisors", "ratios")),
        *((name, ctypes.c_float) for name in ("scale_low", "scale_high")),
        *((name, ctypes.c_int32) for name in ("scale_min_exponent", "scale_magic_shift")),
        *((name, ctypes.c_int32) for name in ("e8m0_offset", "max_exponent")),
        *((name, ctypes.c_float) for name in ("given_scale", "given_zero_point")),
    )


def covers(x: Tensor, format: Format) -> bool:
    """Whether native.c is there and can do it: on a CPU, all formats but casts and long tables of levels."""
    few_levels = format.element != "levels" or len(format.code_book) <= MAX_LEVELS
    return x.device.type == "cpu" and few_levels and not format.is_cast and library() is not None


_open: list[object] = []  # the file of what is loaded, so that no other process removes it


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled native.c, or None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("WQ_NATIVE") == "off" or compiler is None:
        return None
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
        compiled = _compiled(
            compiler, {"source": SOURCE.read_text(), "compiler": version.decode(errors="replace")}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    compiled.wq_fake_quantize.argtypes = (
        ctypes.POINTER(Description),
        *([ctypes.c_void_p] * 2),
        *([ctypes.c_long] * 3),
        ctypes.c_void_p,
        ctypes.c_long,
        ctypes.c_void_p,
    )
    compiled.wq_chunk.argtypes, compiled.wq_chunk.restype = (ctypes.c_long,), ctypes.c_long
    compiled.wq_range.argtypes = (ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p)
    return compiled


def _compiled(compiler: str, made_from: dict[str, str]) -> ctypes.CDLL:
    """Raises OSError where it can be neither compiled nor loaded."""
    key = caches.digest(made_from | {"processor": _processor(), "flags": " ".join(FLAGS)})
    kept = caches.open_kept(KIND, key)
    with TemporaryDirectory() as directory:
        built = Path(directory) / "numerics.so"
        if kept is None:
            _compile(compiler, built)
            caches.keep(KIND, key, lambda target: shutil.copyfile(built, target))
            kept = caches.open_kept(KIND, key)
        compiled = ctypes.CDLL(kept.name if kept else str(built))
    _open.append(kept)
    return compiled


def _processor() -> str:
    """What -march=native depends on: a cache directory may be shared by machines that differ."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model", "flags", "Features", "CPU")))


def _compile(compiler: str, target: Path) -> None:
    """Compile for this processor, or for any of its kind."""
    for machine in (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ()):
        command = [compiler, *FLAGS, *machine, "-o", str(target), str(SOURCE), "-lm"]
        if subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS).returncode == 0:
            return
    raise OSError(f"{compiler} cannot compile {SOURCE}")


@lru_cache
def describe(format: Format) -> Description:
    """The format as native.c wants it: the constants that scales.py and elements.py derive on the way."""
    scale_low, scale_high = SCALE_LIMITS[format.scale_dtype]
    d = Description(
        element=ELEMENTS[format.element],
        scale=SCALES[format.scale_dtype],
        asymmetric=format.is_asymmetric,
        high=format.max,
        unit=format.unit,
        inverse_unit=1.0 / format.unit,
        scale_low=scale_low,
        scale_high=scale_high,
    )
    ratios = search_ratios(format)
    d.candidates = len(ratios)
    d.ratios = (ctypes.c_float * MAX_CANDIDATES)(*ratios)
    d.divisors = (ctypes.c_float * MAX_CANDIDATES)(*(format.scale_divisor / ratio for ratio in ratios))
    if format.element == "int":
        d.low, d.high = format.min_code, format.max_code
    elif format.element == "float":
        d.min_exponent, d.magic_shift = _rounding(format.exponent_bits or 0, format.mantissa_bits or 0)
    else:
        values, edges = format.code_book, level_edges(format, torch.device("cpu")).tolist()
        padding = MAX_LEVELS - len(values)
        d.levels = len(values)
        d.values = (ctypes.c_float * MAX_LEVELS)(*values, *[values[-1]] * padding)
        d.edges = (ctypes.c_float * MAX_LEVELS)(*edges, *[float("inf")] * (padding + 1))
    if format.scale_dtype in SCALE_SHAPES:
        d.scale_min_exponent, d.scale_magic_shift = _rounding(*SCALE_SHAPES[format.scale_dtype])
    if format.scale_dtype == "e8m0":
        d.e8m0_offset, d.max_exponent = e8m0_offset(format), format.max_exponent
    return d


def _rounding(exponent_bits: int, mantissa_bits: int) -> tuple[int, int]:
    min_exponent = 2 - 2 ** (exponent_bits - 1)
    return (min_exponent + BIAS) << MANTISSA_BITS, (MANTISSA_BITS - mantissa_bits) << MANTISSA_BITS


Run = Callable[[Tensor, Tensor, int], bool]


def fake_quantizer(
    format: Format, tensor_scale: Tensor | None = None, given: tuple[float, float] | None = None
) -> Run:
    """A function (x, out, block) that writes x [..., K], cut into blocks along K and fake-quantized, to out.

    It returns False for NaN or Inf in x. Both are contiguous float32 on the CPU, and may be the same.
    tensor_scale has one element or one per vector along K; `given` is a scale and zero point for all blocks
    instead of their own. Torch's threads share the work.
    """
    compiled = library()
    assert compiled is not None
    description = describe(format)
    if given is not None:
        description = Description.from_buffer_copy(description)
        description.scale, description.candidates = SCALES["given"], 1
        description.given_scale, description.given_zero_point = given
    stride = 0
    if tensor_scale is not None:
        tensor_scale = tensor_scale.contiguous()
        stride = int(tensor_scale.numel() > 1)
    one_pass, pointer = compiled.wq_fake_quantize, ctypes.byref(description)

    def run(x: Tensor, out: Tensor, block: int) -> bool:
        columns, elements = x.shape[-1], x.numel()
        rows, source, target = elements // columns, x.data_ptr(), out.data_ptr()
        scales = 0 if tensor_scale is None else tensor_scale.data_ptr()
        if stride == 0 and columns % block == 0:  # one long row: short rows are then as fast as long ones
            rows, columns = 1, elements
        unit = columns if rows > 1 else block  # threads share whole rows, or of one row whole blocks

        def share(first: int, length: int) -> int:
            work = None
            if description.candidates > 1:
                work = (ctypes.c_double * (block + (compiled.wq_chunk(block) * block + 1) // 2))()
            return one_pass(
                pointer,
                source + first * FLOAT_BYTES,
                target + first * FLOAT_BYTES,
                length // columns if rows > 1 else 1,
                columns if rows > 1 else length,
                block,
                scales and scales + first // unit * stride * FLOAT_BYTES,
                stride,
                work,
            )

        if elements < 2 * MIN_ELEMENTS_PER_THREAD:
            return not share(0, elements)
        return not any(_in_threads(share, elements, unit))

    return run


def value_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of zero and all values of contiguous float32 x on the CPU; NaN or Inf where x has
    them.

    As fast as the memory. torch.aminmax is so too, but leaves its threads spinning on the processors for a
    while.
    """
    compiled = library()
    assert compiled is not None
    ends: list[tuple[float, float]] = []

    def run(first: int, length: int) -> int:
        end = (ctypes.c_float * 2)()
        compiled.wq_range(x.data_ptr() + first * FLOAT_BYTES, length, end)
        ends.append((end[0], end[1]))
        return 0

    _in_threads(run, x.numel(), 1)
    low, high = torch.tensor(ends).amax(0)
    return -low, high


def _in_threads(run: Callable[[int, int], int], elements: int, unit: int) -> list[int]:
    """run(first, length) for shares of so many elements, all but the last a multiple of unit, on torch's
    number of threads where that pays."""
    units = -(-elements // unit)
    threads = max(1, min(torch.get_num_threads(), elements // MIN_ELEMENTS_PER_THREAD, units))
    share = -(-units // threads) * unit
    if threads == 1:
        return [run(0, elements)]
    others = [_pool().submit(run, i, min(share, elements - i)) for i in range(share, elements, share)]
    return [run(0, share), *(other.result() for other in others)]


@lru_cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: to start one takes as long as to quantize a million elements."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="wq-numerics")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
