"""Whatever directories and files people have: nothing of theirs is changed or removed."""

import contextlib
import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Run
from wq import outputs
from wq.outputs import LIST, OutputError
from wq.study.compare.selection import Selection
from wq.study.grid.grid import OWN_FILES, SWEPT
from wq.study.report.report import write_report
from wq.study.report.sensitivity import files as sensitivity_files
from wq.study.store import results
from wq.whisper.export.target import CARD, COMPANIONS, CONFIG, ExportError, check_target

# Names that wq or Hydra writes somewhere, and some that they do not
NAMES = sorted(
    {path.name for path in (*results.files(Path()), *sensitivity_files(Path()))}
    | {results.FORMERLY, results.PLAN, *results.REPORT, *OWN_FILES, SWEPT, LIST, CARD, CONFIG, *COMPANIONS}
    | {"notes.txt", "model.safetensors", "0", "1", "2026-11-27", "reference", ".hydra", "jobs", "é\u2028"}
)
name = st.sampled_from(NAMES)
leaf = st.one_of(
    st.binary(min_size=1, max_size=8).map(lambda content: ("file", content)),
    st.sampled_from(["..", "0", "elsewhere", "notes.txt", "nowhere"]).map(lambda target: ("link", target)),
)
trees = st.recursive(leaf, lambda below: st.dictionaries(name, below, max_size=5), max_leaves=25).filter(
    lambda tree: isinstance(tree, dict)
)


def plant(place: Path, tree: dict) -> None:
    """Make a directory of what somebody keeps there."""
    place.mkdir(exist_ok=True)
    for name, below in tree.items():
        if isinstance(below, dict):
            plant(place / name, below)
        elif below[0] == "file":
            (place / name).write_bytes(below[1])
        else:
            (place / name).symlink_to(below[1])


def digests(place: Path) -> dict[str, str]:
    """Every file and link below a place, and what is in it. Lists of outputs that wq itself has begun are
    left out, but not those that were there."""
    found = {}
    for directory, folders, names in os.walk(place):
        for name in (*folders, *names):
            path = Path(directory, name)
            if path.is_symlink():
                found[str(path)] = f"link to {path.readlink()}"
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run_a_grid(sweep: Path) -> None:
    """What a grid of two does with its directory, its jobs left out: the same calls in the same order."""
    from wq.study.grid.progress import write_plan

    outputs.refuse_foreign(sweep / name for name in (results.PLAN, SWEPT, *results.REPORT))
    jobs = [sweep / "0", sweep / "1"]
    outputs.refuse_foreign(path for job in jobs for path in results.files(job))
    outputs.remove(path for job in jobs for path in results.files(job))
    write_plan(sweep, "", {0: [], 1: []}, {0: "0", 1: "1"}, {})
    for number, job in enumerate(jobs):
        for place in (job, job / results.REFERENCE_FOLDER):
            results.write_rows(place / results.HYPOTHESES, [{"id": "a"}])
            row = {"fingerprint": f"{number}", "point": f"int{number}", "status": "finished"}
            results.write_row(place / results.RESULT, row)
        results.write_failure(job, ValueError("lost"))
    results.collect(sweep)
    results.find_job(sweep, "1")


def write_a_report(place: Path) -> None:
    write_report(Selection([{"fingerprint": "a", "point": "int4", "status": "finished"}]), place, "a report")


COMMANDS = {
    "grid": run_a_grid,
    "grid beside others": lambda place: run_a_grid(place / "2026-11-27"),
    "report": write_a_report,
    "a failure": lambda place: results.write_failure(place, ValueError("lost")),
    "every output": lambda place: [outputs.write(place / name, "new") for name in sorted(NAMES)],
}


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mine=trees)
def test_nothing_of_others_is_changed_or_removed(tmp_path_factory, command: str, mine: dict):
    """Nor is what wq refuses in the first call taken in the second."""
    place = tmp_path_factory.mktemp("place")
    plant(place / "elsewhere", {"result.json": ("file", b"{}")})
    plant(place / "here", mine)
    before = digests(place)
    for _ in range(2):
        with contextlib.suppress(OutputError, OSError, ValueError):  # of a directory in the place of a file
            COMMANDS[command](place / "here")
        after = digests(place)
        assert {path: after.get(path) for path in before} == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mine=trees.filter(bool))
def test_no_export_takes_the_place_of_what_another_made(tmp_path_factory, mine: dict):
    place = tmp_path_factory.mktemp("place") / "out"
    plant(place, mine)
    if set(mine) != {LIST}:
        with pytest.raises(ExportError):
            check_target(place, overwrite=True)


