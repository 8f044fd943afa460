"""Locks between processes that share a directory: one of them does what all want done."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from wq.caches import NO_LOCKS


@contextmanager
def exclusive(folder: Path, key: str, name: str) -> Iterator[None]:
    """Nobody else has this key in this folder meanwhile: the fingerprint of a point, say. The operating
    system frees the lock of a process that dies, and over NFS the server does. Where a file system has no
    such locks nobody waits: a lock that is but a file would outlive its holder. The point may then be run
    twice, with equal results."""
    directory = folder / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / f"{key}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=2)
    except Timeout:
        print(f"{name}: waiting for another process that runs it", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{directory} has no locks ({error.strerror}): jobs may run a point twice", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()
