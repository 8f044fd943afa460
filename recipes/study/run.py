"""Make the study's results anew: run its experiments, and write docs/results/SET.

    python recipes/study/run.py nano-clean                    # every experiment on the shipped model
    python recipes/study/run.py nano-other tradeoff kv_cache  # two of them
    python recipes/study/run.py tiny_en model.path=DIR/tiny_en dataset.path=DIR/speech
    python recipes/study/run.py real model.path=DIR/checkpoint dataset.path=DIR/speech
    python recipes/study/run.py nano-other norun=true         # only the tables, of what the store has

An experiment is the grid of conf/experiment/NAME.yaml, run in one process for every core. The store is that
of the directory it is called in, or of MLFLOW_TRACKING_URI: what it has is not run again, so that a study
which was interrupted goes on. Settings of a job are for all grids; out=DIR is another place for the tables.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from index import BATCHES, FOLDERS, MEMORY, SENSITIVITY, placed, write_index
from tables import read_questions, write_agreement, write_experiment, write_pairs

from wq.catalogue import conf_dir
from wq.console import one_line
from wq.study.compare.scenes import Scene, is_finished, reference_of, scenes
from wq.study.compare.selection import Selection, of_stores
from wq.study.job.job import prepare
from wq.study.job.rows import weight_columns
from wq.study.spec.composition import compose
from wq.study.store.results import Row
from wq.study.store.tracking import Store, default_uri

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results"
TESTS = ("smoke", "published")  # experiments without a table

# What a set adds to the command of an experiment
SETS = {
    "nano-clean": ("model=nano", "dataset=commands", "dataset.split=clean"),
    "nano-other": ("model=nano", "dataset=commands", "dataset.split=other"),
    "tiny_en": (
        *("dataset=manifest", "dataset.split=fluent", "dataset.calibration_split=fluent_calibration"),
        *("dataset.name=speechocean762", "limit=100"),
    ),
    "real": (
        *("dataset=manifest", "dataset.split=test", "dataset.calibration_split=calibration"),
        *("dataset.name=speechocean762", "max_new_tokens=40"),
    ),
}


def main(arguments: Sequence[str]) -> None:
    words = [text for text in arguments if "=" not in text]
    name, named = (words or [""])[0], words[1:]
    given = [text for text in arguments if "=" in text and not text.startswith(("out=", "norun="))]
    if name not in SETS:
        raise ValueError(
            f"set {name or 'missing'}: choose one of {', '.join(SETS)}, then experiments or none"
        )
    unknown = next((each for each in named if each not in known()), None)
    if unknown:
        raise ValueError(f"experiment {unknown} is unknown; choose among {', '.join(known())}")
    if name in FOLDERS and not any(text.startswith("model.path=") for text in given):
        raise ValueError(f"the set {name} does not ship with wq; give {' '.join(placed(name))}")
    settings = [*SETS[name], *given]
    own = dict(text.split("=", 1) for text in arguments if text not in (*words, *given))
    out = Path(own.get("out", RESULTS))
    if own.get("norun") != "true":
        for experiment in named or known():
            run(experiment, settings)
        if not named:
            run_sensitivity(out / name, settings)
    tabulate(out, name, named or known(), settings)


def known() -> list[str]:
    """The experiments that have a table."""
    return sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml") if path.stem not in TESTS)


def run(experiment: str, settings: Sequence[str]) -> None:
    """The grid, in processes; a point that fails is told of, and left out of the tables."""
    command = ["-m", "wq.main", "-m", f"+experiment={experiment}", "hydra/launcher=joblib", *settings]
    subprocess.run([sys.executable, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)


def run_sensitivity(directory: Path, settings: Sequence[str]) -> None:
    """`wq sensitivity`, with its table and its picture beside the others."""
    place = Path("outputs") / "sensitivity"
    command = ["-m", "wq", "sensitivity", f"out={place}", *SENSITIVITY, *settings]
    if subprocess.run([sys.executable, *command], check=False).returncode == 0:
        directory.mkdir(parents=True, exist_ok=True)
        for ending in ("csv", "svg"):
            shutil.copy(place / f"sensitivity.{ending}", directory)


def write_memory(directory: Path, settings: Sequence[str]) -> None:
    """`kv_cache_memory.csv`: what the points of kv_cache take, by formula, over batch and tokens."""
    file = f"csv={directory / MEMORY}"
    command = ["-m", "wq", "memory", "+experiment=kv_cache", *settings, *BATCHES, file]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def tabulate(out: Path, name: str, experiments: Sequence[str], settings: Sequence[str]) -> None:
    """The tables of these experiments, as far as the store has their points; the pairs, and the index."""
    selection = of_stores([Store(default_uri(), "wq")])
    finished = {row["fingerprint"]: row for row in selection.rows if is_finished(row)}
    counts, reference = {}, ""
    called: dict[str, str] = {}
    for experiment in experiments:
        every = points(experiment, settings)
        reference, *asked = every
        found = {key: columns for key, columns in every.items() if key in finished}
        print(f"{name} {experiment}: {len(found.keys() & asked)} of {len(asked)} points", flush=True)
        if reference in found and len(found) > 1:
            counts[experiment] = len(found) - 1, len(asked)
            called |= {columns["point"]: key for key, columns in found.items()}
            scene = scene_of(selection, found)
            write_experiment(out / name, experiment, scene)
            write_agreement(out / name, experiment, scene)
    if "kv_cache" in counts:
        write_memory(out / name, settings)
    if not counts:
        raise ValueError(f"the store {default_uri()} has no point of these; run them, without norun=true")
    scene = scene_of(selection, {key: row for key, row in finished.items() if reference_of(row) == reference})
    write_pairs(out / name, scene, called, read_questions(HERE / "pairs.yaml"))
    write_index(out / name, scene, counts, settings)


def points(experiment: str, settings: Sequence[str]) -> dict[str, Row]:
    """What an experiment calls its reference and its other points: columns, by fingerprint."""
    specs = [
        prepare(config, [], looks_only=True).spec
        for config in compose([f"+experiment={experiment}", *settings])
    ]
    return {
        spec.fingerprint: {"point": spec.point} | weight_columns(spec)
        for spec in (specs[0].reference(), *specs)
    }


def scene_of(selection: Selection, points: Mapping[str, Row]) -> Scene:
    """These points of the store, which are of one model and test set. They are called as here: another
    experiment that has run one of them may have described it with other words."""
    rows = [
        row | points[row["fingerprint"]]
        for row in selection.rows
        if row.get("fingerprint") in points and is_finished(row)
    ]
    (scene,) = scenes(rows, selection.transcripts)
    return scene


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        sys.exit(f"error: {one_line(error)}")
