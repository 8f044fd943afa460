"""What the points of a process need not compute again: features of a test set, and states of an encoder.

Both are kept only for points that are still to come, which the launchers tell, and never change a result.
Times are not measured where they are used.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from wq.processes import PROCESSES
from wq.study.job.job import Job, prepare
from wq.study.spec.config import Config
from wq.study.spec.spec import Spec

if TYPE_CHECKING:
    from wq.whisper.decoding.row_cache import CachedRows, RowCaches

MEGABYTE = 1_000_000


def encoder_spec(spec: Spec) -> Spec:
    """What of a spec the encoder's states depend on: specs whose encoder specs have one fingerprint have the
    same states, to the last bit.

    Whatever is not left out here counts, so that a new setting is safe before it is looked at.
    """
    heard = spec.treated(spec.treatment.of_encoder())
    if not spec.treatment.is_searched:  # or the alphas follow from what the decoder has read and written
        heard = replace(heard, decoding_language=None, max_new_tokens=None)
    return replace(heard, split="", language="", seed=0, resamples=0, normaliser="")


class Reads(NamedTuple):
    """Which features and which states a point reads."""

    features: str
    states: str


def reads(spec: Spec) -> Reads:
    features, states = (encoder_spec(each).fingerprint for each in (spec.reference(), spec))
    return Reads(f"features {features}", f"states {states}")


def plan(points: Mapping[int, Config]) -> tuple[list[int], dict[str, Reads]]:
    """The points of a grid in an order in which little need be kept, those that read the same states one
    after the other; and what they read, by fingerprint."""
    found: dict[int, Reads] = {}
    coming: dict[str, Reads] = {}
    for number, config in points.items():
        with suppress(Exception):  # whatever is wrong, the job will say it
            spec = prepare(replace(config, device="cpu"), [], looks_only=True).spec
            coming[spec.fingerprint] = found[number] = reads(spec)
    first: dict[object, int] = {}
    return sorted(points, key=lambda number: first.setdefault(found.get(number, number), number)), coming


class Reuse:
    """What this process keeps, and for whom: `coming` says by fingerprint what the points to come read."""

    def __init__(self) -> None:
        self.caches: RowCaches | None = None
        self.coming: dict[str, Reads] = {}

    def expect(self, spec: Spec) -> None:
        self.coming[spec.fingerprint] = reads(spec)

    def passed(self, spec: Spec) -> None:
        """The point is running, or has its results: nothing need be kept for it any more."""
        self.coming.pop(spec.fingerprint, None)

    def rows_for(self, job: Job) -> "CachedRows | None":
        """What is there for a job, and what it shall leave; everything that nobody will ask for goes."""
        config = job.config
        if not config.reuse:
            return None
        from wq.whisper.decoding.row_cache import (  # torch; who but plans a grid needs none
            CachedRows,
            RowCaches,
        )

        # On a GPU the last bits of a row may depend on the other rows of its batch
        place = (config.device, None if config.device == "cpu" else config.batch_size)
        wanted = {(key, place) for each in self.coming.values() for key in each}
        own = [(key, place) for key in reads(job.spec)]
        memory = config.reuse_limit * MEGABYTE // int(os.environ.get(PROCESSES, "1"))
        self.caches = caches = self.caches or RowCaches(memory)
        caches.memory = memory
        caches.clear_all_but(wanted.union(own))
        useful = wanted | caches.by_key.keys()
        return CachedRows(caches, *(caches.of(key) if key in useful else None for key in own))


here = Reuse()
