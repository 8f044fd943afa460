"""A point, evaluated: load, quantize, transcribe, score and measure; or found in the store."""

import errno
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from wq.study import cost, memory, recording, results, statistics, wer
from wq.study.datasets import Speech
from wq.study.job import Job, load_once
from wq.study.mapsswe import Alignment, mapsswe
from wq.study.outliers import ChannelMaxima, alphas_text, write_outliers
from wq.study.quantization import named, quantized
from wq.study.results import Row
from wq.study.size import Size, model_size, plain_bits
from wq.study.spec import REFERENCE_FORMAT, Spec
from wq.study.tracking import PARENT_VARIABLE
from wq.whisper.decode import SAMPLING_RATE, NonFiniteUtterance, Transcript, Transcription, transcribe
from wq.whisper.geometry import read_geometry
from wq.whisper.kv_cache import KVQuantizer
from wq.whisper.model import Whisper
from wq.whisper.schemes import DEFAULT_ROLES

LIBRARIES = ("wq", "torch", "transformers", "datasets", "jiwer", "whisper-normalizer")


@dataclass(frozen=True)
class Outcome:
    """A point's row and its utterances' rows, and whether they came from the store; and, of a job that
    smooths and has run here, the inputs before and after."""

    row: Row
    transcripts: list[Row]
    reused: bool
    maxima: Sequence[ChannelMaxima] = ()


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
    try:
        return transcribe(
            whisper,
            lambda index: speech.read(index, SAMPLING_RATE),
            longest_first(speech),
            batch_size=job.config.batch_size,
            max_new_tokens=spec.max_new_tokens,
            language=spec.decoding_language or spec.language,
            kv_cache=kv_cache,
        )
    except NonFiniteUtterance as error:
        raise named(error, speech) from None


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


def longest_first(speech: Speech) -> list[int]:
    """Utterances of similar length share a batch; the longest come first, so that a batch too big fails at
    once."""
    durations = [utterance.duration or 0.0 for utterance in speech.utterances]
    return list(np.argsort(-np.asarray(durations), kind="stable"))


def spec_columns(spec: Spec) -> Row:
    """The spec as columns of a row."""
    return {
        "point": spec.point,
        "model": spec.model.name,
        **weight_columns(spec),
        "activation": spec.activation_name,
        "kv_cache": spec.kv_cache_name,
        "smoothquant": spec.smoothquant_name,
        "dataset": spec.dataset.name,
        "split": spec.split,
        "language": spec.decoding_language or spec.language,
        "limit": spec.limit,
        "max_new_tokens": spec.max_new_tokens,
        "seed": spec.seed,
        "resamples": spec.resamples,
    }


def weight_columns(spec: Spec) -> Row:
    """Format, granularity, group and roles of the weights; more than one of a kind are joined by +."""
    quantizers = [each.quantizer for each in spec.weights]

    def joined(values: list[str]) -> str:
        return "+".join(dict.fromkeys(values))

    groups = dict.fromkeys(quantizer.group for quantizer in quantizers)
    return {
        "weights": spec.weights_name,
        "format": joined([quantizer.format.name for quantizer in quantizers]) or REFERENCE_FORMAT,
        "granularity": joined(
            ["none" if each.format.is_cast else each.granularity for each in quantizers] or ["none"]
        ),
        "group": next(iter(groups)) if len(groups) == 1 else joined([str(group) for group in groups]) or None,
        "roles": "+".join("+".join(each.roles) for each in spec.weights) or "+".join(DEFAULT_ROLES),
    }


