"""How fast a weight and an activation are fake-quantized, beside other toolkits and beside copying them.

    python -m benchmarks.numerics [--formats int4 nvfp4] [--rounds 3] [--device cpu]

For each format all implementations run in turn, round after round, so that whatever else the machine does
hits all alike; the best round counts. Toolkits that are not installed (the extra `refs`, and nvidia-modelopt
and hqq) are left out. Every call ends with the dequantized float32 tensor; `wq` and copy_ write to memory
that is there, as a job does that quantizes in place.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportOptionalMemberAccess=false
import time
import warnings
from collections.abc import Callable

import altair
import torch
from torch import Tensor

from benchmarks.measuring import Data, keep, options, table
from wq.catalogue import format_names, load_format
from wq.numerics import fused, native
from wq.numerics.effective import resolve
from wq.numerics.fake_quant import fake_quantize
from wq.numerics.formats import Format

# How toolkits say that they do not do a format, or not on a CPU
UNSUPPORTED = (NotImplementedError, AssertionError, RuntimeError, ValueError, TypeError)
FORMATS = ("int8", "int4", "nvfp4", "mxfp4", "mxfp8_e4m3")
WEIGHT = (1280, 5120)
ACTIVATION = (16, 1500, 384)
Call = Callable[[], object]


def ours(x: Tensor, format: Format, granularity: str) -> dict[str, Call]:
    out = torch.empty_like(x)
    calls: dict[str, Call] = {
        "copy_": lambda: out.copy_(x),
        "wq": lambda: fake_quantize(x, format, granularity, out=out),
        "wq, new output": lambda: fake_quantize(x, format, granularity),
    }
    if native.covers(x, format) or fused.covers(x, resolve(format, granularity)):
        calls["wq, torch only"] = lambda: in_torch(lambda: fake_quantize(x, format, granularity, out=out))
    return calls


def in_torch(call: Call) -> None:
    kept = native.covers, fused.covers
    native.covers = fused.covers = lambda x, _: False
    try:
        call()
    finally:
        native.covers, fused.covers = kept


def torchao(x: Tensor, format: Format, block: int) -> Call | None:
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.quantization.quant_primitives import (
        MappingType,
        _fake_quantize_affine,
        choose_qparams_affine,
    )
    from torchao.quantization.quantize_.workflows import to_nf4

    if format.element == "int" and format.scale_dtype != "e8m0" and format.bits <= 8:
        low, high, shape = format.min_code, format.max_code, (1,) * (x.dim() - 1) + (block,)

        def integer() -> Tensor:
            scale, zero_point = choose_qparams_affine(x, MappingType.SYMMETRIC, shape, torch.int8, low, high)
            return _fake_quantize_affine(x, shape, scale, zero_point, torch.int8, low, high)

        return integer
    if format.name == "nvfp4" and block == 16:
        return lambda: NVFP4Tensor.to_nvfp4(
            x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().max())
        ).dequantize(torch.float32)
    element = {
        "mxfp4": torch.float4_e2m1fn_x2,
        "mxfp6_e2m3": "fp6_e2m3",
        "mxfp6_e3m2": "fp6_e3m2",
        "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2,
    }.get(format.name)
    if element is not None and block == 32:
        floor = ScaleCalculationMode.FLOOR
        return lambda: MXTensor.to_mx(x, element, 32, floor).dequantize(torch.float32)
    if format.name == "nf4" and block == 64:
        return lambda: to_nf4(x, block_size=64, scaler_block_size=64).get_original_weight()
    return None


def compressed_tensors(x: Tensor, format: Format, block: int) -> Call | None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize as theirs
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    common = {"num_bits": format.bits, "symmetric": True, "group_size": block, "strategy": "group"}
    if format.element == "int" and format.scale_dtype != "e8m0" and format.bits <= 8:
        args = QuantizationArgs(type="int", **common)
    elif format.name == "fp8_e4m3":
        args = QuantizationArgs(type="float", **common)
    elif format.name in ("mxfp4", "mxfp8_e4m3") and block == 32:
        args = QuantizationArgs(type="float", scale_dtype=torch.uint8, **common)
    elif format.name == "nvfp4" and block == 16:
        e4m3 = torch.float8_e4m3fn
        common["strategy"] = "tensor_group"
        args = QuantizationArgs(type="float", scale_dtype=e4m3, zp_dtype=e4m3, **common)
    else:
        return None

    def call() -> Tensor:
        global_scale = generate_gparam(x.min(), x.max()) if format.name == "nvfp4" else None
        groups = x.unflatten(-1, (-1, block))
        scale, zero_point = calculate_qparams(
            groups.amin(-1), groups.amax(-1), args, global_scale=global_scale
        )
        return theirs(x, scale, zero_point, args, global_scale=global_scale)

    return call


def modelopt(x: Tensor, format: Format, block: int) -> Call | None:
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor
    from modelopt.torch.quantization.tensor_quant import fake_tensor_quant, scaled_e4m3

    groups = x.view(-1, block)
    if format.element == "int" and format.scale_dtype != "e8m0" and format.bits <= 8:
        bits = format.bits
        return lambda: fake_tensor_quant(groups, groups.abs().amax(-1, keepdim=True), None, bits, False, True)
    if format.name == "fp8_e4m3":
        return lambda: scaled_e4m3(groups, groups.abs().amax(-1, keepdim=True), None, 4, 3)
    if format.name == "nvfp4" and block == 16:

        def nvfp4() -> Tensor:
            packed, scale, double_scale = NVFP4QTensor.quantize(x, 16)
            return packed.dequantize(
                torch.float32, scale=scale, double_scale=double_scale, block_sizes={-1: 16}
            )

        return nvfp4
    if format.name == "mxfp4" and block == 32:

        def mxfp4() -> Tensor:
            packed, scale = MXFP4QTensor.quantize(x, 32)
            return packed.dequantize(torch.float32, scale=scale, block_sizes={-1: 32})

        return mxfp4
    return None


def hqq(x: Tensor, format: Format, block: int) -> Call | None:
    from hqq.core.quantize import Quantizer

    if format.name not in ("int8", "int4", "int3", "int2"):
        return None
    # Without its optimizer of zero points, which is another method, and slower
    options = {"axis": 1, "device": str(x.device), "compute_dtype": torch.float32, "optimize": False}

    def call() -> Tensor:
        return Quantizer.dequantize(*Quantizer.quantize(x, nbits=format.bits, group_size=block, **options))

    return call


REFERENCES = {
    "torchao": torchao,
    "compressed-tensors": compressed_tensors,
    "ModelOpt": modelopt,
    "hqq": hqq,
}


def calls(x: Tensor, format: Format, granularity: str) -> dict[str, Call]:
    """Everything that can quantize x to this format, by its name."""
    found = ours(x, format, granularity)
    if format.is_cast:
        return found
    block = x.shape[-1] if granularity == "token" else format.group or x.shape[-1]
    for name, toolkit in REFERENCES.items():
        try:
            call = toolkit(x.flatten(0, -2), format, block)
            if call is not None:
                call()  # some toolkits refuse on a CPU only when they run
                found[name] = call
        except ImportError:
            continue
        except UNSUPPORTED as error:
            print(f"  {name} cannot do {format.name}: {str(error).splitlines()[0][:90]}")
    return found


def of_activations(format: Format) -> str:
    """The granularity that activations have in this format: per token, unless a standard gives it blocks."""
    return "group" if format.scale_dtype in ("e8m0", "e4m3") else "token"


def throughput(x: Tensor, found: dict[str, Call], rounds: int) -> dict[str, float]:
    """Million elements per second of each call: all of them in turn in every round, the best of each."""
    best = dict.fromkeys(found, float("inf"))
    finish = torch.cuda.synchronize if x.is_cuda else lambda: None
    for call in list(found.values())[:4]:
        call()
    for _ in range(rounds):
        for name, call in found.items():
            repeats = 5 if name.startswith(("wq", "copy_")) else 1
            for _ in range(repeats):
                finish()
                start = time.perf_counter()
                call()
                finish()
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: x.numel() / seconds / 1e6 for name, seconds in best.items()}


def speeds_table(results: dict[str, dict[str, float]]) -> str:
    columns = ["copy_", "wq", "wq, new output", "wq, torch only"]
    columns += [name for name in REFERENCES if any(name in speeds for speeds in results.values())]
    rows = []
    for name, speeds in results.items():
        cells = [f"{speeds[column]:.0f}" if column in speeds else "" for column in columns]
        others = [speeds[reference] for reference in REFERENCES if reference in speeds]
        ratio = f"{speeds['wq'] / max(others):.0f}" if others else ""
        rows.append([name, *cells, ratio, f"{speeds['wq'] / speeds['copy_']:.2f}"])
    return table(["format", *columns, "x fastest toolkit", "of copy_"], rows)


def whisper_small_seconds(format: Format, device: str) -> float:
    """Seconds to quantize, in place, weights shaped as whisper-small's 192 linear layers, 198 M in all."""
    square, wide, tall = (768, 768), (3072, 768), (768, 3072)
    weights = [torch.randn(shape, device=device) for shape in [square] * 12 * (4 + 8) + [wide, tall] * 24]
    fake_quantize(weights[0].clone(), format)
    finish = torch.cuda.synchronize if device != "cpu" else lambda: None
    finish()
    start = time.perf_counter()
    for weight in weights:
        fake_quantize(weight, format, out=weight)
    finish()
    return time.perf_counter() - start


