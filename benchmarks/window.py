"""One window through a model of a given size, by stage: window.py SIZE THREADS

In a process of its own, for its peak memory. Prints seconds: the median of three, after one that does not
count.
"""

import json
import sys
import time
from itertools import pairwise
from statistics import median

import torch

from benchmarks.cases import nano, random_weights
from wq.whisper.decoding.decode import SAMPLING_RATE
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.greedy import decode_greedily, encode_rows
from wq.whisper.decoding.onednn import packed_weights


def main() -> None:
    size, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    started = time.perf_counter()
    case = nano(1) if size == "nano" else random_weights(size, 1)
    load_seconds = time.perf_counter() - started
    rounds = []
    with torch.inference_mode(), packed_weights(case.model.model.decoder, case.model.proj_out):
        for _ in range(4):
            clock = [time.perf_counter()]
            features = log_mel(case.extractor, case.audios)
            clock.append(time.perf_counter())
            states = list(encode_rows(case.model, features))
            clock.append(time.perf_counter())
            decode_greedily(case.model, states, 1, case.rules)
            clock.append(time.perf_counter())
            rounds.append([after - before for before, after in pairwise(clock)])
    features, encode, decode = (median(each) for each in zip(*rounds[1:], strict=True))
    found = {
        "parameters": sum(parameter.numel() for parameter in case.model.parameters()),
        "load_seconds": load_seconds,
        "features_seconds": features,
        "encode_seconds": encode,
        "decode_seconds": decode,
        "seconds": features + encode + decode,
        "audio_seconds": len(case.audios[0]) / SAMPLING_RATE,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