def utterance_rows(speech: Speech, transcripts: list[Transcript], score: wer.Score) -> list[Row]:
    """One row for every utterance, in the names that NeMo and the Open ASR leaderboard read: text and
    pred_text are raw.

    `errors` and `words` are counts after normalisation; null where the reference normalises to nothing and is
    not scored.
    """
    counts = dict(zip(score.ids, zip(score.errors.tolist(), score.words.tolist(), strict=True), strict=True))
    rows = []
    for utterance, transcript in zip(speech.utterances, transcripts, strict=True):
        errors, words = counts.get(utterance.id, (None, None))
        rows.append(
            {
                "id": utterance.id,
                "duration": round(transcript.duration, 3),
                "text": utterance.text,
                "pred_text": transcript.text,
                "errors": errors,
                "words": words,
                "tokens": list(transcript.tokens),
                "capped": transcript.capped,
                "cut_seconds": round(transcript.cut_seconds, 3),
            }
        )
    return rows


def score_columns(score: wer.Score, spec: Spec) -> Row:
    interval = statistics.bootstrap_interval(
        score.errors, score.words, resamples=spec.resamples, seed=spec.seed
    )
    return {
        "wer": score.wer,
        "wer_ci_low": interval.low,
        "wer_ci_high": interval.high,
        "substitutions": score.substitutions,
        "deletions": score.deletions,
        "insertions": score.insertions,
        "substitution_rate": score.substitution_rate,
        "deletion_rate": score.deletion_rate,
        "insertion_rate": score.insertion_rate,
        "reference_words": score.reference_words,
        "utterances": score.utterances,
        "cer": score.cer,
        "dropped_references": score.dropped_references,
        "empty_hypotheses": score.empty_hypotheses,
        "repetition_loops": score.repetition_loops,
        "hallucinated_words": score.hallucinated_words,
        "normaliser": spec.normaliser,
        # of the scored utterances, in the test set's order: what comparing many points takes
        "utterance_errors": score.errors.tolist(),
        "utterance_words": score.words.tolist(),
    }


def difference_columns(transcripts: list[Row], reference: Outcome, spec: Spec) -> Row:
    """The paired comparison with the reference run, over the utterances that are scored."""
    pairs = [
        (row, other)
        for row, other in zip(transcripts, reference.transcripts, strict=True)
        if row["words"] is not None
    ]
    comparison = statistics.compare(
        np.array([row["errors"] for row, _ in pairs]),
        np.array([row["words"] for row, _ in pairs]),
        np.array([other["errors"] for _, other in pairs]),
        changed=np.array([row["pred_text"] != other["pred_text"] for row, other in pairs]),
        resamples=spec.resamples,
        seed=spec.seed,
    )

    def aligned(row: Row) -> Alignment:
        return wer.alignment(row["text"], row["pred_text"], spec.language)

    matched = mapsswe((aligned(row), aligned(other)) for row, other in pairs)
    return {
        "wer_delta": comparison.delta,
        "wer_delta_ci_low": comparison.low,
        "wer_delta_ci_high": comparison.high,
        "wer_delta_p": comparison.p,
        "wer_delta_mapsswe_p": matched.p,
        "no_worse": comparison.no_worse,
        "unchanged": comparison.unchanged,
        "reference": reference.row["fingerprint"],
    }


def size_columns(size: Size) -> Row:
    return {
        "linear_bytes": size.linear_bytes,
        "model_bytes": size.model_bytes,
        "bits_per_weight": size.bits_per_weight,
        "compression_ratio": size.compression_ratio,
        "role_bytes": {role: part.bytes for role, part in size.by_role.items()},
    }


def calibration_columns(spec: Spec, seconds: float) -> Row:
    calibration = spec.calibration
    return {
        "calibration_split": calibration and calibration.split,
        "calibration_utterances": calibration and calibration.utterances,
        "calibrate_seconds": seconds if calibration else None,
    }


def transcription_columns(transcription: Transcription) -> Row:
    return {
        "rtfx": transcription.rtfx,
        "audio_seconds": transcription.audio_seconds,
        "features_seconds": transcription.features_seconds,
        "generate_seconds": transcription.generate_seconds,
        "capped_transcripts": transcription.capped,
        "cut_utterances": transcription.cut,
    }


def installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


def versions() -> Row:
    libraries = {f"version_{name.replace('-', '_')}": installed(name) for name in LIBRARIES}
    return libraries | {"version_python": platform.python_version()}
