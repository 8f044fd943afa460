"""The files that wq writes: whole or not at all, and never in the place of a file that it did not write.

A directory that wq writes into gets a list of what was written there, `.wq.sha256`, in the form of sha256sum.
A file is wq's own while its content is in that list. Whatever else has a name that wq wants, a link too,
belongs to somebody: it is left alone, and said.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from wq import hub

LIST = ".wq.sha256"
HEADER = "# Files that wq wrote here, and may replace: see sha256sum"


class OutputError(ValueError):
    """A place that wq does not write to: one line that names it, the reason and the remedy."""


def write(path: Path, content: str | bytes) -> None:
    """Write a file, in the place of nothing or of one that wq wrote.

    Raises OutputError.
    """
    refuse_foreign([path])
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    _list(path, hashlib.sha256(content).hexdigest())  # before: who is killed in between leaves an own file
    write_whole(path, content)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically, whatever was there: a reader sees the old one, or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".wq-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def remove(paths: Iterable[Path]) -> None:
    """Remove those of these files that wq wrote."""
    for path in paths:
        if is_own(path):
            path.unlink(missing_ok=True)


def claim(paths: Iterable[Path]) -> None:
    """Take those of these files that are there for wq's own: a library has just written them for it."""
    for path in paths:
        if path.is_file() and not is_own(path):
            _list(path, _digest(path))


def refuse_foreign(paths: Iterable[Path]) -> None:
    """Raises OutputError for the first of these files that is there and that wq did not write."""
    for path in paths:
        if _whose(path) == "somebody's":
            raise OutputError(
                f"{path} is in the way: wq did not write it, or it was changed since; move it, or give "
                "another directory"
            )


def is_own(path: Path) -> bool:
    """Whether wq wrote this file, and nobody has changed it."""
    return _whose(path) == "wq's"


def _whose(path: Path) -> str:
    """wq's, somebody's, or nobody's where nothing is there: another wq may just be writing or removing it."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "somebody's"
        found = _digest(path)
    except (FileNotFoundError, NotADirectoryError):
        return "nobody's"
    # The list is read after the file: whoever writes lists first what comes
    entries = (line.partition("  ") for line in _listed(path.parent))
    is_listed = any(digest == found and name == path.name for digest, _, name in entries)
    return "wq's" if is_listed else "somebody's"


def refuse_inside(place: Path, key: str, sources: Mapping[str, str | None]) -> None:
    """Refuse to write where a data set or a model is read from: their files and wq's would mix.

    Below the directory where the command is typed wq writes by default, so that a source may be that one, or
    one above it; then what is written to is neither itself nor what somebody else has filled.

    key       the setting that chooses the place
    sources   the paths of data sets and models by their settings; those that are no local directories do not
              matter

    Raises OutputError.
    """
    place, here = place.resolve(), Path.cwd().resolve()
    for setting, value in sources.items():
        source = hub.expanded(value or "").resolve()
        if not value or not source.is_dir() or not place.is_relative_to(source):
            continue
        if not here.is_relative_to(source) or place == source or _is_filled(place):
            raise OutputError(
                f"{key}={place} is in the directory of {setting}={value}, where outputs would mix with what "
                f"is read; give another {key}="
            )


def _is_filled(place: Path) -> bool:
    """Whether somebody else keeps something there."""
    return place.is_dir() and not _listed(place) and any(place.iterdir())


def _listed(directory: Path) -> list[str]:
    """The lines of a directory's list; none where there is no list, or somebody else's file of its name."""
    place = directory / LIST
    if place.is_symlink() or not place.is_file():
        return []
    lines = place.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return lines if lines[0] == HEADER else []


def _list(path: Path, digest: str) -> None:
    """Add a line to the list of the file's directory, at once, so that writers do not disturb one another.

    Raises OutputError where something else has its name.
    """
    place = path.parent / LIST
    begins = not os.path.lexists(place) or not place.lstat().st_size  # another may just have begun it
    if not begins and not _listed(path.parent):
        raise OutputError(f"{place} is in the way: it is no list of wq's; move it, or give another directory")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(place, flags, 0o666), "wb") as file:
        file.write(os.fsencode(f"{HEADER}\n" * begins + f"{digest}  {path.name}\n"))
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
