"""A point, evaluated: load, quantize, transcribe, score and measure; or found in the store."""

import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from wq import outputs
from wq.study.job import memory, reuse
from wq.study.job.calibration import Statistics, named
from wq.study.job.job import Job, load_once
from wq.study.job.outliers import alphas_text, channel_maxima, write_outliers
from wq.study.job.reading import packed, reading_columns, texts_of, unpacked
from wq.study.job.rows import (
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
from wq.study.resources import cost
from wq.study.resources.size import model_size, plain_bits
from wq.study.score import wer
from wq.study.store import recording, results
from wq.study.store.locks import exclusive
from wq.study.store.results import Row
from wq.study.store.tracking import PARENT_VARIABLE, milliseconds
from wq.whisper.checkpoint.geometry import read_geometry
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.checkpoint.window import windowed
from wq.whisper.decoding.decode import SAMPLING_RATE, NonFiniteUtterance, Transcription, transcribe
from wq.whisper.decoding.kv_cache import KVQuantizer
from wq.whisper.decoding.likelihood import Account, Script
from wq.whisper.decoding.long_audio import in_pieces
from wq.whisper.methods.sequence import treated

MOST_TOLD = 3  # layers in a notice


def obtain(job: Job, directory: Path, reference: Outcome | None = None) -> Outcome:
    """The point's results: from the store where it has them, else by running it, once however many jobs ask
    together. Either way its files are left in the directory."""
    reuse.here.passed(job.spec)
    with exclusive(job.store.folder, job.spec.fingerprint, job.spec.point):
        found = None if job.config.rerun else files_of(job, directory)
        if found is None:
            return record(job, directory, reference and with_accounts(reference, job, directory))
        # The same numbers under this job's own names: the model may have been called otherwise before
        row = results.read_row(found[results.RESULT]) | spec_columns(job.spec) | {"command": job.command}
        outcome = Outcome(row, results.read_rows(found[results.HYPOTHESES]), reused=True)
        for name in recording.diagnosis_of(job.spec):
            outputs.write(directory / name, found[name].read_bytes())
    if found[results.RESULT] != directory / results.RESULT:
        outputs.remove([directory / results.RECORD])  # of what lay here before
    write_files(directory, outcome)
    return outcome


def with_accounts(reference: Outcome, job: Job, directory: Path) -> Outcome:
    """A reference's outcome with its accounts, which the job that is compared with it reads. Where a
    version of wq left none that knew none yet, the reference runs once more."""
    if reference.accounts:
        return reference
    own, folder = job.reference(), directory / results.REFERENCE_FOLDER
    with exclusive(own.store.folder, own.spec.fingerprint, own.spec.point):
        if accounts := accounts_of(own, folder):
            return replace(reference, accounts=accounts)
        print(
            "the reference's results are of a version of wq that measured no kl: it runs once more",
            file=sys.stderr,
        )
        again = record(own, folder, None)
    results.write_row(directory / results.REFERENCE, again.row)
    return again


def accounts_of(job: Job, directory: Path) -> list[Account]:
    """A finished reference's, from the store or from a job of this grid; none where there are none, or what
    is there is cut off."""
    files = []
    with job.store.connection.optional():
        run = job.store.find_run(job.spec.fingerprint)
        if run and job.store.has_artifact(run, results.ACCOUNTS):
            files.append(job.store.artifact(run, results.ACCOUNTS))
    sweep = results.sweep_of(directory)
    done = results.find_job(sweep, job.spec.fingerprint, results.ACCOUNTS) if sweep else None
    files += [done / results.ACCOUNTS] if done else []
    for file in files:
        with suppress(OSError, SafetensorError, KeyError):
            return unpacked(file)
    return []


def files_of(job: Job, directory: Path) -> dict[str, Path] | None:
    """The files of the point's finished run by their names: the store's, or those of another job of this
    grid, which the store could not take. None where there is none."""
    names = [results.RESULT, *recording.diagnosis_of(job.spec)]
    with job.store.connection.optional():
        if run := job.store.find_run(job.spec.fingerprint):
            found = {name: job.store.artifact(run, name) for name in names}
            return found | {results.HYPOTHESES: job.store.hypotheses(run)}
    sweep = results.sweep_of(directory)
    done = results.find_job(sweep, job.spec.fingerprint) if sweep else None
    if done is None:
        return None
    return {name: done / name for name in names} | {results.HYPOTHESES: results.hypotheses(done)}


def write_files(directory: Path, outcome: Outcome) -> None:
    """`hypotheses.jsonl`, then `result.json`, whose presence says that all are there."""
    if outcome.maxima:
        write_outliers(directory, outcome.maxima)
    if outcome.accounts:
        outputs.write(directory / results.ACCOUNTS, packed(outcome.accounts))
    results.write_rows(directory / results.HYPOTHESES, outcome.transcripts)
    results.write_row(directory / results.RESULT, outcome.row)


def record(job: Job, directory: Path, reference: Outcome | None) -> Outcome:
    """Run the point under an MLflow run, and leave its files in the directory. What the store does not take
    is in them too."""
    columns, store = spec_columns(job.spec), job.store
    tags, started = recording.begin(job.spec.fingerprint, columns, job.command), milliseconds()
    with store.running(job.spec.point, tags, os.environ.get(PARENT_VARIABLE), started) as run_id:
        outcome = evaluate(job, reference)
        run = recording.describe(store, tags, started, job.spec, columns, job.config, outcome.row)
        recording.keep(run, directory)
        write_files(directory, outcome)
        if run_id:
            with store.connection.optional():
                recording.write(store, run_id, run, directory)
    return outcome


def evaluate(job: Job, reference: Outcome | None) -> Outcome:
    """Load, quantize, transcribe, score, measure."""
    config, spec, speech = job.config, job.spec, job.speech
    memory.reset_peak(config.device)
    clock = [time.perf_counter()]
    loads = load_once.cache_info().misses
    whisper = load_once(job.checkpoint, config.device)
    clock.append(time.perf_counter())
    statistics = Statistics(whisper, spec, job.calibration, config.batch_size)
    with treated(whisper, spec.treatment, statistics) as state:
        clock.append(time.perf_counter())
        transcription, accounts = transcribed(whisper, job, state.kv_cache, reference)
    maxima = channel_maxima(state.smoothed)
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
        **reading_columns(
            transcripts,
            reference.transcripts if reference else None,
            resamples=spec.resamples,
            seed=spec.seed,
        ),
        **size_columns(size),
        "clamped_scales": state.clamped,
        **cost.columns(read_geometry(job.checkpoint), size, spec),
        "peak_memory_bytes": memory.peak_bytes(config.device),
        # not a time where an earlier job of this process has loaded it
        "load_seconds": clock[1] - clock[0] if load_once.cache_info().misses > loads else None,
        **calibration_columns(spec, statistics.seconds),
        "smoothquant_alphas": alphas_text(maxima) if maxima else None,
        "quantize_seconds": clock[2] - clock[1] - (statistics.seconds or 0.0),
        **transcription_columns(transcription),
        "device": config.device,
        "batch_size": config.batch_size,
        "command": job.command,
        **versions(),
    }
    return Outcome(row, transcripts, reused=False, accounts=accounts, maxima=maxima)


