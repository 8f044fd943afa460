"""Transcript tables beside audio files: manifests in JSON lines, and the tables that folders come with."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from wq.study.speech.audio import SUFFIXES, DataError, Entry

# A folder's table: one of these names with one of the endings that TABLE_READERS knows
TABLES = ("transcripts", "metadata")
FILE_COLUMNS = ("audio_filepath", "file_name", "filename", "file", "path", "audio", "id")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
BRIEF = 60  # characters of a faulty value that an error quotes


def manifest_entries(file: Path) -> Iterator[Entry]:
    """The lines of a manifest in NeMo's schema: audio_filepath, text, and if they are there, duration and id.

    Raises:
        DataError: names file:line.
    """
    return json_entries(file, ("audio_filepath",), ("text",))


def folder_entries(folder: Path) -> Iterator[Entry]:
    """The entries of a folder's transcript table, in the first layout that is found.

    Raises:
        DataError: names the layouts that are read where there is none, file:line where a line is faulty.
    """
    for suffix, reader in TABLE_READERS.items():
        for name in TABLES:
            table = folder / f"{name}{suffix}"
            if table.is_file():
                return reader(table)
    librispeech = sorted(folder.rglob("*.trans.txt"))
    if librispeech:
        return (entry for table in librispeech for entry in text_entries(table))
    raise DataError(
        f"{folder} has no transcript table; write transcripts or metadata with the ending .csv or .tsv "
        "(header: file_name, text), .jsonl (keys: audio_filepath, text) or .txt (each line: file text), or "
        "keep LibriSpeech's *.trans.txt (each line: id text)"
    )


def json_entries(
    file: Path, file_columns: tuple[str, ...] = FILE_COLUMNS, text_columns: tuple[str, ...] = TEXT_COLUMNS
) -> Iterator[Entry]:
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({error}); each line is one JSON object") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is no JSON object; each line is one, with audio_filepath and text")
        if row.get("offset"):
            raise DataError(
                f"{where} has offset={_brief(row['offset'])}; segments are not read: cut the audio into files"
            )
        yield _entry(row, file, where, file_columns, text_columns)


def csv_entries(file: Path) -> Iterator[Entry]:
    # In the tab-separated tables of speech corpora a quotation mark is a part of the text
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), **dialect)
    for row in reader:
        yield _entry(row, file, f"{file}:{reader.line_num}", FILE_COLUMNS, TEXT_COLUMNS)


def text_entries(file: Path) -> Iterator[Entry]:
    """Lines of a file name or id, white space, and the text, which may be empty."""
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if line.strip():
            name, *text = line.split(maxsplit=1)
            yield _entry(
                {"file": name, "text": "".join(text)}, file, f"{file}:{number}", ("file",), ("text",)
            )


TABLE_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".csv": csv_entries,
    ".tsv": csv_entries,
    ".jsonl": json_entries,
    ".txt": text_entries,
}


def _entry(
    row: dict[str, Any], table: Path, where: str, file_columns: tuple[str, ...], text_columns: tuple[str, ...]
) -> Entry:
    name = _cell(row, file_columns, where)
    text = _cell(row, text_columns, where)
    if not name:
        raise DataError(f"{where} names no audio file; give its path")
    audio = _audio_file(table.parent, name, where)
    return Entry(
        id=_identifier(row.get("id"), where) or audio.stem,
        text=text.strip(),
        where=where,
        audio=str(audio),
        encoded=partial(_read_bytes, audio, where),
        duration=_seconds(row.get("duration"), where),
    )


def _cell(row: dict[str, Any], columns: tuple[str, ...], where: str) -> str:
    column = next((column for column in columns if column in row), None)
    if column is None:
        raise DataError(
            f"{where} lacks {' or '.join(columns)}; every utterance has an audio file and its text"
        )
    if not isinstance(row[column], str):
        raise DataError(f"{where} has {column}={_brief(row[column])}; it must be a string")
    return _encodable(row[column], column, where)


def _identifier(value: Any, where: str) -> str:
    """An id as it is given, which may be the number 0; empty where none is."""
    return "" if value is None else _encodable(str(value), "id", where)


def _encodable(text: str, column: str, where: str) -> str:
    """The text. JSON can spell halves of characters, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has the lone surrogate {ascii(text[error.start])[1:-1]} in {column}; "
            "it is half of a character: export the line anew, or remove it"
        ) from error
    return text


def _brief(value: Any) -> str:
    """A value as an error shows it: in one line of a readable length."""
    text = repr(value)
    return text if len(text) <= BRIEF else f"{text[:BRIEF]}..."


def _seconds(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = 0.0
    if not seconds > 0:
        raise DataError(f"{where} has duration={_brief(value)}; give seconds above 0, or leave it out")
    return seconds


def _audio_file(directory: Path, name: str, where: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_absolute():
        # Judged by its spelling: a link that somebody put into the directory may lead where it likes
        if Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
            raise DataError(
                f"{where}: {name} leads out of {directory}; give a path inside it, or an absolute path"
            )
        path = directory / path
    if path.suffix.lower() not in SUFFIXES:  # an id, whose file has an ending
        path = next(
            (file for suffix in SUFFIXES if (file := Path(f"{path}{suffix}")).is_file()),
            path,
        )
    if not path.is_file():
        raise DataError(f"{where}: audio file {path} does not exist; restore it or remove the line")
    return path


def _read_bytes(file: Path, where: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: {file} cannot be read ({error.strerror}); restore it") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
