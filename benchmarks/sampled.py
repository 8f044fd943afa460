"""`python -m wq.main` with its stages counted: sampled.py OUT SETTINGS...

Writes the seconds of each stage to OUT as JSON.
"""

import json
import runpy
import sys
import threading
import time
from pathlib import Path
from types import FrameType

EVERY = 0.002
# The beginning of a file's path below wq or of a module's name, and a function where it matters: its stage.
# The first that fits a frame counts, the innermost frame first.
WHERE: tuple[tuple[str, str | None, str], ...] = (
    ("<frozen importlib", None, "import"),
    ("wq/whisper/decoding/features.py", None, "features"),
    ("wq/whisper/decoding/greedy.py", "encode", "encode"),
    ("wq/whisper/decoding/greedy.py", "decode_greedily", "decode"),
    ("wq/whisper/decoding/drafting.py", None, "decode"),
    ("wq/whisper/decoding/decode.py", "transcribe", "decode"),
    ("wq/whisper/decoding/row_cache.py", None, "encode"),
    ("wq/whisper/decoding/encoder_states.py", None, "encode"),
    ("wq/whisper/methods/nearest.py", None, "quantize"),
    ("wq/numerics/", None, "quantize"),
    ("wq/study/job/quantization.py", "quantized", "quantize"),
    ("wq/whisper/checkpoint/model.py", None, "load"),
    ("wq/study/speech/datasets.py", None, "read"),
    ("wq/study/speech/audio.py", None, "read"),
    ("wq/study/score/wer.py", None, "score"),
    ("wq/study/score/statistics.py", None, "score"),
    ("wq/study/score/mapsswe.py", None, "score"),
    ("wq/study/store/recording.py", None, "record"),
    ("wq/study/store/tracking.py", None, "record"),
    ("wq/study/store/connection.py", None, "record"),
    ("wq/study/report", None, "report"),
    ("wq/study/page", None, "report"),
    ("wq/study/compare/selection.py", None, "report"),
    ("wq/study/report/figures.py", None, "report"),
    ("wq/study/spec/config.py", None, "compose"),
    ("wq/study/job/reuse.py", None, "compose"),
    ("hydra/", None, "compose"),
    ("omegaconf/", None, "compose"),
)
# Hydra's own frames lie around every job: they count only where nothing of wq is inside them
OUTERMOST = ("wq/main.py", "wq/study/job/evaluation.py", "wq/study/grid/grid.py", "wq/study/job/job.py")


def stage_of(frame: FrameType | None) -> str:
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        place = next(
            (file[at:] for mark in ("/wq/", "/hydra/", "/omegaconf/") if (at := file.rfind(mark) + 1)), file
        )
        for where, name, stage in WHERE:
            if place.startswith(where) and name in (None, function):
                return stage
        if place.startswith(OUTERMOST):
            return "rest"
        frame = frame.f_back
    return "rest"


def main() -> None:
    out = Path(sys.argv.pop(1)).absolute()
    seconds: dict[str, float] = {}
    over = threading.Event()
    watched = threading.get_ident()

    def look() -> None:
        before = time.perf_counter()
        while not over.wait(EVERY):
            stage = stage_of(sys._current_frames()[watched])
            now = time.perf_counter()
            seconds[stage] = seconds.get(stage, 0.0) + now - before
            before = now

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        runpy.run_module("wq.main", run_name="__main__", alter_sys=True)
    finally:
        over.set()
        watcher.join()
        out.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
