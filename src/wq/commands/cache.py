"""What is kept between processes to save time: how much, where, and away with it."""

from collections.abc import Sequence

from wq import caches
from wq.caches import Entry
from wq.console import run_command

HELP = """usage: wq cache                 what is kept: kinds, entries, bytes, the place and its limit
       wq cache clear [KIND ...]   remove all of it, or these kinds; what a process is using stays

It lies in $WQ_CACHE, or else in ~/.cache/wq, and takes $WQ_CACHE_LIMIT gigabytes at most (5): the least
recently used entries go. What was removed is made anew where it is needed. Results are no cache: they are in
the store."""


def main() -> None:
    run_command(tell, HELP)


def tell(arguments: list[str]) -> None:
    most = caches.limit()
    if arguments[:1] == ["clear"]:
        clear(arguments[1:] or list(caches.KINDS))
        return
    if arguments:
        raise ValueError(
            f"wq cache {arguments[0]} is nothing it can do; give wq cache, or wq cache clear [KIND ...]"
        )
    known = {kind: list(caches.entries(kind)) for kind in caches.KINDS}
    print(f"{'kind':<13}{'entries':>8}{'MB':>10}  what")
    for kind, entries in known.items():
        print(f"{kind:<13}{len(entries):>8}{megabytes(entries):>10.2f}  {caches.KINDS[kind]}")
    kept = [entry for entries in known.values() for entry in entries]
    where = f"of {most / 1e6:.0f} ({caches.LIMIT}), in {caches.place()}"
    print(f"{'all':<13}{len(kept):>8}{megabytes(kept):>10.2f}  {where}")


def clear(kinds: list[str]) -> None:
    for kind in kinds:
        if kind not in caches.KINDS:
            raise ValueError(f"{kind} is no kind of cache; choose one of {', '.join(caches.KINDS)}")
    for kind in dict.fromkeys(kinds):
        known = list(caches.entries(kind))
        gone = [entry for entry in known if caches.remove(entry.path)]
        left = len(known) - len(gone)
        print(
            f"{kind}: {len(gone)} entries removed, {megabytes(gone):.2f} MB"
            + (f"; {left} stay, which are in use or cannot be removed" if left else "")
        )


def megabytes(entries: Sequence[Entry]) -> float:
    return sum(entry.bytes for entry in entries) / 1e6
