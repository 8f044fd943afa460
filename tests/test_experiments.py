"""Every experiment in conf/experiment composes into different points and runs; what is published is
compared with what is found."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from wq.catalogue import conf_dir
from wq.study.spec.composition import compose
from wq.study.spec.config import ConfigurationError
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Content

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
LOCAL = [name for name in EXPERIMENTS if name != "published"]  # which is about models of the hub


def points(*arguments: str) -> dict[str, str]:
    """The distinct points of a grid: fingerprint to name."""
    model, dataset = Content("nano", "m" * 64), Content("commands", "d" * 64)
    specs = [
        resolve_spec(config, resolve_treatment(config), model, dataset, 320, "normaliser", False)
        for config in compose([*arguments])
    ]
    return {spec.fingerprint: spec.point for spec in specs}


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=() if name == "smoke" else pytest.mark.slow) for name in LOCAL],
)
def test_every_experiment_asks_for_different_points_under_different_names(experiment):
    found = points(f"+experiment={experiment}")
    assert len(found) >= 8
    assert len(set(found.values())) == len(found)


@pytest.mark.slow
def test_the_front_is_sought_among_more_than_a_hundred_points():
    assert len(points("+experiment=tradeoff")) >= 100


def test_what_is_given_beside_an_experiment_wins():
    narrowed = points("+experiment=wer_by_format", "format=int8,int4", "granularity=channel")
    assert sorted(narrowed.values()) == ["int4-channel", "int8-channel"]


def test_the_decoders_own_options_are_spelt_as_any_others():
    spelt = points(
        "format=nvfp4", "decoder_format=fp8_e4m3", "activation=fp8_token", "decoder_activation=none"
    )
    assert spelt == points(
        "format=nvfp4",
        "format@decoder_format=fp8_e4m3",
        "activation=fp8_token",
        "activation@decoder_activation=none",
    )
    assert list(spelt.values()) == ["W4+8A8 nvfp4@encoder+fp8_e4m3-g128@decoder / fp8_e4m3-token@encoder"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [name for name in LOCAL if name != "smoke"])
def test_every_experiment_runs_in_miniature(experiment, monkeypatch, tmp_path):
    """The first and the last of its points and some between, on one utterance."""
    from wq.main import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    miniature = ["limit=1", "calibration.limit=2", "max_new_tokens=8", "resamples=40"]
    configs = compose([f"+experiment={experiment}", *miniature])
    chosen = sorted({0, len(configs) // 3, 2 * len(configs) // 3, len(configs) - 1})
    for number in chosen:
        run(configs[number], tmp_path / str(number), [])
        row = json.loads((tmp_path / str(number) / "result.json").read_text())
        assert (row["status"], row["utterances"]) == ("finished", 1)


@pytest.mark.slow
def test_the_smoke_experiment_is_a_grid(wq: Run, tmp_path: Path):
    done = wq("-m", "+experiment=smoke", "limit=2", "resamples=40")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("multirun/*/*/*/result.json"))) == 8


ONE = "format=fp32", "limit=3", "resamples=40"


@pytest.mark.slow
def test_a_word_error_rate_is_held_against_what_is_expected_of_its_model(wq: Run):
    assert wq(*ONE, "+expect_wer.nano=[0.0,1.0]", "+expect_wer.other=[0.9,1.0]").returncode == 0
    off = wq(*ONE, "+expect_wer.nano=[0.9,1.0]")
    assert off.returncode == 1
    (line,) = [line for line in off.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: nano fp32: WER ")
    assert line.endswith(
        "% is outside of the 90 to 100 % that expect_wer says; check the test set and the decoding"
    )


@pytest.mark.slow
def test_a_grid_ends_with_what_is_not_as_expected(wq: Run):
    off = wq("-m", "format=fp32", "limit=3,2", "resamples=40", "+expect_wer.nano=[0.9,1.0]")
    assert off.returncode == 1
    lines = [line for line in off.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert all("outside of the 90 to 100 %" in line for line in lines)


@pytest.mark.parametrize("band", ["[0.9]", "[0.2,0.1]", "[-1,1]"])
def test_what_is_no_band_is_refused(band):
    with pytest.raises(ConfigurationError, match="is no band"):
        compose([f"+expect_wer.nano={band}"])


def test_the_published_rates_name_their_models():
    configs = compose(["+experiment=published"])
    assert {config.model.name for config in configs} == set(configs[0].expect_wer)
    assert {config.dataset.name for config in configs} == {"librispeech_clean"}


@pytest.mark.slow
def test_without_a_hub_the_published_rates_end_with_one_line_for_each_model(wq: Run):
    off = wq("-m", "+experiment=published")
    assert off.returncode == 1
    lines = off.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 3
    assert "Traceback" not in off.stderr
