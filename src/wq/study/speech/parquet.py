"""Speech datasets on the hub, which keeps audio inside parquet files."""

import glob
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wq import hub
from wq.study.spec.config import DatasetConfig
from wq.study.speech.audio import DataError, Entry
from wq.study.speech.transcript_tables import files_below

if TYPE_CHECKING:
    from datasets import Dataset

CARD = "README.md"
# Words by which file names tell of a split
_SPLIT_NAMES = re.compile(r"(?<![a-z])(train|valid|dev|test|eval)", re.IGNORECASE)


def hub_entries(config: DatasetConfig, split: str) -> Iterator[Entry]:
    """The rows of one split of a dataset on the hub, fetched if need be, or in a local directory.

    Raises:
        DataError: it cannot be reached and is not cached, or lacks the config, split, column, audio or text.
    """
    directory = _local(config)
    audio_column, text_column = config.audio_column or "audio", config.text_column or "text"
    files = _local_files(directory, config, split) if directory else _fetch(config, split)
    rows = _rows(config, files, audio_column, text_column)
    for index, row in enumerate(cast("Iterator[dict[str, Any]]", rows)):
        where = f"{config.path} {split}, row {index}"
        if not _encoded(row[audio_column], directory) or not isinstance(row[text_column], str):
            raise DataError(f"{where} lacks audio or text; choose other columns, or dataset=manifest")
        yield Entry(
            id=str(row[config.id_column]) if config.id_column else f"{index:06d}",
            text=row[text_column].strip(),
            where=where,
            audio=where,
            encoded=partial(_bytes, rows, index, audio_column, directory),
        )


def _rows(config: DatasetConfig, files: list[Path], audio_column: str, text_column: str) -> "Dataset":
    """The rows of parquet files, memory-mapped, with audio as it is encoded."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = cast(
            "Dataset",
            datasets.load_dataset(
                "parquet", data_files={"rows": [str(file) for file in files]}, split="rows"
            ),
        )
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(
            f"dataset.path={config.path}: its parquet files cannot be read ({reason}); "
            "restore them, or remove the dataset from the cache (HF_HOME) and run the command again"
        ) from error
    columns = {"audio_column": audio_column, "text_column": text_column, "id_column": config.id_column}
    for key, column in columns.items():
        if column is not None and column not in rows.column_names:
            known = ", ".join(rows.column_names)
            raise DataError(f"dataset.{key}={column} is no column of {config.path}; columns there: {known}")
    feature = rows.features[audio_column]
    if not isinstance(feature, datasets.Audio) and not (isinstance(feature, dict) and "bytes" in feature):
        raise DataError(
            f"dataset.audio_column={audio_column} of {config.path} holds no audio; choose another"
        )
    # Decoding by `datasets` needs torchcodec, which does not import beside a CPU build of torch
    chosen = list(dict.fromkeys(column for column in columns.values() if column is not None))
    return rows.select_columns(chosen).cast_column(audio_column, datasets.Audio(decode=False))


def _bytes(rows: "Dataset", index: int, column: str, directory: Path | None) -> bytes:
    return _encoded(rows[index][column], directory)


def _encoded(audio: dict[str, Any] | None, directory: Path | None) -> bytes:
    """The audio in a row, or in the file that a row of a local directory names; empty where there is none."""
    if audio and audio["bytes"]:
        return audio["bytes"]
    file = directory / audio["path"] if directory and audio and audio["path"] else None
    return file.read_bytes() if file and file.is_file() else b""


def _local(config: DatasetConfig) -> Path | None:
    path = hub.expanded(config.path)
    return path if path.is_dir() else None


def _local_files(directory: Path, config: DatasetConfig, split: str) -> list[Path]:
    """The parquet files of one split in a local directory. Files whose names tell of no split are
    `config.split`, whatever it is called."""
    names = [file.relative_to(directory).as_posix() for file in files_below(directory)]
    files = [name for name in names if name.endswith(".parquet")]
    if files and split == config.split and not config.config and not any(map(_SPLIT_NAMES.search, files)):
        chosen = files
    else:
        chosen = _of_split(files, directory / CARD, config, split)
    return [directory / name for name in chosen]


def split_files(config: DatasetConfig, split: str) -> tuple[str, list[str]]:
    """The commit of a dataset, and the parquet files of one split in it. Fetches no more than the card.

    Raises:
        HubError: the hub cannot be reached and the cache does not help, or has no such dataset.
        DataError: the dataset has no such config or split, or no parquet files for it.
    """
    snapshot = hub.fetch(config.path, "dataset", config.revision, [CARD])
    files = [file for file in hub.files(config.path, "dataset", snapshot) if file.endswith(".parquet")]
    return snapshot.name, _of_split(files, snapshot / CARD, config, split)


def _of_split(files: list[str], card: Path, config: DatasetConfig, split: str) -> list[str]:
    """Those of a dataset's parquet files that hold one split. DataError where there are none."""
    splits = _declared_splits(card, config)
    options = [splits.get(split, [])] if splits else _usual_patterns(config.config, split)
    matches = ([file for file in files if _matches(file, patterns)] for patterns in options)
    chosen = next((match for match in matches if match), None)
    if not chosen:
        known = ", ".join(splits or files[:8]) or "none; it may have a dataset.revision=refs/convert/parquet"
        raise DataError(
            f"dataset.path={config.path} has no parquet files for dataset.config={config.config} and "
            f"split {split}; there are: {known}"
        )
    return chosen


def _fetch(config: DatasetConfig, split: str) -> list[Path]:
    """The local parquet files of one split, and of no other: `load_dataset` with a hub id fetches every split
    of the config, thirty gigabytes for the 346 MB of LibriSpeech's test-clean."""
    try:
        commit, files = split_files(config, split)
        snapshot = hub.fetch(config.path, "dataset", commit, [glob.escape(file) for file in files])
    except hub.HubError as error:
        raise DataError(str(error)) from error
    return [snapshot / file for file in files]


def _declared_splits(card: Path, config: DatasetConfig) -> dict[str, list[str]]:
    """Patterns of every split's files, as the repository's card declares them; empty where it does not."""
    from huggingface_hub import DatasetCard

    if not card.is_file():
        return {}
    declared = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs") or []
    configs = {str(each["config_name"]): each for each in declared if each.get("data_files")}
    if not configs:
        return {}
    default = next((name for name, each in configs.items() if each.get("default") or name == "default"), None)
    name = config.config or default or (next(iter(configs)) if len(configs) == 1 else None)
    if name not in configs:
        raise DataError(
            f"dataset.config={config.config} is none of {config.path}; configs there: {', '.join(configs)}"
        )
    files = configs[name]["data_files"]
    splits: dict[str, list[str]] = {}
    for each in files if isinstance(files, list) else [files]:
        one = each if isinstance(each, dict) else {"split": "train", "path": each}
        paths = one["path"] if isinstance(one["path"], list) else [one["path"]]
        splits.setdefault(str(one["split"]), []).extend(paths)
    return splits


def _usual_patterns(config: str | None, split: str) -> list[list[str]]:
    """Where a split's files lie when no card says so, as in the hub's own conversion to parquet (the revision
    refs/convert/parquet: CONFIG/SPLIT/0000.parquet)."""
    folders = [f"{config}/", f"*/{config}/"] if config else ["default/", "data/", ""]
    return [
        [f"{folder}{split}{rest}"] for folder in folders for rest in ("/*.parquet", "-*.parquet", ".parquet")
    ]


def _matches(file: str, patterns: list[str]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)