def test_a_file_is_own_until_somebody_changes_it(tmp_path: Path):
    file = tmp_path / "result.json"
    for content in ("first", "second", "first"):
        outputs.write(file, content)
        assert file.read_text() == content
    copied = tmp_path / "copied" / file.name
    copied.parent.mkdir()
    copied.write_bytes(file.read_bytes())
    file.write_text("mine")
    for foreign in (file, copied):
        with pytest.raises(OutputError, match=f"{foreign} is in the way: wq did not write it, or it was"):
            outputs.write(foreign, "third")
        outputs.remove([foreign])
        assert foreign.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "copied", LIST}


def write_and_remove(path: Path, own: int) -> None:
    for count in range(30):
        outputs.write(path, f"{own} {count}")
        if count % 3 == 0:
            outputs.remove([path])


def test_several_at_once_may_write_and_remove_one_file(tmp_path: Path):
    """As jobs that end a grid together do: what one has just written is nothing foreign to another."""
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(write_and_remove, [tmp_path / "report.html"] * 3, range(3)))
    outputs.refuse_foreign([tmp_path / "report.html"])


def test_a_directory_that_was_moved_or_copied_is_still_own(tmp_path: Path):
    import shutil

    outputs.write(tmp_path / "a" / "result.json", "first")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    outputs.write(tmp_path / "b" / "result.json", "second")
    assert (tmp_path / "a" / "result.json").read_text() == "first"


INSIDE = {
    # where the command is typed, what is written to, the data set's path: whether that is refused
    ("here", "data", "data"): True,
    ("here", "data/out", "data"): True,
    ("here", "data/out/deep", "../here/data"): True,
    ("here", "link/out", "data"): True,
    ("here", "out", "data"): False,
    ("here", "datasets", "data"): False,
    ("here", ".", "."): True,
    ("here", "outputs/2026/1", "."): False,
    ("here", "data", "."): True,  # it is filled
    ("here", "own", "."): False,
    ("here", "..", ".."): True,
    ("here", "outputs", ".."): False,
    ("here", "data", "data/table.jsonl"): False,
    ("here", "outputs", "openai/whisper-tiny"): False,
    ("here", "outputs", None): False,
}


@pytest.mark.parametrize(("here", "place", "source"), INSIDE)
def test_what_is_read_from_is_not_written_to(tmp_path, monkeypatch, here, place, source):
    plant(tmp_path / here, {"data": {"a.wav": ("file", b""), "table.jsonl": ("file", b"")}})
    (tmp_path / here / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path / here)
    outputs.write(Path("own/result.json"), "")
    if INSIDE[here, place, source]:
        with pytest.raises(OutputError, match=r"is in the directory of dataset\.path="):
            outputs.refuse_inside(Path(place), "hydra.run.dir", {"dataset.path": source})
    else:
        outputs.refuse_inside(Path(place), "hydra.run.dir", {"dataset.path": source})


@pytest.mark.slow
def test_commands_leave_alone_what_is_there(wq: Run, tmp_path: Path):
    """The real command line: a grid into the directory of earlier grids and of files with all of its names;
    a job into a data set's directory."""
    few = ("limit=2", "resamples=50", "max_new_tokens=8")
    first = wq("-m", "format=int8,int4", *few)
    assert first.returncode == 0, first.stderr
    plant(tmp_path / "multirun" / "2026x", dict.fromkeys(NAMES, ("file", b"mine")))
    plant(tmp_path / "filled", {"0": {"result.json": ("file", b"mine")}})
    plant(tmp_path / "data", {"transcripts.jsonl": ("file", b'{"audio_filepath": "a.wav", "text": "a"}')})
    before = digests(tmp_path / "multirun") | digests(tmp_path / "data") | digests(tmp_path / "filled")

    second = wq("-m", "format=int6", *few, "hydra.sweep.dir=multirun")
    assert second.returncode == 0, second.stderr
    assert "int6-g128" in second.stdout
    assert "int4" not in second.stdout
    for arguments in (
        ("-m", "format=int6", *few, "hydra.sweep.dir=filled"),
        ("dataset=folder", "dataset.path=data", "hydra.run.dir=data", "hydra.output_subdir=null"),
        ("format=int6", *few, "hydra.run.dir=multirun/2026x"),
    ):
        refused = wq(*arguments)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
    after = digests(tmp_path)
    assert {path: after.get(path) for path in before} == before
