"""What a finished point leaves in its MLflow run, in the words that MLflow's pages filter, group and plot by.

Tags are what runs are grouped by, parameters every field of the spec and what it ran on, metrics the few
numbers that points are compared in. Everything else is in `result.json`, which every run carries.

All of that lies beside it as `run.json`, so that what a job could not bring into the store `wq sync` can.
"""

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wq.console import without_password
from wq.study.spec.config import Config, DatasetConfig
from wq.study.spec.spec import Spec
from wq.study.store.columns import METRIC, PARAMETER, TAG, columns_of
from wq.study.store.results import (
    ACCOUNTS,
    DIAGNOSIS,
    HYPOTHESES,
    RECORD,
    RESULT,
    Row,
    hypotheses,
    read_row,
    read_rows,
    write_row,
)
from wq.study.store.tracking import COMMAND, FINGERPRINT, RECORD_ID, Store, milliseconds, whereabouts

TABLE = "transcripts.json"  # the transcripts once more, as MLflow's pages show tables
SHOWN = ("id", "text", "pred_text", "errors", "words", "duration", "capped")

COUNTED = ("utterances", "reference_words", "dropped_references", "audio_seconds")  # of a test set

KINDS = {"hub": "hugging_face", "manifest": "local", "folder": "local"}  # MLflow's words for our sources


@dataclass(frozen=True)
class Record:
    """A run as the store has it. Times are in milliseconds since 1970.

    is_given   whether the store was named by tracking_uri=
    rerun      whether it was asked for beside earlier runs of its point
    files      those that lie beside this one
    """

    tracking_uri: str
    is_given: bool
    experiment: str
    name: str
    started: int
    ended: int
    rerun: bool
    tags: dict[str, str]
    parameters: dict[str, str]
    metrics: dict[str, float]
    test_set: Row
    files: list[str]


def tags(fingerprint: str, columns: Row) -> dict[str, str]:
    """columns: the spec as columns of a row."""
    return {FINGERPRINT: fingerprint} | {
        name: str(columns[name]) for name in columns_of(TAG) if name in columns
    }


def begin(fingerprint: str, columns: Row, command: str) -> dict[str, str]:
    """The tags of a run that begins in this process."""
    own = {RECORD_ID: uuid.uuid4().hex, COMMAND: command}
    return tags(fingerprint, columns) | own | whereabouts()


def describe(
    store: Store,
    tags: dict[str, str],
    started: int,
    spec: Spec,
    columns: Row,
    config: Config,
    row: Row,
) -> Record:
    """The record of a run that has just ended."""
    return Record(
        tracking_uri=without_password(store.uri),
        is_given=config.tracking_uri is not None,
        experiment=store.experiment,
        name=spec.point,
        started=started,
        ended=milliseconds(),
        rerun=config.rerun,
        tags=tags,
        parameters={name: str(value) for name, value in parameters(spec, columns, row).items()},
        metrics={name: row[name] for name in columns_of(METRIC) if row.get(name) is not None},
        test_set={
            "name": f"{spec.dataset.name} {spec.split}",
            "digest": spec.dataset.content_hash,
            "source": source(config.dataset),
            "counts": {name: row[name] for name in COUNTED if row.get(name) is not None},
        },
        files=[RESULT, HYPOTHESES, *diagnosis_of(spec), *([ACCOUNTS] if spec.is_reference else [])],
    )


def diagnosis_of(spec: Spec) -> tuple[str, ...]:
    """The files that a point leaves beside its results."""
    return DIAGNOSIS if spec.treatment.smoothing else ()


def keep(record: Record, directory: Path) -> None:
    write_row(directory / RECORD, asdict(record))


def read(directory: Path) -> Record:
    """Raises OSError where there is none, ValueError or TypeError where it is none."""
    return Record(**read_row(directory / RECORD))


def store_of(record: Record, uri: str | None = None, experiment: str | None = None) -> Store:
    """The store that a record is for, unless another is named: the job's own if that named one, else the
    environment's, else the job's."""
    known = record.tracking_uri if record.is_given else os.environ.get("MLFLOW_TRACKING_URI")
    return Store(uri or known or record.tracking_uri, experiment or record.experiment)


def write(store: Store, run_id: str, record: Record, directory: Path) -> None:
    """Bring a record and its files into a run. What is there already stays as it is, so that one who was
    killed here is followed by another."""
    with TemporaryDirectory() as place:
        table = Path(place) / TABLE
        write_table(hypotheses(directory), table)
        files = [directory / name for name in record.files]
        store.record(run_id, record.parameters, record.metrics, files, [table], record.ended)
    store.record_test_set(run_id, **record.test_set)


def parameters(spec: Spec, columns: Row, row: Row) -> Row:
    """The spec twice: every field of it under its dotted name, and the readable columns; then what the point
    ran on."""
    fields = dict(_flat(spec.settings))
    ran_on = {name: row[name] for name in columns_of(PARAMETER) if name in row}
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


def write_table(words: Path, table: Path) -> None:
    data = [[row.get(name) for name in SHOWN] for row in read_rows(words)]
    table.write_text(json.dumps({"columns": SHOWN, "data": data}, ensure_ascii=False), encoding="utf-8")
