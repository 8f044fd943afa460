"""Directories that Hydra is told to use, in whatever way."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hydra_plugins.wq_launchers import place
from tests.conftest import Run
from wq.study.spec.config import ConfigurationError

FEW = ("limit=2", "resamples=50", "max_new_tokens=8")


def composed(*subdirs: str) -> dict:
    return {n: OmegaConf.create({"hydra": {"sweep": {"subdir": text}}}) for n, text in enumerate(subdirs)}


def test_every_point_has_a_directory_of_its_own():
    texts = ("0", "format=int4,limit=2", "./a/../b", "a/c", "reference")
    assert place(composed(*texts)) == dict(enumerate(("0", "format=int4,limit=2", "b", "a/c", "reference")))


@pytest.mark.parametrize(
    ("subdirs", "told"),
    [
        ((".",), "hydra.sweep.subdir=. is no directory below hydra.sweep.dir"),
        (("..",), "hydra.sweep.subdir=.. is no directory below"),
        (("a/../../b",), "hydra.sweep.subdir=../b is no directory below"),
        (("/tmp/x",), "hydra.sweep.subdir=/tmp/x is no directory below"),
        (("same", "same"), "hydra.sweep.subdir=same of point 0 is in the directory of point 1"),
        (("a", "a/reference"), "hydra.sweep.subdir=a/reference of point 1 is in the directory of point 0"),
        (("a/b", "a"), "is in the directory of point"),
    ],
)
def test_directories_that_would_mix_are_refused(subdirs: tuple, told: str):
    with pytest.raises(ConfigurationError) as refused:
        place(composed(*subdirs))
    assert told in str(refused.value)


@pytest.mark.slow
def test_a_grid_whatever_its_directories_are_called(wq: Run, tmp_path: Path):
    """Its jobs in directories named by their settings, and working there; then a smaller one in its place."""
    own = ("hydra.sweep.dir=here", "hydra.sweep.subdir=${hydra.job.override_dirname}", "hydra.job.chdir=true")
    two = wq("-m", "format=int8,int4", *FEW, *own)
    assert two.returncode == 0, two.stderr
    assert all(point in two.stdout for point in ("int8-g128", "int4-g128", "fp32"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "here",
        "mlflow.db",
        "mlflow.db.lock",
        "mlruns",
        ".wq",
    }
    assert len(list(tmp_path.rglob("mlflow.db"))) == 1
    (directory,) = (tmp_path / "here").glob("format=int8,*")
    assert (directory / "result.json").exists()
    status = wq("status", "here", module="wq")
    assert "here: 2 done (all)" in status.stdout

    one = wq("-m", "format=int6", *FEW, *own)
    assert one.returncode == 0, one.stderr
    assert "int8" not in one.stdout
    assert "without a result" not in one.stdout
    assert (directory / "result.json").exists()

    failed = wq("-m", "format=int6", "batch_size=0", *FEW, *own[:1], "hydra.sweep.subdir=x")
    assert failed.returncode == 1
    again = wq("format=int6", "batch_size=0", *FEW, f"hydra.run.dir='{directory}'")
    assert again.returncode == 1
    assert (directory / "error.txt").exists()
    assert not (directory / "result.json").exists()