def transcribed(
    whisper: Whisper, job: Job, kv_cache: KVQuantizer | None, reference: Outcome | None
) -> tuple[Transcription, list[Account]]:
    """The test set as the model now hears it, drafted by the reference; and of a reference its accounts,
    by piece. Raises NonFiniteError that names the utterance."""
    spec, speech = job.spec, job.speech
    window = whisper.window_seconds if spec.long_audio == "chunk" else float("inf")
    durations = [utterance.duration for utterance in speech.utterances]
    pieces = in_pieces(lambda index: speech.read(index, SAMPLING_RATE), durations, window)
    script = Script(
        texts_of(whisper, speech, pieces, spec.language), reference.accounts if reference else None
    )
    drafts = [row["tokens"] for row in reference.transcripts] if reference and job.config.drafting else None
    try:
        with windowed(whisper, spec.window) as hearing:
            heard = transcribe(
                hearing,
                pieces.read,
                pieces.order,
                batch_size=job.config.batch_size,
                max_new_tokens=spec.max_new_tokens,
                language=spec.decoding_language or spec.language,
                kv_cache=kv_cache,
                drafts=drafts and pieces.drafts(drafts),
                script=script,
                cached=reuse.here.rows_for(job),
            )
    except NonFiniteUtterance as error:
        error.index = pieces.pieces[error.index].utterance
        raise named(error, speech) from None
    accounts = (each.reading.account for each in heard.transcripts)
    return pieces.joined(heard), [each for each in accounts if each]


def notices(row: Row) -> list[str]:
    """What a reader of the word error rate should know of this run."""
    total = row["utterances"] + row["dropped_references"]
    texts = {
        "cut_utterances": "are longer than the model's window: only what fits into it was transcribed",
        "dropped_references": "have a reference that normalises to nothing: they are not scored",
        "capped_transcripts": "were cut at max_new_tokens: a loop, or a limit that is too low",
        "empty_hypotheses": "got an empty transcript",
    }
    found = [f"{row[name]} of {total} utterances {text}" for name, text in texts.items() if row[name]]
    worst = sorted(row.get("clamped_scales", ()), key=lambda layer: -layer[1] / layer[2])
    if worst:
        counts = [f"{clamped:,} of {scales:,} in {layer}" for layer, clamped, scales in worst[:MOST_TOLD]]
        others = f", and some in {len(worst) - MOST_TOLD} more" if len(worst) > MOST_TOLD else ""
        found.append(
            f"scales are beyond what their precision reaches: {', '.join(counts)}{others}; choose another "
            "format.scale_dtype, or format.tensor_scale=true with e4m3"
        )
    return found
