"""What rounding activations costs: transcription with and without, in the same run, in turn.

    python benchmarks/activation.py [--rounds 5] [--threads N] [--batches 1 32] [--utterances 64]

The shipped model on the clean split of the shipped speech, int8 weights in all of them. Processor seconds, so
that what else runs on the machine counts for little; each ratio is the median over the rounds.
"""

import argparse
import time
from statistics import median

import torch

from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.study.config import DatasetConfig, with_wide_scale
from wq.study.datasets import load_speech
from wq.whisper.activation import Range, quantized_activations
from wq.whisper.decode import SAMPLING_RATE, transcribe
from wq.whisper.layers import assign, walk
from wq.whisper.model import load, locate
from wq.whisper.quantize import quantized_weights
from wq.whisper.schemes import DEFAULT_ROLES, Activation, Assignment

SCHEMES = {
    "none": None,
    "int8_token": ("int8", "token"),
    "fp8_token": ("fp8_e4m3", "token"),
    "int8_tensor": ("int8", "tensor"),
    "mxfp4": ("mxfp4", "group"),
    "nvfp4": ("nvfp4", "group"),
}
AMAX = 8.0  # of static scales: what it is makes no difference to the time


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of rounding activations.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    whisper = load(locate("wq:nano"))
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split="clean"))
    audios = [speech.read(index, SAMPLING_RATE) for index in range(arguments.utterances)]
    order = sorted(range(len(audios)), key=lambda index: -len(audios[index]))
    layers = list(walk(whisper.model))
    ranges = {layer.name: Range(-AMAX, AMAX) for layer in layers}
    weights = assign(layers, [Assignment(Quantizer(load_format("int8")), DEFAULT_ROLES)])

    def seconds(name: str, batch: int) -> tuple[float, int]:
        scheme = SCHEMES[name]
        assignments = []
        if scheme is not None:
            quantizer = Quantizer(with_wide_scale(load_format(scheme[0])), scheme[1])
            assignments = [Assignment(Activation(quantizer), DEFAULT_ROLES)]
        with quantized_activations(whisper.model, assignments, ranges):
            started = time.process_time()
            # As many tokens for all, whatever rounding makes of the text
            result = transcribe(whisper, audios.__getitem__, order, batch_size=batch, max_new_tokens=6)
            return time.process_time() - started, sum(len(each.tokens) for each in result.transcripts)

    print(f"{arguments.threads} threads, torch {torch.__version__}; processor seconds and ratio to none\n")
    print("| batch | activations | seconds | ratio | tokens |\n| ---: | --- | ---: | ---: | ---: |")
    with quantized_weights(weights):
        for batch in arguments.batches:
            rounds = [{name: seconds(name, batch) for name in SCHEMES} for _ in range(arguments.rounds + 1)][
                1:
            ]
            for name in SCHEMES:
                spent = median(each[name][0] for each in rounds)
                ratio = median(each[name][0] / each["none"][0] for each in rounds)
                print(f"| {batch} | {name} | {spent:.2f} | {ratio:.2f} | {rounds[0][name][1]} |", flush=True)


if __name__ == "__main__":
    main()
