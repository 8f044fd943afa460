"""What an evaluation gives, as rows: one for the point, one for every utterance."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from wq.study.job.outliers import ChannelMaxima
from wq.study.job.reading import DIGITS
from wq.study.resources.size import Size
from wq.study.score import statistics, wer
from wq.study.score.mapsswe import Alignment, mapsswe
from wq.study.spec.spec import REFERENCE_FORMAT, Spec
from wq.study.speech.datasets import Speech
from wq.study.store.results import Row
from wq.whisper.decoding import onednn
from wq.whisper.decoding.decode import Transcript, Transcription
from wq.whisper.decoding.likelihood import Account, Reading
from wq.whisper.layers.schemes import DEFAULT_ROLES

LIBRARIES = ("wq", "torch", "transformers", "datasets", "jiwer", "whisper-normalizer")


@dataclass(frozen=True)
class Outcome:
    """A point's row and its utterances' rows, and whether they came from the store; of a reference, its
    accounts, by piece; and, of a job that smooths and has run
    here, the inputs before and after."""

    row: Row
    transcripts: list[Row]
    reused: bool
    accounts: Sequence[Account] = ()
    maxima: Sequence[ChannelMaxima] = ()


def spec_columns(spec: Spec) -> Row:
    """The spec as columns of a row."""
    return {
        "point": spec.point,
        "model": spec.model.name,
        **weight_columns(spec),
        "algorithm": spec.algorithm_name,
        "activation": spec.activation_name,
        "kv_cache": spec.kv_cache_name,
        "smoothquant": spec.smoothquant_name,
        "dataset": spec.dataset.name,
        "split": spec.split,
        "language": spec.decoding_language or spec.language,
        "limit": spec.limit,
        "max_new_tokens": spec.max_new_tokens,
        "long_audio": spec.long_audio,
        "window": spec.window,
        "seed": spec.seed,
        "resamples": spec.resamples,
    }


def weight_columns(spec: Spec) -> Row:
    """Format, granularity, group and roles of the weights; more than one of a kind are joined by +."""
    quantizers = [each.quantizer for each in spec.treatment.plan]

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
        "roles": "+".join("+".join(each.roles) for each in spec.treatment.plan) or "+".join(DEFAULT_ROLES),
    }


def utterance_rows(speech: Speech, transcripts: list[Transcript], score: wer.Score) -> list[Row]:
    """One row for every utterance, in the names that NeMo and the Open ASR leaderboard read: text and
    pred_text are raw.

    `errors` and `words` are counts after normalisation; null where the reference normalises to nothing and is
    not scored. `nll`, `kl` and `agreed` are sums over so many tokens (see `likelihood.Reading`).
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
                **read_columns(transcript.reading),
            }
        )
    return rows


def read_columns(reading: Reading) -> Row:
    sums = {name: float(f"{getattr(reading, name):.{DIGITS}g}") for name in ("nll", "kl")}
    return {
        "nll": sums["nll"],
        "nll_tokens": reading.nll_tokens,
        "kl": sums["kl"],
        "kl_tokens": reading.kl_tokens,
        "agreed": reading.agreed,
    }


def score_columns(score: wer.Score, spec: Spec) -> Row:
    bootstrap = {"resamples": spec.resamples, "seed": spec.seed}
    interval = statistics.bootstrap_interval(score.errors, score.words, **bootstrap)
    capped = np.minimum(score.errors, score.words)
    capped_interval = statistics.bootstrap_interval(capped, score.words, **bootstrap)
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
        "wer_capped": float(capped.sum() / score.words.sum()),
        "wer_capped_ci_low": capped_interval.low,
        "wer_capped_ci_high": capped_interval.high,
        "cer": score.cer,
        "dropped_references": score.dropped_references,
        "empty_hypotheses": score.empty_hypotheses,
        "repetition_loops": score.repetition_loops,
        "loop_share": score.repetition_loops / score.utterances,
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
    bootstrap = {"resamples": spec.resamples, "seed": spec.seed}
    words = np.array([row["words"] for row, _ in pairs])
    errors, others = (np.array([each["errors"] for each in side]) for side in zip(*pairs, strict=True))
    changed = np.array([row["pred_text"] != other["pred_text"] for row, other in pairs])
    comparison = statistics.compare(errors, words, others, changed=changed, **bootstrap)
    capped = statistics.difference(np.minimum(errors, words) - np.minimum(others, words), words, **bootstrap)

    def aligned(row: Row) -> Alignment:
        return wer.alignment(row["text"], row["pred_text"], spec.language)

    matched = mapsswe((aligned(row), aligned(other)) for row, other in pairs)
    return {
        "wer_delta": comparison.delta,
        "wer_delta_ci_low": comparison.low,
        "wer_delta_ci_high": comparison.high,
        "wer_delta_p": comparison.p,
        "wer_delta_mapsswe_p": matched.p,
        "wer_capped_delta": capped.delta,
        "wer_capped_delta_ci_low": capped.low,
        "wer_capped_delta_ci_high": capped.high,
        "wer_capped_delta_p": capped.p,
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


def calibration_columns(spec: Spec, seconds: float | None) -> Row:
    calibration = spec.calibration
    return {
        "calibration_split": calibration and calibration.split,
        "calibration_utterances": calibration and calibration.utterances,
        "calibrate_seconds": seconds,
    }


def transcription_columns(transcription: Transcription) -> Row:
    return {
        "rtfx": transcription.rtfx,
        "audio_seconds": transcription.audio_seconds,
        "features_seconds": transcription.features_seconds,
        "encode_seconds": transcription.encode_seconds,
        "decode_seconds": transcription.decode_seconds,
        "reading_seconds": transcription.reading_seconds,
        "draft_acceptance": transcription.draft_acceptance,
        "capped_transcripts": transcription.capped,
        "cut_utterances": transcription.cut,
    }


def installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


def versions() -> Row:
    """What computed the point. On CPUs of two capabilities its numbers agree but for float32 rounding."""
    libraries = {f"version_{name.replace('-', '_')}": installed(name) for name in LIBRARIES}
    return libraries | {
        "version_python": platform.python_version(),
        "cpu_capability": onednn.cpu_capability(),
        "encoder_library": onednn.encoder_library(),
    }
