"""What smoothing does to outliers, told: the maxima are those that calibration sees, the files are whole."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run
from wq.outputs import LIST
from wq.study.job.outliers import (
    PANELS,
    ChannelMaxima,
    alphas_text,
    channel_maxima,
    label,
    outlier_ratio,
    picture,
    write_outliers,
)
from wq.study.store.results import OUTLIERS, OUTLIERS_PICTURE
from wq.whisper.calibration.calibration import observe
from wq.whisper.methods.folds import SmoothedInput, factors, find_folds, smoothed


def maxima(layer: str, submodule: str, alpha: float | None, *before: float) -> ChannelMaxima:
    values = np.array(before, np.float32)
    return ChannelMaxima(layer, submodule, alpha, values, values / 2)


def test_the_maxima_after_smoothing_are_those_that_a_second_calibration_sees(nano, commands):
    def look():
        return observe(nano, lambda i: commands.read(i, 16_000), 2, batch_size=2, language="en")

    observed, folds = look(), find_folds(nano.model, fc2=True)
    alphas = {fold.name: None if fold.submodule == "decoder" else 0.6 for fold in folds}
    scales = factors(folds, {name: each.channel_max for name, each in observed.items()}, alphas)
    maxima = {fold.name: observed[fold.consumers[0].name].channel_max for fold in folds}
    told = channel_maxima(
        [SmoothedInput(fold, alphas[fold.name], maxima[fold.name], scales.get(fold.name)) for fold in folds]
    )
    with smoothed(folds, scales):
        second = look()
    for fold, each in zip(folds, told, strict=True):
        seen = second[fold.consumers[0].name].channel_max.numpy()
        np.testing.assert_allclose(each.after, seen, rtol=1e-3, atol=1e-5)
        assert (each.alpha is None) == np.array_equal(each.before, each.after)


def test_every_input_has_a_name_of_its_own(nano):
    names = [label(fold) for fold in find_folds(nano.model, fc2=True)]
    assert len(set(names)) == len(names)
    assert {"encoder.0.self_attn.q+k+v", "decoder.1.cross_attn.out", "decoder.cross_attn.k+v"} <= set(names)


@pytest.mark.parametrize(
    ("alphas", "told"),
    [
        ([("encoder", 0.5), ("encoder", 0.5), ("cross", None)], {"encoder": 0.5, "cross": None}),
        ([("encoder", 0.5), ("encoder", None), ("cross", 1.0)], {"encoder": [0.5, None], "cross": 1.0}),
        ([("cross", 0.0), ("cross", 0.0)], {"cross": 0.0}),
    ],
)
def test_alphas_are_told_once_where_a_submodule_shares_them(alphas, told):
    assert json.loads(alphas_text([maxima("", name, alpha, 1.0) for name, alpha in alphas])) == told


@pytest.mark.parametrize(("values", "ratio"), [((1, 2, 30), 15.0), ((4, 4, 4), 1.0), ((0, 0, 3), np.inf)])
def test_outlier_ratio(values, ratio):
    assert outlier_ratio(np.array(values, np.float32)) == ratio


def test_the_strongest_outliers_are_drawn_in_the_order_of_the_computation():
    inputs = [maxima(f"encoder.{n}", "encoder", 0.5, 1.0, 1.0, float(n)) for n in range(2, 2 + 2 * PANELS)]
    titles = [row["hconcat"][0]["title"]["text"] for row in picture(inputs)["vconcat"]]
    assert [title.partition(",")[0] for title in titles] == [each.layer for each in inputs[PANELS:]]


def test_the_files_hold_every_channel_and_a_picture(tmp_path: Path):
    inputs = [
        maxima("encoder.0.mlp.fc1", "encoder", 0.55, 1.5, 0.25, 40.0),
        maxima("decoder.0.mlp.fc1", "decoder", None, 0.0, 0.0, 0.0),
    ]
    write_outliers(tmp_path, inputs)
    rows = list(csv.DictReader((tmp_path / OUTLIERS).open()))
    assert [float(row["before"]) for row in rows] == [1.5, 0.25, 40.0, 0.0, 0.0, 0.0]
    assert [float(row["after"]) for row in rows[:3]] == [0.75, 0.125, 20.0]
    assert [row["alpha"] for row in rows] == ["0.55"] * 3 + [""] * 3
    assert (tmp_path / OUTLIERS_PICTURE).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [LIST, OUTLIERS, OUTLIERS_PICTURE]


@pytest.mark.slow
def test_a_job_that_smooths_leaves_and_records_what_it_chose(wq: Run, tmp_path: Path):
    settings = ("limit=2", "calibration.limit=2", "resamples=40", "hydra.run.dir=job")
    done = wq("activation=int8_tensor", "smoothquant=search", "smoothquant.scope=layer", *settings)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "job" / "result.json").read_text())
    with (tmp_path / "job" / OUTLIERS).open() as file:
        told = {line["layer"]: line["alpha"] for line in csv.DictReader(file)}
    alphas = json.loads(row["smoothquant_alphas"])
    listed = [alphas["cross"], *np.ravel(alphas["encoder"]), *np.ravel(alphas["decoder"])]
    assert set(alphas) == {"encoder", "decoder", "cross"}
    assert {float(alpha) for alpha in told.values() if alpha} == {
        alpha for alpha in listed if alpha is not None
    }
    assert len(set(told.values())) > 1
    for name in (OUTLIERS, OUTLIERS_PICTURE):
        (recorded,) = (tmp_path / "mlruns").rglob(name)
        assert recorded.read_bytes() == (tmp_path / "job" / name).read_bytes()
        (tmp_path / "job" / name).unlink()
    again = wq("activation=int8_tensor", "smoothquant=search", "smoothquant.scope=layer", *settings)
    assert "from the store" in again.stdout
    assert all((tmp_path / "job" / name).is_file() for name in (OUTLIERS, OUTLIERS_PICTURE))
