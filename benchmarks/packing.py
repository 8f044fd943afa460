"""How fast codes are packed, beside compressed-tensors' packing, and how long an export takes.

    python -m benchmarks.packing [--rounds 5]

Everything packs the same codes in turn, round after round,
and the best round counts. The export is of a model shaped as whisper-small with random weights, from weights
in memory to files on disk; compressed-tensors is left out where it is not installed (the extra `refs`).
"""

# pyright: reportMissingImports=false
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from benchmarks.measuring import Data, keep, options, table
from wq.catalogue import load_format
from wq.numerics.effective import resolve
from wq.numerics.packing import pack, unpack
from wq.whisper.checkpoint.files import locate
from wq.whisper.checkpoint.model import Whisper, load
from wq.whisper.export.export import assemble, write
from wq.whisper.layers.layers import assign, walk
from wq.whisper.layers.schemes import Assignment
from wq.whisper.methods.nearest import quantize_weights

WEIGHT = (1280, 1280)
BITS = (2, 3, 4, 5, 6, 8)
EXPORTED = ("int8", "int4", "fp8_e4m3", "nvfp4", "mxfp4", "nf4")
Call = Callable[[], object]


def calls(bits: int) -> dict[str, Call]:
    """Everything that packs a weight's codes, or unpacks them, by its name."""
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), WEIGHT, dtype=torch.int8)
    packed = pack(codes, bits)
    found: dict[str, Call] = {
        "pack": lambda: pack(codes, bits),
        "unpack": lambda: unpack(packed, bits, codes.numel()),
    }
    try:
        from compressed_tensors.compressors.pack_quantized import helpers
    except ImportError:
        return found
    words = helpers.pack_to_int32(codes, bits)
    found["compressed-tensors, pack"] = lambda: helpers.pack_to_int32(codes, bits)
    found["compressed-tensors, unpack"] = lambda: helpers.unpack_from_int32(words, bits, codes.shape)
    return found


def throughput(found: dict[str, Call], rounds: int) -> dict[str, float]:
    """Million codes per second of each call, the best of all rounds; the toolkit's, hundreds of times as
    slow, run once."""
    best = dict.fromkeys(found, float("inf"))
    for count in range(rounds):
        for name, call in found.items():
            if count and name not in ("pack", "unpack"):
                continue
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: WEIGHT[0] * WEIGHT[1] / seconds / 1e6 for name, seconds in best.items()}


def small() -> Whisper:
    """A model shaped as whisper-small, with the shipped one's companion files."""
    shipped = load(locate("wq:nano"))
    torch.manual_seed(0)
    with torch.device("meta"):  # drawing weights takes longer than packing them
        model = WhisperForConditionalGeneration(
            WhisperConfig(
                d_model=768,
                encoder_layers=12,
                decoder_layers=12,
                encoder_attention_heads=12,
                decoder_attention_heads=12,
                encoder_ffn_dim=3072,
                decoder_ffn_dim=3072,
            )
        )
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.uniform_(-0.1, 0.1)
    return Whisper("small", shipped.directory, model, shipped.feature_extractor, shipped.tokenizer, True)


def export_seconds(whisper: Whisper, format: str) -> tuple[float, float, int]:
    """From weights in memory to a whole checkpoint on disk: seconds, seconds of processors, which a busy
    machine leaves as they are, and the bytes of the weights file."""
    which = Assignment(resolve(load_format(format)).quantizer, ("encoder", "decoder"))
    directory = Path(tempfile.mkdtemp())
    try:
        start, busy = time.perf_counter(), time.process_time()
        contents = assemble(whisper, quantize_weights(assign(list(walk(whisper.model)), (which,))), {})
        write(directory / "out", whisper, contents, "")
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        return seconds, busy, (directory / "out" / contents.file).stat().st_size
    finally:
        shutil.rmtree(directory)


def section(results: Data) -> str:
    speeds, exports = results["codes"], results["exports"]
    columns = list(next(iter(speeds.values())))
    return "\n\n".join(
        [
            f"Million codes per second, weight {list(WEIGHT)}, the best of all rounds:",
            table(
                ["bits", *columns],
                [[bits, *(f"{found[name]:.0f}" for name in columns)] for bits, found in speeds.items()],
            ),
            "Export of a model shaped as whisper-small, 198 M quantized weights of 242 M, from "
            "memory to disk:",
            table(
                ["format", "seconds", "processor seconds", "MB"],
                [
                    [name, f"{seconds:.1f}", f"{busy:.1f}", f"{size / 1e6:.0f}"]
                    for name, (seconds, busy, size) in exports.items()
                ],
            ),
        ]
    )


def main() -> None:
    arguments = options(__doc__, rounds=5).parse_args()
    exported = EXPORTED
    if arguments.quick:
        arguments.rounds, exported = 1, EXPORTED[:1]
    torch.set_num_threads(arguments.threads)
    whisper = small()
    results: Data = {
        "codes": {str(bits): throughput(calls(bits), arguments.rounds) for bits in BITS},
        "exports": {format: export_seconds(whisper, format) for format in exported},
    }
    keep("packing", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
