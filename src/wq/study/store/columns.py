"""The columns of a result: one declaration for result.json, MLflow, results.csv and docs/columns.md.

Unknown is null, in every column that says so by its meaning; rates are fractions and sizes are bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# What a column is in MLflow
TAG, METRIC, PARAMETER, ONLY_IN_FILES = "tag", "metric", "parameter", ""


@dataclass(frozen=True)
class Column:
    """mlflow: a tag, by which runs are grouped, which is a parameter too; a metric; a parameter; or nothing
    of its own there, as result.json is an artifact of every run."""

    name: str
    unit: str
    meaning: str
    mlflow: str = ONLY_IN_FILES


COLUMNS = (
    Column("fingerprint", "", "identity of the point: a hash of everything that can change a number"),
    Column("status", "", "finished, failed or running"),
    Column("is_reference", "", "whether it is the fp32 point that the others are compared with"),
    # What was asked for: the effective spec
    Column("point", "", "readable name of the spec", TAG),
    Column("model", "", "the model's name", TAG),
    Column("weights", "", "the weights' part of the point's name", PARAMETER),
    Column("format", "", "number formats of the weights, joined by +", TAG),
    Column("granularity", "", "what shares a scale: tensor, channel, group; none for casts", TAG),
    Column("group", "weights", "group size, where there is one", TAG),
    Column("roles", "", "which weights are quantized", TAG),
    Column("algorithm", "", "how weights are rounded: rtn (to the nearest) or gptq", TAG),
    Column("activation", "", "how linear layers' inputs are rounded", TAG),
    Column("kv_cache", "", "how stored keys and values are rounded", TAG),
    Column("smoothquant", "", "how inputs are smoothed", TAG),
    Column("dataset", "", "the test set's name", TAG),
    Column("split", "", "its split", TAG),
    Column("language", "", "of transcription and of the normaliser", PARAMETER),
    Column("limit", "utterances", "how many were asked for; null for all", PARAMETER),
    Column("max_new_tokens", "tokens", "longest transcript; null for the model's own limit", PARAMETER),
    Column("long_audio", "", "cut or chunk", PARAMETER),
    Column("window", "s", "that the encoder hears; null for the model's own window", PARAMETER),
    Column("seed", "", "of the bootstrap", PARAMETER),
    Column("resamples", "", "of the bootstrap", PARAMETER),
    # How well it recognises
    Column("wer", "fraction", "errors of all utterances over words of all references", METRIC),
    Column("wer_ci_low", "fraction", "lower end of its 95 % bootstrap interval", METRIC),
    Column("wer_ci_high", "fraction", "upper end", METRIC),
    Column("substitutions", "words", "words replaced by others"),
    Column("deletions", "words", "words missing"),
    Column("insertions", "words", "words too many"),
    Column("substitution_rate", "fraction", "substitutions over reference words", METRIC),
    Column("deletion_rate", "fraction", "deletions over reference words", METRIC),
    Column("insertion_rate", "fraction", "insertions over reference words", METRIC),
    Column("reference_words", "words", "of all scored references, normalised"),
    Column("utterances", "utterances", "that are scored"),
    Column("cer", "fraction", "character error rate", METRIC),
    Column("dropped_references", "utterances", "not scored, as their reference normalises to nothing"),
    Column("empty_hypotheses", "utterances", "with an empty transcript", METRIC),
    Column(
        "wer_capped", "fraction", "WER with at most as many errors of an utterance as it has words", METRIC
    ),
    Column("wer_capped_ci_low", "fraction", "lower end of its 95 % bootstrap interval", METRIC),
    Column("wer_capped_ci_high", "fraction", "upper end", METRIC),
    Column("repetition_loops", "utterances", "whose transcript repeats itself", METRIC),
    Column("loop_share", "fraction", "of the scored utterances that do", METRIC),
    Column(
        "hallucinated_words", "words", "inserted in runs, with no word of the reference between them", METRIC
    ),
    Column("normaliser", "", "version of the rules by which texts are compared"),
    Column("utterance_errors", "words", "errors of each scored utterance, in order"),
    Column("utterance_words", "words", "reference words of each"),
    # Against the reference, paired by utterance
    Column("wer_delta", "fraction", "WER less the reference's", METRIC),
    Column("wer_delta_ci_low", "fraction", "lower end of its paired 95 % interval", METRIC),
    Column("wer_delta_ci_high", "fraction", "upper end", METRIC),
    Column("wer_delta_p", "", "two-sided p-value of the paired bootstrap", METRIC),
    Column("wer_delta_mapsswe_p", "", "p-value of NIST's matched pairs test", METRIC),
    Column("wer_capped_delta", "fraction", "wer_capped less the reference's", METRIC),
    Column("wer_capped_delta_ci_low", "fraction", "lower end of its paired 95 % interval", METRIC),
    Column("wer_capped_delta_ci_high", "fraction", "upper end", METRIC),
    Column("wer_capped_delta_p", "", "two-sided p-value of the paired bootstrap", METRIC),
    Column("no_worse", "fraction", "utterances with no more errors than the reference's", METRIC),
    Column("unchanged", "fraction", "transcripts equal to the reference's", METRIC),
    Column("reference", "", "fingerprint of the reference", PARAMETER),
    # By every token, whatever is chosen: see docs/measures.md
    Column("kl", "nats/token", "divergence from the reference's next tokens, along its transcripts", METRIC),
    Column("kl_ci_low", "nats/token", "lower end of its 95 % bootstrap interval", METRIC),
    Column("kl_ci_high", "nats/token", "upper end", METRIC),
    Column("kl_tokens", "tokens", "of the reference's transcripts"),
    Column("top1_agreement", "fraction", "of these tokens that are the likeliest here too", METRIC),
    Column("nll", "nats/token", "cross entropy of the words that were said", METRIC),
    Column("nll_ci_low", "nats/token", "lower end of its 95 % bootstrap interval", METRIC),
    Column("nll_ci_high", "nats/token", "upper end", METRIC),
    Column("nll_tokens", "tokens", "of the words that were said"),
    Column("nll_delta", "nats/token", "nll less the reference's", METRIC),
    Column("nll_delta_ci_low", "nats/token", "lower end of its paired 95 % interval", METRIC),
    Column("nll_delta_ci_high", "nats/token", "upper end", METRIC),
    Column("nll_delta_p", "", "two-sided p-value of the paired bootstrap", METRIC),
    Column("utterance_kl", "nats", "of each scored utterance, in order"),
    Column("utterance_kl_tokens", "tokens", "of each"),
    Column("utterance_nll", "nats", "of each scored utterance, in order"),
    Column("utterance_nll_tokens", "tokens", "of each"),
    # What it takes
    Column("linear_bytes", "bytes", "linear layers of encoder and decoder, with scales", METRIC),
    Column("model_bytes", "bytes", "the whole checkpoint; what is not quantized at fp16", METRIC),
    Column("bits_per_weight", "bits", "of the linear layers, scales included", METRIC),
    Column("compression_ratio", "", "the whole checkpoint at fp16 over model_bytes", METRIC),
    Column("role_bytes", "bytes", "by role"),
    Column(
        "clamped_scales", "scales", "beyond what their precision reaches, of how many, by layer that has any"
    ),
    Column("kv_cache_bytes", "bytes", "keys and values of one utterance, by formula", METRIC),
    Column("memory_bytes", "bytes", "weights, KV cache and activation peak, by formula", METRIC),
    Column("moved_bytes", "bytes", "read and written for one utterance, by formula", METRIC),
    Column(
        "bit_operations",
        "",
        "of one utterance, by formula: multiply-adds times the bits of both operands",
        METRIC,
    ),
    Column("peak_memory_bytes", "bytes", "measured: CUDA's peak, or the resident set", METRIC),
    # How it went
    Column("load_seconds", "s", "to load the model; null where it was in memory"),
    Column("calibration_split", "", "what static scales and smoothing are taken from"),
    Column("calibration_utterances", "utterances", "of it"),
    Column("calibrate_seconds", "s", "to hear them; null where their statistics were kept"),
    Column("smoothquant_alphas", "", "by submodule, as JSON", PARAMETER),
    Column("quantize_seconds", "s", "to smooth and round the weights"),
    Column(
        "rtfx", "s/s", "seconds of audio transcribed in a second; null where not all was computed", METRIC
    ),
    Column("audio_seconds", "s", "of the test set"),
    Column("features_seconds", "s", "of log-mel features; null where they were kept"),
    Column("encode_seconds", "s", "in the encoder"),
    Column("decode_seconds", "s", "in the decoder"),
    Column("reading_seconds", "s", "to read the words that were said and the reference's transcripts along"),
    Column("draft_acceptance", "fraction", "tokens of drafts that held", METRIC),
    Column("capped_transcripts", "utterances", "that were cut at max_new_tokens"),
    Column("cut_utterances", "utterances", "longer than the model's window"),
    Column("device", "", "it ran on", PARAMETER),
    Column("batch_size", "utterances", "decoded together", PARAMETER),
    Column("command", "", "what makes the point again"),
    *(
        Column(f"version_{name}", "", f"of {name.replace('_', '-')}", PARAMETER)
        for name in ("wq", "torch", "transformers", "datasets", "jiwer", "whisper_normalizer", "python")
    ),
    Column("cpu_capability", "", "vector instructions that torch uses on this processor", PARAMETER),
    Column("encoder_library", "", "by them: torch or onednn, if it runs in float32 on a CPU", PARAMETER),
)


def columns_of(*kinds: str) -> tuple[str, ...]:
    """The columns that are one of these in MLflow, in the declared order."""
    return tuple(column.name for column in COLUMNS if column.mlflow in kinds)


def undeclared(found: Iterable[str]) -> list[str]:
    """What a row has beyond the declared columns."""
    declared = {column.name for column in COLUMNS}
    return [name for name in found if name not in declared]
