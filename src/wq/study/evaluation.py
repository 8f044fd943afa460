"""A point, evaluated: load, quantize, transcribe, score and measure; or found in the store."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from wq.study import cost, memory, recording, results, wer
from wq.study.job import Job, load_once
from wq.study.outliers import alphas_text, write_outliers
from wq.study.quantization import named, quantized
from wq.study.results import Row
from wq.study.rows import (
    Outcome,
    calibration_columns,
    difference_columns,
    score_columns,
    size_columns,
    spec_columns,
    transcription_columns,
    utterance_rows,
    versions,
)
from wq.study.size import model_size, plain_bits
from wq.study.spec import Spec
from wq.study.tracking import PARENT_VARIABLE
from wq.whisper.decode import SAMPLING_RATE, NonFiniteUtterance, Transcription, transcribe
from wq.whisper.geometry import read_geometry
from wq.whisper.kv_cache import KVQuantizer
from wq.whisper.long_audio import in_pieces
from wq.whisper.model import Whisper


def obtain(job: Job, directory: Path, reference: Outcome | None = None) -> Outcome:
    """The point's results: from the store where it has them, else by running it, once however many jobs ask
    together. Either way its files are left in the directory."""
    with alone(job.spec):
        found = None if job.config.rerun else job.store.find(job.spec.fingerprint)
        if found is None:
            return record(job, directory, reference)
        # The same numbers under this job's own names: the model may have been called otherwise before
        row = job.store.read_result(found) | spec_columns(job.spec) | {"command": job.command}
        outcome = Outcome(row, job.store.read_transcripts(found), reused=True)
        for name in results.DIAGNOSIS if job.spec.smoothquant else ():
            results.write_whole(directory / name, job.store.artifact(found, name).read_bytes())
    write_files(directory, outcome)
    return outcome


@contextmanager
def alone(spec: Spec) -> Iterator[None]:
    """Nobody else runs this point meanwhile. The operating system frees the lock of a process that dies, and
    over NFS the server does. Where a file system has no such locks nobody waits: a lock that is but a file
    would outlive its holder. The point may then be run twice, with equal results."""
    directory = Path(".wq") / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / f"{spec.fingerprint}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=2)
    except Timeout:
        print(f"{spec.point}: waiting for another process that runs it", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        print(f"{directory} has no locks ({error.strerror}): jobs may run a point twice", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def write_files(directory: Path, outcome: Outcome) -> None:
    """`transcripts.jsonl`, then `result.json`, whose presence says that all are there."""
    if outcome.maxima:
        write_outliers(directory, outcome.maxima)
    results.write_rows(directory / results.TRANSCRIPTS, outcome.transcripts)
    results.write_row(directory / results.RESULT, outcome.row)


def record(job: Job, directory: Path, reference: Outcome | None) -> Outcome:
    """Run the point under an MLflow run, and leave its files in the directory."""
    columns = spec_columns(job.spec)
    tags = recording.tags(job.spec.fingerprint, columns)
    with job.store.running(job.spec.point, tags, os.environ.get(PARENT_VARIABLE)) as run_id:
        outcome = evaluate(job, reference)
        write_files(directory, outcome)
        recording.record(job.store, run_id, job.spec, columns, job.config.dataset, outcome.row, directory)
    return outcome


def evaluate(job: Job, reference: Outcome | None) -> Outcome:
    """Load, quantize, transcribe, score, measure."""
    config, spec, speech = job.config, job.spec, job.speech
    memory.reset_peak(config.device)
    clock = [time.perf_counter()]
    loads = load_once.cache_info().misses
    whisper = load_once(job.checkpoint, config.device)
    clock.append(time.perf_counter())
    with quantized(whisper, spec, job.calibration, batch_size=config.batch_size) as state:
        clock.append(time.perf_counter())
        transcription = transcribed(whisper, job, state.kv_cache)
    size = model_size(whisper.model, state.plan, plain_bits(spec))
    score = wer.score(
        [utterance.id for utterance in speech.utterances],
        [utterance.text for utterance in speech.utterances],
        [transcript.text for transcript in transcription.transcripts],
        spec.language,
    )
    transcripts = utterance_rows(speech, transcription.transcripts, score)
    row = {
        "fingerprint": spec.fingerprint,
        "status": "finished",
        "is_reference": spec.is_reference,
        **spec_columns(spec),
        **score_columns(score, spec),
        **(difference_columns(transcripts, reference, spec) if reference else {}),
        **size_columns(size),
        **cost.columns(read_geometry(job.checkpoint), size, spec),
        "peak_memory_bytes": memory.peak_bytes(config.device),
        # not a time where an earlier job of this process has loaded it
        "load_seconds": clock[1] - clock[0] if load_once.cache_info().misses > loads else None,
        **calibration_columns(spec, state.calibrate_seconds),
        "smoothquant_alphas": alphas_text(state.maxima) if state.maxima else None,
        "quantize_seconds": clock[2] - clock[1] - state.calibrate_seconds,
        **transcription_columns(transcription),
        "device": config.device,
        "batch_size": config.batch_size,
        "command": job.command,
        **versions(),
    }
    return Outcome(row, transcripts, reused=False, maxima=state.maxima)


def transcribed(whisper: Whisper, job: Job, kv_cache: KVQuantizer | None) -> Transcription:
    """The test set as the model now hears it. Raises NonFiniteError that names the utterance."""
    spec, speech = job.spec, job.speech
    window = whisper.window_seconds if spec.long_audio == "chunk" else float("inf")
    durations = [utterance.duration for utterance in speech.utterances]
    pieces = in_pieces(lambda index: speech.read(index, SAMPLING_RATE), durations, window)
    try:
        heard = transcribe(
            whisper,
            pieces.read,
            pieces.order,
            batch_size=job.config.batch_size,
            max_new_tokens=spec.max_new_tokens,
            language=spec.decoding_language or spec.language,
            kv_cache=kv_cache,
        )
    except NonFiniteUtterance as error:
        error.index = pieces.pieces[error.index].utterance
        raise named(error, speech) from None
    return pieces.joined(heard)


def notices(row: Row) -> list[str]:
    """What a reader of the word error rate should know of this run."""
    total = row["utterances"] + row["dropped_references"]
    texts = {
        "cut_utterances": "are longer than the model's window: only what fits into it was transcribed",
        "dropped_references": "have a reference that normalises to nothing: they are not scored",
        "capped_transcripts": "were cut at max_new_tokens: a loop, or a limit that is too low",
        "empty_hypotheses": "got an empty transcript",
    }
    return [f"{row[name]} of {total} utterances {text}" for name, text in texts.items() if row[name]]
