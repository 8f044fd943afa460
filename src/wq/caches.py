"""What takes time to make and is kept between processes: files by what they were made from.

An entry is one file, PLACE/KIND/KEY.CHECKSUM: the key says what it was made from, the checksum what it
holds. It appears at once, so whole, whoever else makes it too. Who reads it holds a shared lock
meanwhile, and nobody removes what is locked. All entries together stay below a limit: the least recently used
ones go. A cache that is not there, cannot be written or was damaged costs time, and nothing else.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory

# What is kept, and what it was made from
KINDS = {
    "calibration": "statistics of calibration speech, by model, speech, smoothing and decoding",
    "kernels": "compiled code, by source, compiler and processor",
}

PLACE, LIMIT = "WQ_CACHE", "WQ_CACHE_LIMIT"
DEFAULT_LIMIT = 5.0  # gigabytes; the largest entry there is, the calibration of large-v3, takes 1.6
ENTRY = re.compile(r"\w+\.[0-9a-f]{32}")  # the names of what is kept here: a key and a checksum
UNFINISHED = ".wq-"
ABANDONED = 3600.0  # seconds after which nobody is writing an entry any more
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # a file system without them


class CacheError(ValueError):
    """A setting of the cache that cannot be: one line that names it, the rule and the remedy."""


@dataclass(frozen=True)
class Entry:
    """A file of the cache: its bytes, and when it was last used, in seconds since 1970."""

    path: Path
    bytes: int
    used: float


def digest(content: Mapping[str, object]) -> str:
    """The key of what is made from these, and from nothing else."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def place() -> Path:
    """$WQ_CACHE, or else the user's cache directory. Raises OSError where there is neither."""
    own = os.environ.get(PLACE)
    if own:
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wq"
    except RuntimeError as error:
        raise FileNotFoundError(
            errno.ENOENT, f"there is no home directory; {PLACE}=DIRECTORY gives a place"
        ) from error


def limit() -> int:
    """In bytes. Raises CacheError."""
    given = os.environ.get(LIMIT) or DEFAULT_LIMIT
    try:
        size = float(given)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise CacheError(f"{LIMIT}={given} is no number of gigabytes; give one, such as {DEFAULT_LIMIT:g}")
    return int(size * 1e9)


def open_kept(kind: str, key: str) -> BufferedReader | None:
    """The file that is kept for this key, open, and locked until it is closed; None where there is none.
    Its `name` is its path."""
    try:
        candidates = sorted((place() / kind).glob(f"{key}.*"))
    except OSError:
        return None
    for path in candidates:
        try:
            file = path.open("rb")
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            _tell(f"{path} cannot be read ({error.strerror}); it is made anew")
            continue
        _lock(file, fcntl.LOCK_SH)
        is_there = _is_at(file, path)
        if is_there and _checksum(file) == path.suffix[1:]:
            with suppress(OSError):  # one that may only be read
                os.utime(path)
            return file
        file.close()
        if is_there:
            _tell(f"{path} is corrupt; it is made anew")
            remove(path)
    return None


def keep(kind: str, key: str, save: Callable[[Path], object]) -> None:
    """Keep what `save` writes to the path that it is given."""
    most = limit()
    folder = None
    try:
        folder = place() / kind
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=UNFINISHED) as directory:
            written = Path(directory) / key
            save(written)
            if written.stat().st_size <= most:
                with written.open("rb") as file:
                    checksum = _checksum(file)
                _put(written, folder / f"{key}.{checksum}")
    except OSError as error:
        _tell(
            f"{folder or 'the cache'} cannot be written ({error.strerror or error}); what is made is not kept"
        )
        return
    prune(most)


def prune(most: int) -> None:
    """Remove the least recently used entries until all together have so many bytes at most."""
    known = sorted((entry for kind in KINDS for entry in entries(kind)), key=lambda entry: entry.used)
    excess = sum(entry.bytes for entry in known) - most
    for entry in known:
        if excess <= 0:
            return
        excess -= entry.bytes * remove(entry.path)


def entries(kind: str) -> Iterator[Entry]:
    """What is kept of a kind. Sweeps up after those who were killed while they wrote."""
    try:
        paths = list((place() / kind).iterdir())
    except OSError:
        return
    for path in paths:
        with suppress(OSError):  # removed meanwhile
            status = path.stat()
            if ENTRY.fullmatch(path.name):  # anything else is somebody's own
                yield Entry(path, status.st_size, status.st_mtime)
            elif path.name.startswith(UNFINISHED) and time.time() - status.st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> bool:
    """Whether the entry is gone: not where somebody uses it."""
    try:
        with path.open("rb") as file:
            if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if _is_at(file, path):  # and not another that was put there meanwhile
                    path.unlink()
                return True
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _put(written: Path, path: Path) -> None:
    """At once and whole, and never in the place of another, which somebody may be using."""
    try:
        os.link(written, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        written.replace(path)


def _is_at(file: BufferedReader, path: Path) -> bool:
    """Whether this is what lies there now: what is open may have been removed."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _lock(file: BufferedReader, how: int) -> bool:
    """Whether nobody else keeps us from it."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        return error.errno in NO_LOCKS
    return True


def _checksum(file: BufferedReader) -> str:
    checksum = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    file.seek(0)
    return checksum


@cache
def _tell(line: str) -> None:
    """Once in a process."""
    print(line, file=sys.stderr)
