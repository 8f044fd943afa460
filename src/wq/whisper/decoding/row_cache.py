"""Rows of tensors kept for later: in memory up to a limit, beyond it in temporary files.

The files have no name: the operating system takes them away with the process, however it ends.
"""

import shutil
import tempfile
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import IO, NamedTuple

import torch
from torch import Tensor

# Of what is free where temporary files lie ($TMPDIR): the rest is for others
DISK_SHARE = 0.5


class Spilled(NamedTuple):
    """Where a row lies in its cache's file, and what it is."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass
class RowCache:
    """Rows by the number of their utterance, each with the samples of the utterance's audio."""

    rows: dict[int, Tensor | Spilled] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    file: IO[bytes] | None = None
    in_memory: int = 0
    on_disk: int = 0

    def holds(self, indices: Sequence[int]) -> bool:
        return all(index in self.rows for index in indices)

    def read(self, index: int) -> Tensor:
        """The row as it was kept, on the CPU. Raises OSError where its file cannot be read back."""
        row = self.rows[index]
        if isinstance(row, Tensor):
            return row
        assert self.file is not None
        read = torch.empty(row.shape, dtype=row.dtype)
        self.file.seek(row.offset)
        if self.file.readinto(_bytes_of(read)) != read.nbytes:  # type: ignore[attr-defined]
            raise OSError("a temporary file of kept results is cut off; reuse=false does without")
        return read

    def spill(self, index: int, row: Tensor) -> None:
        """Raises OSError where there is no room, or no place for temporary files."""
        if self.file is None:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  for `clear` to close
        self.file.seek(self.on_disk)
        if self.file.write(_bytes_of(row)) != row.nbytes:
            raise OSError("no space left")
        self.rows[index] = Spilled(self.on_disk, row.shape, row.dtype)
        self.on_disk += row.nbytes

    def clear(self) -> None:
        if self.file is not None:
            self.file.close()
        self.rows, self.samples, self.file, self.in_memory, self.on_disk = {}, {}, None, 0, 0


def _bytes_of(row: Tensor) -> memoryview:
    return memoryview(row.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


class RowCaches:
    """Row caches by key, the one that was asked for last at the end.

    memory   bytes of all their rows together; what comes beyond goes to files
    disk     bytes of those files; None is half of what is free there. Beyond, the cache whose use is longest
             ago is cleared, and where there is no other nothing more is kept
    """

    def __init__(self, memory: int, disk: int | None = None) -> None:
        self.memory, self.disk = memory, disk
        self.by_key: dict[Hashable, RowCache] = {}

    def of(self, key: Hashable) -> RowCache:
        self.by_key[key] = self.by_key.pop(key, None) or RowCache()
        return self.by_key[key]

    @property
    def in_memory(self) -> int:
        return sum(cache.in_memory for cache in self.by_key.values())

    @property
    def on_disk(self) -> int:
        return sum(cache.on_disk for cache in self.by_key.values())

    def keep(self, cache: RowCache, index: int, row: Tensor, samples: int) -> None:
        """Put a copy of the row in the cache, if there is room for it."""
        if index in cache.rows:
            return
        row = row.detach().to("cpu", copy=True).contiguous()
        while not self._has_room(cache, index, row):
            oldest = next(
                (key for key, other in self.by_key.items() if other is not cache and other.rows), None
            )
            if oldest is None:
                return
            self.by_key.pop(oldest).clear()
        cache.samples[index] = samples

    def _has_room(self, cache: RowCache, index: int, row: Tensor) -> bool:
        """Whether the row is now in the cache."""
        if self.in_memory + row.nbytes <= self.memory:
            cache.rows[index] = row
            cache.in_memory += row.nbytes
            return True
        if self.on_disk + row.nbytes > self._disk_limit():
            return False
        try:
            cache.spill(index, row)
        except OSError:  # full, or not to be written to: what is not kept is computed again
            self.disk = self.on_disk
            return False
        return True

    def _disk_limit(self) -> float:
        if self.disk is not None:
            return self.disk
        try:
            free = shutil.disk_usage(tempfile.gettempdir()).free
        except OSError:
            return 0
        return DISK_SHARE * (free + self.on_disk)

    def clear_all_but(self, keys: Collection[Hashable]) -> None:
        for key in self.by_key.keys() - keys:
            self.by_key.pop(key).clear()


@dataclass(frozen=True)
class CachedRows:
    """What earlier transcriptions of the same utterances have left and this one may use, and leaves for later
    ones; None is not to be kept.

    features   log-mel features, of a feature extractor like this one
    states     the states of an encoder that gives the very same ones
    """

    caches: RowCaches
    features: RowCache | None = None
    states: RowCache | None = None
