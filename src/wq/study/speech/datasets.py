"""Speech with its reference transcripts, from a manifest, a folder of audio files or the hub.

Loading passes once over the encoded audio, which gives every utterance its duration and its digest
(SHA-256): a missing, empty or unreadable file is found before any model is loaded, and a dataset is known by
its content. LibriSpeech's test-clean, 346 MB, takes a few seconds. Samples are decoded on demand, and at
loading only where a header is wrong about them.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from wq import hub
from wq.study.spec.config import DatasetConfig
from wq.study.speech.audio import DataError, Entry, decode, measure
from wq.study.speech.parquet import hub_entries
from wq.study.speech.transcript_tables import MANIFEST, Columns, folder_entries, json_entries

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DataError", "Speech", "Utterance", "load_speech"]

# Seconds by which a stated duration may be off; beyond, the file is cut off or is another recording
DURATION_TOLERANCE = 0.5
# Seconds that may be missing of it untold
SHORT = 0.1
# The loudness of the mean of several channels, as a share of theirs, below which they cancel each other out
CANCELLED = 0.1

# How utterances get ids of their own, for the values of dataset.source
OWN_IDS = {
    "manifest": "give each line its own in the key id",
    "folder": "give each row its own in a column (or key) id, or rename the files",
    "hub": "choose another dataset.id_column, or null, which numbers the rows",
}


@dataclass(frozen=True)
class Utterance:
    """A recording and what was said in it: `duration` in seconds, `digest` the encoded audio's SHA-256."""

    entry: Entry
    duration: float
    digest: str

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def text(self) -> str:
        return self.entry.text


@dataclass
class Speech:
    """Utterances in the dataset's order.

    `resampled` and `mixed_down` hold the indices of those of which this had to be done when they were read,
    `cancelled` of those whose channels cancelled each other out.
    """

    name: str
    split: str
    language: str
    utterances: list[Utterance]
    resampled: set[int] = field(default_factory=set)
    mixed_down: set[int] = field(default_factory=set)
    cancelled: set[int] = field(default_factory=set)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over ids, texts and encoded audio, in order; where they lie makes no difference."""
        total = hashlib.sha256()
        for utterance in self.utterances:
            total.update(json.dumps([utterance.id, utterance.text, utterance.digest]).encode())
        return total.hexdigest()

    @property
    def longest(self) -> float:
        """Seconds of the longest utterance."""
        return max(utterance.duration for utterance in self.utterances)

    def read(self, index: int, sampling_rate: int) -> "np.ndarray":
        """The samples of one utterance: float32 [samples], one channel, at `sampling_rate` Hz.

        Raises:
            DataError: the audio is corrupt, or holds NaN or Inf.
        """
        import soxr

        entry = self.utterances[index].entry
        samples, rate = decode(entry.encoded(), entry, self.utterances[index].duration)
        mono = samples.mean(axis=1)
        if samples.shape[1] > 1:
            self.mixed_down.add(index)
            if index not in self.cancelled and mono.std() < CANCELLED * samples.std():
                self.cancelled.add(index)
                print(
                    f"utterance {entry.id}: the channels of {entry.audio} are in opposite phase: "
                    "their mean, which is heard, is nearly silent; keep one of them",
                    file=sys.stderr,
                )
        if rate == sampling_rate:
            return mono
        self.resampled.add(index)
        return soxr.resample(mono, rate, sampling_rate, quality="HQ")


def load_speech(config: DatasetConfig, *, split: str | None = None, limit: int | None = None) -> Speech:
    """The utterances of one split, by default `config.split`, or the first `limit` of them.

    Raises:
        DataError: the data is missing, out of reach or faulty; names the line or utterance.
    """
    split = split or config.split
    utterances: list[Utterance] = []
    places: dict[str, str] = {}
    for entry in islice(SOURCES[config.source](config, split), limit):
        if entry.id in places:
            raise DataError(
                f"{entry.where}: the id {entry.id} is taken by {places[entry.id]}; {OWN_IDS[config.source]}"
            )
        places[entry.id] = entry.where
        utterances.append(_examine(entry))
    if not utterances:
        raise DataError(
            f"dataset.path={config.path} has no utterances in split {split}; it needs one at least"
        )
    _tell_short(utterances)
    return Speech(config.name or config.path, split, config.language, utterances)


def _tell_short(utterances: list[Utterance]) -> None:
    short = [
        (each, missing)
        for each in utterances
        if (missing := (each.entry.duration or 0) - each.duration) > SHORT
    ]
    if short:
        first, missing = short[0]
        print(
            f"{len(short)} of {len(utterances)} utterances end before their stated duration, utterance "
            f"{first.id} by {missing:.2g} s: {first.entry.audio}",
            file=sys.stderr,
        )


def _examine(entry: Entry) -> Utterance:
    encoded = entry.encoded()
    seconds = measure(encoded, entry)
    if entry.duration is not None and abs(entry.duration - seconds) > DURATION_TOLERANCE:
        raise DataError(
            f"{entry.where}: {entry.audio} lasts {seconds:.6g} s and not {entry.duration:.6g} s; "
            "it is cut off or another recording: restore it, or correct duration"
        )
    return Utterance(entry, seconds, hashlib.sha256(encoded).hexdigest())


def _manifest(config: DatasetConfig, split: str) -> Iterator[Entry]:
    path = _local(config)
    columns = MANIFEST.chosen(config.audio_column, config.text_column)
    if path.is_dir():
        file = path / f"{split}.jsonl"
        if not file.is_file():
            known = ", ".join(sorted(other.stem for other in path.glob("*.jsonl"))) or "none"
            raise DataError(
                f"dataset.path={config.path} has no split {split} ({split}.jsonl); splits there: {known}"
            )
        return json_entries(file, columns)
    if split != config.split:
        raise DataError(
            f"dataset.path={config.path} is one file and has no split {split}; "
            "give the directory that holds SPLIT.jsonl"
        )
    return json_entries(path, columns)


def _folder(config: DatasetConfig, split: str) -> Iterator[Entry]:
    path = _local(config)
    if not path.is_dir():
        raise DataError(f"dataset.path={config.path} is a file; give the folder, or use dataset=manifest")
    columns = Columns().chosen(config.audio_column, config.text_column)
    if (path / split).is_dir():
        return folder_entries(path, columns, split)
    if split != config.split:
        known = ", ".join(sorted(other.name for other in path.iterdir() if other.is_dir())) or "none"
        raise DataError(f"dataset.path={config.path} has no split {split}; subfolders there: {known}")
    return folder_entries(path, columns)


def _local(config: DatasetConfig) -> Path:
    shipped = hub.shipped(config.path)
    path = shipped or hub.expanded(config.path)
    if not path.exists():
        known = ", ".join(hub.shipped_names(".jsonl")) or "none"
        remedy = f"shipped datasets: {known}" if shipped else "give an existing file or directory"
        raise DataError(f"dataset.path={config.path} does not exist; {remedy}")
    return path


# Where the values of dataset.source lead
SOURCES: dict[str, Callable[[DatasetConfig, str], Iterator[Entry]]] = {
    "manifest": _manifest,
    "folder": _folder,
    "hub": hub_entries,
}
