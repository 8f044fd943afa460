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
    ("wq/whisper/features.py", None, "features"),
    ("wq/whisper/greedy.py", "encode", "encode"),
    ("wq/whisper/greedy.py", "decode_greedily", "decode"),
    ("wq/whisper/drafting.py", None, "decode"),
    ("wq/whisper/decode.py", "transcribe", "decode"),
    ("wq/whisper/row_cache.py", None, "encode"),
    ("wq/whisper/encoder_states.py", None, "encode"),
    ("wq/whisper/quantize.py", None, "quantize"),
    ("wq/numerics/", None, "quantize"),
    ("wq/study/quantization.py", "quantized", "quantize"),
    ("wq/whisper/model.py", None, "load"),
    ("wq/study/datasets.py", None, "read"),
    ("wq/study/audio.py", None, "read"),
    ("wq/study/wer.py", None, "score"),
    ("wq/study/statistics.py", None, "score"),
    ("wq/study/mapsswe.py", None, "score"),
    ("wq/study/recording.py", None, "record"),
    ("wq/study/tracking.py", None, "record"),
    ("wq/study/connection.py", None, "record"),
    ("wq/study/report", None, "report"),
    ("wq/study/page", None, "report"),
    ("wq/study/selection.py", None, "report"),
    ("wq/study/figures.py", None, "report"),
    ("wq/study/config.py", None, "compose"),
    ("wq/study/reuse.py", None, "compose"),
    ("hydra/", None, "compose"),
    ("omegaconf/", None, "compose"),
)
# Hydra's own frames lie around every job: they count only where nothing of wq is inside them
OUTERMOST = ("wq/main.py", "wq/study/evaluation.py", "wq/study/grid.py", "wq/study/job.py")


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
