"""What a finished point leaves in its MLflow run, in the words that MLflow's pages filter, group and plot by.

Tags are what runs are grouped by, parameters every field of the spec and what it ran on, metrics the few
numbers that points are compared in. Everything else is in `result.json`, which every run carries.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wq.study.config import DatasetConfig
from wq.study.results import DIAGNOSIS, RESULT, TRANSCRIPTS, Row, read_rows, write_whole
from wq.study.spec import Spec
from wq.study.tracking import COMMAND, FINGERPRINT, Store

# The names are those of result.json and results.csv.
METRICS = (
    "wer", "wer_ci_low", "wer_ci_high", "wer_delta", "wer_delta_ci_low", "wer_delta_ci_high", "wer_delta_p",
    "wer_delta_mapsswe_p", "cer", "substitution_rate", "deletion_rate", "insertion_rate",
    "hallucinated_words", "empty_hypotheses", "repetition_loops", "no_worse", "unchanged",
    "linear_bytes", "model_bytes", "bits_per_weight", "compression_ratio", "kv_cache_bytes", "memory_bytes",
    "moved_bytes", "peak_memory_bytes", "rtfx",
)  # fmt: skip

TAGGED = (
    "point", "model", "format", "granularity", "group", "activation", "kv_cache", "smoothquant", "roles",
    "dataset", "split",
)  # fmt: skip

# Parameters beside the spec and the versions
SURROUNDINGS = ("device", "batch_size", "reference", "smoothquant_alphas")

TABLE = "transcripts.json"  # the transcripts once more, as MLflow's pages show tables
SHOWN = ("id", "text", "pred_text", "errors", "words", "duration", "capped")

COUNTED = ("utterances", "reference_words", "dropped_references", "audio_seconds")  # of a test set

KINDS = {"hub": "hugging_face", "manifest": "local", "folder": "local"}  # MLflow's words for our sources


def tags(fingerprint: str, columns: Row) -> dict[str, str]:
    """columns: the spec as columns of a row."""
    return {FINGERPRINT: fingerprint} | {name: str(columns[name]) for name in TAGGED if name in columns}


def record(
    store: Store, run_id: str, spec: Spec, columns: Row, dataset: DatasetConfig, row: Row, directory: Path
) -> None:
    """Write a point into its run: its numbers, and the files that lie in its directory."""
    metrics = {name: row[name] for name in METRICS if row.get(name) is not None}
    table = directory / TABLE
    write_table(directory / TRANSCRIPTS, table)
    diagnosis = [directory / name for name in DIAGNOSIS if spec.smoothquant]
    files = [directory / RESULT, directory / TRANSCRIPTS, *diagnosis]
    store.record(run_id, parameters(spec, columns, row), metrics, files, [table])
    table.unlink()
    store.client.set_tag(run_id, COMMAND, row["command"])
    store.record_test_set(
        run_id,
        f"{spec.dataset.name} {spec.split}",
        spec.dataset.content_hash,
        source(dataset),
        {name: row[name] for name in COUNTED if row.get(name) is not None},
    )


def parameters(spec: Spec, columns: Row, row: Row) -> Row:
    """The spec twice: every field of it under its dotted name, and the readable columns; then what the point
    ran on."""
    fields = dict(_flat(asdict(spec)))
    ran_on = {name: row[name] for name in row if name in SURROUNDINGS or name.startswith("version_")}
    return fields | columns | ran_on


def _flat(settings: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names; of several parts, such as quantizers of encoder and decoder, they are numbered."""
    for name, value in settings.items():
        parts = [_fields(part) for part in value] if type(value) in (list, tuple) else [_fields(value)]
        if not parts or None in parts:
            yield prefix + name, "+".join(map(str, value)) if isinstance(value, list | tuple) else value
            continue
        for n, part in enumerate(parts):
            yield from _flat(part or {}, f"{prefix}{name}.{n}." if len(parts) > 1 else f"{prefix}{name}.")


def _fields(value: Any) -> Row | None:
    """What a dictionary or a named tuple holds."""
    return value._asdict() if hasattr(value, "_asdict") else value if isinstance(value, dict) else None


def source(dataset: DatasetConfig) -> Row:
    """Where a test set comes from, as MLflow describes such places."""
    kind = KINDS[dataset.source]
    if kind == "local":
        return {"type": kind, "uri": dataset.path}
    place = {"path": dataset.path, "config_name": dataset.config, "revision": dataset.revision}
    return {"type": kind, **place, "split": dataset.split, "data_dir": None, "data_files": None}


def write_table(transcripts: Path, table: Path) -> None:
    data = [[row.get(name) for name in SHOWN] for row in read_rows(transcripts)]
    write_whole(table, json.dumps({"columns": SHOWN, "data": data}, ensure_ascii=False))
