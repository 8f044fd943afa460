"""Transcript tables beside audio files: manifests in JSON lines, and the tables that folders come with."""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wq import hub
from wq.study.speech.audio import SUFFIXES, DataError, Entry

Row = dict[str, Any]

# A folder's table: one of these names with one of the endings that TABLE_READERS knows
TABLES = ("transcripts", "metadata")
BRIEF = 60  # characters of a faulty value that an error quotes


@dataclass(frozen=True)
class Columns:
    """The columns, or keys, of the audio file and of the text: the first that a row has."""

    audio: tuple[str, ...] = ("audio_filepath", "file_name", "filename", "file", "path", "audio", "id")
    text: tuple[str, ...] = ("text", "transcription", "transcript", "sentence")

    def chosen(self, audio: str | None, text: str | None) -> "Columns":
        """These, or those that dataset.audio_column and dataset.text_column name."""
        return Columns((audio,) if audio else self.audio, (text,) if text else self.text)


MANIFEST = Columns(("audio_filepath",), ("text",))  # NeMo's schema
PLAIN = Columns(("file",), ("text",))


def folder_entries(folder: Path, columns: Columns, split: str | None = None) -> Iterator[Entry]:
    """The entries of a folder's transcript table, in the first layout that is found; with `split`, of the
    table in that subfolder, or else the rows of the folder's own whose audio lies in the subfolder.

    Raises:
        DataError: names the layouts that are read where there is none, file:line where a line is faulty.
    """
    place = folder / split if split else folder
    if table := _table(place):
        return TABLE_READERS[table.suffix](table, columns, None)
    librispeech = sorted(file for file in files_below(place) if file.name.endswith(".trans.txt"))
    if librispeech:
        return (entry for table in librispeech for entry in text_entries(table, columns))
    if split and (table := _table(folder)):
        return TABLE_READERS[table.suffix](table, columns, split)
    raise DataError(
        f"{place} has no transcript table; write transcripts or metadata with the ending .csv or .tsv "
        "(header: file_name, text), .jsonl (keys: audio_filepath, text) or .txt (each line: file text), or "
        "keep LibriSpeech's *.trans.txt (each line: id text)"
    )


def _table(folder: Path) -> Path | None:
    names = (folder / f"{name}{suffix}" for suffix in TABLE_READERS for name in TABLES)
    return next((table for table in names if table.is_file()), None)


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files in a folder and below it. Links to folders are followed, but for one to a folder that it lies
    in (`above`, with links resolved).

    Raises:
        DataError: a link leads nowhere, or a folder cannot be read.
    """
    above |= {os.path.realpath(folder)}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); restore or remove it") from error
    for path in paths:
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from files_below(path, above)
        elif path.exists():
            yield path
        else:
            raise DataError(f"{path} is a link that leads nowhere; restore what it names, or remove it")


def json_entries(file: Path, columns: Columns, within: str | None = None) -> Iterator[Entry]:
    """The lines of a manifest: an audio file, its text, and if they are there, duration and id."""
    return _entries(_json_rows(file), file, columns, within)


def csv_entries(file: Path, columns: Columns, within: str | None = None) -> Iterator[Entry]:
    """The rows of a table with a header."""
    return _entries(_csv_rows(file, columns), file, columns, within)


def text_entries(file: Path, columns: Columns, within: str | None = None) -> Iterator[Entry]:
    """Lines of a file name or id, white space, and the text, which may be empty."""
    rows = ((where, line.split(maxsplit=1)) for where, line in _lines(file))
    named = ((where, {"file": name, "text": "".join(text)}) for where, (name, *text) in rows)
    return _entries(named, file, PLAIN, within)


TABLE_READERS: dict[str, Callable[[Path, Columns, str | None], Iterator[Entry]]] = {
    ".csv": csv_entries,
    ".tsv": csv_entries,
    ".jsonl": json_entries,
    ".txt": text_entries,
}


def _json_rows(file: Path) -> Iterator[tuple[str, Row]]:
    for where, line in _lines(file):
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); each line is one JSON object") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is no JSON object; each line is one, with audio_filepath and text")
        if row.get("offset"):
            raise DataError(
                f"{where} has offset={_brief(row['offset'])}; segments are not read: cut the audio into files"
            )
        yield where, row


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    if twice := _repeated([key for key, _ in pairs]):
        raise ValueError(f"the key {twice} occurs twice")
    return dict(pairs)


def _csv_rows(file: Path, columns: Columns) -> Iterator[tuple[str, Row]]:
    """Each line is a row, as no reference has a line break: a quotation mark that is not closed on its line
    would swallow the rows up to the next one."""
    if file.suffix == ".tsv":
        # In the tab-separated tables of speech corpora a quotation mark is a part of the text
        dialect: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        remedy = "a text has no tab in it"
    else:
        dialect, remedy = {"strict": True}, "a text with a comma stands in quotation marks"
    header: list[str] = []
    for where, line in _lines(file):
        try:
            (cells,) = csv.reader([line], **dialect)
        except csv.Error as error:
            raise DataError(
                f"{where} is no row ({error}); close quotation marks on their line, double those within"
            ) from error
        if not header:
            header = [cell.strip() for cell in cells]
            if twice := _repeated(header):
                raise DataError(f"{where} has the column {twice} twice; rename or remove one")
            for needed in (columns.audio, columns.text):
                _cell(dict.fromkeys(header, ""), needed, where)
        elif len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        else:
            raise DataError(f"{where} has {len(cells)} fields and the header has {len(header)}; {remedy}")


def _repeated(names: list[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _entries(
    rows: Iterator[tuple[str, Row]], table: Path, columns: Columns, within: str | None
) -> Iterator[Entry]:
    """The rows' entries; with `within`, of those alone whose audio lies in this subfolder, one at least."""
    folder, found = table.parent, False
    for where, row in rows:
        name = _cell(row, columns.audio, where)
        if within and not Path(os.path.normpath(folder / name)).is_relative_to(folder / within):
            continue
        if not found:
            _tell_choice(table, row, columns)
        found = True
        yield _entry(row, name, _cell(row, columns.text, where), folder, where)
    if within and not found:
        raise DataError(f"{table} names no audio file in {within}/; add its rows, or a table in {within}/")


def _tell_choice(table: Path, row: Row, columns: Columns) -> None:
    """One line where a table has several columns that could be meant."""
    for setting, names in (("audio_column", columns.audio), ("text_column", columns.text)):
        taken, *others = [name for name in names if name in row and (name != "id")] or [""]
        if others:
            print(
                f"{table} has the columns {', '.join([taken, *others])}: {taken} is taken; "
                f"dataset.{setting}={others[0]} takes another",
                file=sys.stderr,
            )


def _entry(row: Row, name: str, text: str, folder: Path, where: str) -> Entry:
    if not name:
        raise DataError(f"{where} names no audio file; give its path")
    audio = _audio_file(folder, name, where)
    return Entry(
        id=_identifier(row.get("id"), where) or audio.stem,
        text=text.strip(),
        where=where,
        audio=str(audio),
        encoded=partial(_read_bytes, audio, where),
        duration=_seconds(row.get("duration"), where),
    )


def _cell(row: Row, columns: tuple[str, ...], where: str) -> str:
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
    path = hub.expanded(name)
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


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each with its place, file:line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if "\0" in line:
            raise DataError(f"{file}:{number} has a NUL character; save the table as UTF-8 text")
        if line.strip():
            yield f"{file}:{number}", line
