"""Which roles or layers a format hurts: each rounded alone, what that does to WER and to its outputs."""

from pathlib import Path
from typing import TYPE_CHECKING

from wq.console import refuse_passwords, run_command

if TYPE_CHECKING:
    from wq.study.report.sensitivity import Part

HELP = """usage: wq sensitivity [by=role|layer] [out=DIR] [key=value ...]

One role, or one layer, at a time in the chosen format, the rest untouched: the change of WER against the
reference with its paired 95 % interval, and the relative error of the outputs of the rounded layers,
|Y' - Y| / |Y|, on a sample of what they read while the model transcribes the calibration split. It takes the
settings of a job: python -m wq.main --help. Every part is a job like any other: what the store has is not run
again.

  wq sensitivity format=int4                              role by role
  wq sensitivity format=int4,int3 group=32 by=layer limit=64
  wq sensitivity format=int8,fp8_e4m3 granularity=channel activation=int8_token
  wq sensitivity format=int3 roles=[decoder] by=layer     only the decoder's layers

  by=role      or by=layer: the layers of every block apart
  out=DIR      where sensitivity.csv, .svg and .png go, and the jobs' files (outputs/sensitivity)"""


def main() -> None:
    run_command(tell, HELP)


def tell(arguments: list[str]) -> None:
    from wq import outputs
    from wq.study.report.sensitivity import HEADER, cells, files, leave
    from wq.study.resources.points import aligned, directory_for, split_settings

    refuse_passwords(arguments)
    settings, overrides = split_settings(arguments, {"by": way, "out": directory_for, "format": str})
    directory, by = settings.get("out", [Path("outputs/sensitivity")])[-1], settings.get("by", ["role"])[-1]
    outputs.refuse_foreign(files(directory))
    formats = dict.fromkeys(settings.get("format", [None]))
    parts = [
        part
        for name in formats
        for part in of_format([f"format={name}"] * (name is not None) + overrides, by, directory)
    ]
    row = parts[0].row
    title = f"{row['model']}, {row['dataset']} {row['split']}, {row['utterances']} utterances"
    print(title)
    print(aligned(HEADER, [cells(part) for part in parts]))
    print("\n".join(map(str, leave(parts, directory, title))))


def of_format(overrides: list[str], by: str, directory: Path) -> "list[Part]":
    from wq import outputs
    from wq.main import run
    from wq.study.job.calibration import Statistics
    from wq.study.job.job import load_once, prepare, read_calibration
    from wq.study.job.sensitivity import only, output_error, parts_of, scheme_of
    from wq.study.report.sensitivity import Part
    from wq.study.spec.composition import compose
    from wq.study.store.results import RESULT, read_row
    from wq.whisper.checkpoint.geometry import find_geometry

    config, *more = compose(overrides)
    if more:
        raise ValueError("a sensitivity study is of one job in several formats; give commas to format= alone")
    outputs.refuse_inside(directory, "out", config.sources)
    geometry = find_geometry(config.model.path, config.model.revision)
    found: list[Part] = []
    seen = None  # the same for all parts: of the model as it was loaded
    for name in parts_of(config.roles, by, geometry):
        narrowed, said = only(config, name)
        job = prepare(narrowed, [*overrides, *said])
        place = directory / "jobs" / job.spec.fingerprint
        run(narrowed, place, list(job.overrides))
        whisper = load_once(job.checkpoint, job.config.device)
        calibration = read_calibration(narrowed, job.speech)
        seen = seen or Statistics(whisper, job.spec, calibration, config.batch_size)(job.spec.treatment)
        error = output_error(whisper, name, job.spec, seen)
        found.append(Part(name, scheme_of(job.spec), read_row(place / RESULT), error))
    return found


def way(value: str) -> str:
    from wq.study.job.sensitivity import WAYS

    if value not in WAYS:
        raise ValueError(f"by={value} is no way to part a model; choose one of {', '.join(WAYS)}")
    return value
