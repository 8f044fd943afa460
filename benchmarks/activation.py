"""What rounding activations costs: transcription with and without, in the same run, in turn.

    python -m benchmarks.activation [--rounds 3] [--threads N] [--batches 1 32] [--utterances 64]

The shipped model on the clean split of the shipped speech, int8 weights in all of them. Processor seconds, so
that what else runs on the machine counts for little; each ratio is the median over the rounds.
"""

import time
from statistics import median

import torch

from benchmarks.measuring import Data, keep, options, table
from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.study.spec.config import DatasetConfig, with_wide_scale
from wq.study.speech.datasets import load_speech
from wq.whisper.calibration.ranges import Range
from wq.whisper.checkpoint.files import locate
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding.decode import SAMPLING_RATE, transcribe
from wq.whisper.layers.layers import assign, walk
from wq.whisper.layers.schemes import DEFAULT_ROLES, Activation, Assignment
from wq.whisper.methods.activation import quantized_activations
from wq.whisper.methods.nearest import quantized_weights

SCHEMES = {
    "none": None,
    "int8_token": ("int8", "token"),
    "fp8_token": ("fp8_e4m3", "token"),
    "int8_tensor": ("int8", "tensor"),
    "mxfp4": ("mxfp4", "group"),
    "nvfp4": ("nvfp4", "group"),
}
AMAX = 8.0  # of static scales: what it is makes no difference to the time


def section(results: Data) -> str:
    batches = list(results["seconds"])
    rows = [
        [name, *(f"{results['ratio'][batch][name]:.2f}" for batch in batches)]
        for name in results["ratio"][batches[0]]
    ]
    return "\n\n".join(
        [
            "Processor seconds of a transcription on the shipped model with int8 weights, beside those of "
            "rounded weights alone; the median ratio over the rounds. Rounding is simulated: a kernel that "
            "multiplies 8-bit numbers would gain time where this loses some.",
            table(["activations", *(f"batch {batch}" for batch in batches)], rows),
        ]
    )


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 1])
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.utterances, arguments.batches = 1, 4, [4]
    torch.set_num_threads(arguments.threads)
    whisper = load(locate("wq:nano"))
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split="clean"))
    audios = [speech.read(index, SAMPLING_RATE) for index in range(arguments.utterances)]
    order = sorted(range(len(audios)), key=lambda index: -len(audios[index]))
    layers = list(walk(whisper.model))
    ranges = {layer.name: Range(-AMAX, AMAX) for layer in layers}
    weights = assign(layers, [Assignment(Quantizer(load_format("int8")), DEFAULT_ROLES)])

    def seconds(name: str, batch: int) -> float:
        scheme = SCHEMES[name]
        assignments = []
        if scheme is not None:
            quantizer = Quantizer(with_wide_scale(load_format(scheme[0])), scheme[1])
            assignments = [Assignment(Activation(quantizer), DEFAULT_ROLES)]
        with quantized_activations(whisper.model, assignments, ranges):
            started = time.process_time()
            # As many tokens for all, whatever rounding makes of the text
            transcribe(whisper, audios.__getitem__, order, batch_size=batch, max_new_tokens=6)
            return time.process_time() - started

    results: Data = {"seconds": {}, "ratio": {}}
    with quantized_weights(weights):
        for batch in arguments.batches:
            rounds = [{name: seconds(name, batch) for name in SCHEMES} for _ in range(arguments.rounds + 1)]
            counted = rounds[1:]
            results["seconds"][str(batch)] = {
                name: median(each[name] for each in counted) for name in SCHEMES
            }
            results["ratio"][str(batch)] = {
                name: median(each[name] / each["none"] for each in counted) for name in SCHEMES
            }
    keep("activation", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
