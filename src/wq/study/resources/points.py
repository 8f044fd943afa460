"""Points of a grid that are weighed and not run, from a command line: each a model's shape and a spec."""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wq import outputs
from wq.study.resources.footprint import Footprint, Workload, footprint
from wq.study.resources.size import Size, plain_bits, size_of
from wq.study.spec.composition import compose
from wq.study.spec.resolution import resolve_spec, resolve_treatment, tell_ignored
from wq.study.spec.spec import Content, Spec
from wq.whisper.checkpoint.files import UNTIED
from wq.whisper.checkpoint.geometry import Geometry, find_geometry

Cell = str | int | float


@dataclass(frozen=True)
class Point:
    """A model and what a spec quantizes of it, without weights and without data."""

    geometry: Geometry
    spec: Spec

    @property
    def names(self) -> tuple[str, str]:
        return self.spec.model.name, self.spec.point

    @cached_property
    def size(self) -> Size:
        return size_of(self.geometry, self.spec)

    def footprint(self, work: Workload) -> Footprint:
        return footprint(
            self.geometry, self.size.model_bytes, self.spec.treatment, work, plain_bits(self.spec)
        )


def compose_points(overrides: list[str]) -> list[Point]:
    """The points of a job or a grid, each once; settings without effect are told of for a single one.

    Raises ConfigurationError, ModelError.
    """
    points = {}
    untied = {}
    for config in compose(overrides):
        geometry = find_geometry(config.model.path, config.model.revision)
        source = Content(config.model.name, str(geometry))
        data = Content(config.dataset.name or "", "")
        spec = resolve_spec(config, resolve_treatment(config), source, data, 0, "", geometry.is_multilingual)
        if not geometry.tie_word_embeddings:
            untied[spec.model] = f"{spec.model.name}: {UNTIED}"
        points.setdefault(replace(spec, ignored=(), limit=None), Point(geometry, spec))
    if len(points) == 1:
        (point,) = points.values()
        tell_ignored(point.spec)
    for notice in untied.values():
        print(notice, file=sys.stderr)
    return list(points.values())


def split_settings(
    arguments: Iterable[str], known: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, list[Any]], list[str]]:
    """A command's own settings, each with all values that commas part, and the overrides that are left.

    Raises ValueError for a value that its setting's parser does not take.
    """
    settings: dict[str, list[Any]] = {}
    overrides = []
    for text in arguments:
        key, equals, values = text.partition("=")
        if not equals and not text.startswith("~"):  # which takes a setting away
            raise ValueError(f"{text} is no setting; give key=value, or key=value,value for a grid")
        if key not in known:
            overrides.append(text)
            continue
        try:
            settings[key] = [known[key](value) for value in values.split(",")]
        except ValueError as error:
            kind = {int: "whole number", float: "number"}.get(known[key])
            if kind is None:
                raise
            raise ValueError(f"{key}={values} is no {kind}; give one, or several with commas") from error
    return settings, overrides


def truth(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"details={value} is neither true nor false; give one of them")
    return value == "true"


def table_file(value: str) -> Path:
    path = Path(value)
    if not value or path.is_dir():
        raise ValueError(f"csv={value} is no file; give a name such as points.csv")
    outputs.refuse_foreign([path])
    return path


def directory_for(value: str) -> Path:
    path = Path(value)
    if not value or any(each.exists() and not each.is_dir() for each in (path, *path.parents)):
        raise ValueError(f"out={value} is no directory, and none can be made there; name another")
    return path


def aligned(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Columns of text: names to the left, numbers to the right."""
    lines = [
        list(header),
        *([cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows),
    ]
    columns = []
    for name, *cells in zip(*lines, strict=True):
        width = max(map(len, (name, *cells)))
        is_number = all(cell.replace(",", "").replace(".", "").isdigit() for cell in cells)
        columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in (name, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def leave_table(
    settings: Mapping[str, list[Any]], header: Sequence[str], rows: Iterable[Sequence[Cell]]
) -> None:
    """Write the table to the file of csv=, where one is asked for, and say so."""
    if "csv" in settings:
        outputs.write(settings["csv"][-1], as_csv(header, rows))
        print(settings["csv"][-1])


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()
