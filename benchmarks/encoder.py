"""The encoder: milliseconds for one window beside its limit, and what each of its operations takes.

    python -m benchmarks.encoder [--rounds 15] [--models nano tiny base small]

The limit is a window's floating-point operations at the best rate that any library reaches on this machine
for any product, convolution or attention of that model's shapes.
Everything is run in turn, and the best of the rounds counts, on one thread of its processor seconds, so
that other work on the machine disturbs least. Weights are random but for nano's: in float32 no time depends
on them.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperConfig

from benchmarks.cases import GEOMETRIES, Case, nano, random_weights
from benchmarks.measuring import Data, fastest, keep, options, table
from wq.whisper.decoding import onednn
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.greedy import encode_rows, rows_at_once

TORCH, ONEDNN, PACKED = LIBRARIES = "torch", "oneDNN", "oneDNN, packed"
FEW = 4  # utterances: the encoder takes no more at a time


class Operation(NamedTuple):
    """One of the encoder's, as each library computes it for `rows_at_once` windows: how often it comes in
    those, and the floating-point operations of one, where products are all it does."""

    name: str
    count: int
    flops: float | None
    ways: dict[str, Callable[[], Tensor]]


def product(name: str, count: int, x: Tensor, outputs: int, last: str = "none") -> Operation:
    """A linear layer for inputs x [rows, positions, K]; `last` is what is done to each of its outputs in the
    same operation, which oneDNN alone can."""
    weight, bias = torch.randn(outputs, x.shape[-1]), torch.randn(outputs)
    ways = {} if last != "none" else {TORCH: partial(F.linear, x, weight, bias)}
    if onednn.is_fast(weight):
        multiply = torch.ops.mkldnn._linear_pointwise.default
        packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, x.numel() // x.shape[-1])
        for library, each in ((ONEDNN, weight), (PACKED, packed)):
            ways[library] = partial(multiply, x, each, bias, last, [], "none")
    return Operation(name, count, 2.0 * x.numel() * outputs, ways)


def convolution(name: str, rows: int, inputs: int, frames: int, outputs: int, stride: int) -> list[Operation]:
    """Of width 3 for [rows, inputs, frames], by itself and as a product of what it sees."""
    x, weight, bias = torch.randn(rows, inputs, frames), torch.randn(outputs, inputs, 3), torch.randn(outputs)
    seen = F.pad(x, (1, 1)).unfold(2, 3, stride).transpose(1, 2)  # [rows, positions, inputs, 3]
    flops = 2.0 * seen.numel() * outputs

    def as_product() -> Tensor:
        return F.linear(seen.flatten(2), weight.flatten(1), bias)

    return [
        Operation(name, 1, flops, {TORCH: partial(F.conv1d, x, weight, bias, stride, 1)}),
        Operation(f"{name}, as a product", 0, flops, {TORCH: as_product}),
    ]


def operations(config: WhisperConfig, rows: int) -> list[Operation]:
    """Of so many windows; with a count of 0, what could stand for others of them."""
    frames, size, wide = config.max_source_positions, config.d_model, config.encoder_ffn_dim
    layers, heads = config.encoder_layers, config.encoder_attention_heads
    x, hidden = torch.randn(rows, frames, size), torch.randn(rows, frames, wide)
    qkv = [torch.randn(rows, frames, heads, size // heads).transpose(1, 2) for _ in range(3)]
    norm, scale = torch.randn(size), (size // heads) ** -0.5
    attention = {TORCH: partial(F.scaled_dot_product_attention, *qkv, scale=scale)}
    if torch.backends.mkldnn.is_available():
        attention[ONEDNN] = partial(onednn.attention, *qkv, scale)
    return [
        *convolution("first convolution", rows, config.num_mel_bins, 2 * frames, size, 1),
        *convolution("second convolution", rows, size, 2 * frames, size, 2),
        product("q, k, v, or out", 4 * layers, x, size),
        product("q, k and v in one product", 0, x, 3 * size),
        Operation("attention", layers, 4.0 * rows * frames**2 * size, attention),
        product("first of the MLP", layers, x, wide),
        Operation("GELU", layers, None, {TORCH: partial(F.gelu, hidden)}),
        product("first of the MLP, with its GELU", 0, x, wide, "gelu"),
        product("second of the MLP", layers, hidden, size),
        Operation("LayerNorm", 2 * layers + 1, None, {TORCH: partial(F.layer_norm, x, (size,), norm, norm)}),
        Operation("addition", 2 * layers + 1, None, {TORCH: partial(torch.add, x, x, out=x.clone())}),
    ]


def encoder(name: str, case: Case, rounds: int, clock: Callable[[], float]) -> Data:
    """Of one window, by this clock: seconds of the model's own encoder, of ours, and of each of its
    operations; and its floating-point operations."""
    model = case.model
    rows = rows_at_once(model, len(case.audios))
    features = log_mel(case.extractor, case.audios[:rows])
    parts = operations(model.config, rows)
    calls: dict[Any, Callable[[], object]] = {
        "generate": lambda: model.model.encoder(features).last_hidden_state,
        "wq": lambda: list(encode_rows(model, features)),
    }
    calls |= {(part.name, library): call for part in parts for library, call in part.ways.items()}
    with torch.inference_mode():
        seconds = fastest(calls, rounds, clock)
    return {
        "model": name,
        "generate": seconds["generate"] / rows,
        "wq": seconds["wq"] / rows,
        "flops": sum(part.count * part.flops for part in parts if part.flops) / rows,
        "operations": [
            {
                "name": part.name,
                "count": part.count / rows,
                "flops": part.flops,
                "seconds": {library: seconds[part.name, library] for library in part.ways},
            }
            for part in parts
        ],
    }


def best_rate(each: Data) -> tuple[float, str, str]:
    """Floating-point operations per second, of which operation, in which library."""
    return max(
        (part["flops"] / seconds, part["name"], library)
        for part in each["operations"]
        if part["flops"]
        for library, seconds in part["seconds"].items()
    )


def section(results: Data) -> str:
    rows = []
    for each in results["encoder"]:
        rate, name, library = best_rate(each)
        limit = each["flops"] / rate
        milliseconds = [f"{1e3 * seconds:.1f}" for seconds in (each["generate"], each["wq"], limit)]
        share = f"{limit / each['wq']:.0%}"
        operations_done, speed = (f"{number / 1e9:.1f}" for number in (each["flops"], rate))
        rows.append([each["model"], operations_done, *milliseconds, share, speed, f"{name}, {library}"])
    columns = ["model", "GFLOP", "generate's", "wq", "limit", "share of the limit", "GFLOP/s", "reached in"]
    return "\n\n".join(
        [
            "Milliseconds for one window in the encoder, the best of rounds in which all run in turn; on one "
            "thread those of the processor, without its waiting for other work. The limit is the window's "
            "floating-point operations at the best rate that any library reaches here in any product, "
            "convolution or attention of that model's shapes.",
            table(columns, rows),
            f"What computes here, on {results['capability']}: {results['library']}. With AVX-512 it is "
            "onednn, otherwise torch itself, by MKL: chosen by the kind of processor, not by a stopwatch, so "
            "that a machine always gives the same bits. Results of two machines may be compared to the bit "
            "where both have the same model of processor and versions of libraries; of others, and of two "
            "kinds above all, transcripts agree but for near-ties. `cpu_capability` and `encoder_library` in "
            "`result.json` tell the kind.",
            *(detail(each) for each in results["encoder"] if each["model"] == "tiny"),
        ]
    )


def detail(each: Data) -> str:
    rows = [
        [part["name"], f"{part['count']:.0f}"]
        + [f"{1e3 * part['seconds'][way]:.2f}" if way in part["seconds"] else "" for way in LIBRARIES]
        for part in each["operations"]
    ]
    return (
        f"The operations of {each['model']}, milliseconds each. Those that come 0 times could stand for "
        "others, and do not:\n\n" + table(["operation", "times", *LIBRARIES], rows)
    )


def main() -> None:
    parser = options(__doc__, rounds=15)
    parser.add_argument("--models", nargs="+", choices=["nano", *GEOMETRIES], default=["nano", *GEOMETRIES])
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.models = 1, ["nano"]
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    results: Data = {
        "capability": onednn.cpu_capability(),
        "library": onednn.encoder_library(),
        "encoder": [],
    }
    for name in arguments.models:
        case = nano(FEW) if name == "nano" else random_weights(name, 1)
        results["encoder"].append(encoder(name, case, arguments.rounds, clock))
    keep("encoder", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