def section(results: Data) -> str:
    missing = [name for name in REFERENCES if not any(name in each for each in results["weight"].values())]
    return "\n\n".join(
        [
            "Million elements per second, the best of all rounds. `copy_` is `torch.Tensor.copy_`, "
            "the limit; "
            '"wq" writes into memory that is there already, "new output" into a new tensor, "torch '
            'only" is the '
            "path without a C compiler, equal to the bit.",
            f"Weight {results['weight_shape']}, groups of the format's own size:",
            speeds_table(results["weight"]),
            *([f"Not measured, as they are not installed: {', '.join(missing)}."] if missing else []),
            f"Activation {results['activation_shape']}, one scale per token, or the blocks of the format:",
            speeds_table(results["activation"]),
            f"whisper-small, all 198 M weights to nvfp4 in place: {results['small_seconds']:.2f} s.",
        ]
    )


def charts(results: Data) -> dict[str, altair.Chart]:
    rows = [
        {"format": name, "implementation": implementation, "million elements per second": speed}
        for name, speeds in results["weight"].items()
        for implementation, speed in speeds.items()
    ]
    chart = altair.Chart(altair.Data(values=rows), width=520, height=30 * len(results["weight"])).mark_point(
        filled=True, size=70
    )
    return {
        "numerics": chart.encode(
            x=altair.X("million elements per second:Q", scale=altair.Scale(type="log")),
            y=altair.Y("format:N", sort=None, title=None),
            color="implementation:N",
            shape="implementation:N",
        )
    }


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=format_names(), metavar="FORMAT")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    weight_shape, activation_shape = WEIGHT, ACTIVATION
    if arguments.quick:
        arguments.rounds, weight_shape, activation_shape = 1, (128, 512), (1, 150, 384)
        arguments.formats = FORMATS[:2]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    weight, activation = (
        torch.randn(shape, device=arguments.device) for shape in (weight_shape, activation_shape)
    )

    results: Data = {"weight_shape": list(weight_shape), "activation_shape": list(activation_shape)}
    results |= {"weight": {}, "activation": {}}
    for name in arguments.formats:
        format = load_format(name)
        results["weight"][name] = throughput(weight, calls(weight, format, "group"), arguments.rounds)
        found = calls(activation, format, of_activations(format))
        results["activation"][name] = throughput(activation, found, arguments.rounds)
    results["small_seconds"] = whisper_small_seconds(load_format("nvfp4"), arguments.device)
    keep("numerics", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
