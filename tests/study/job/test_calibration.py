"""A whole spec on a model: what is calibrated, what a job records of it, and what is refused."""

import json

import pytest
import torch

from tests.conftest import run_jobs
from wq.study.job.calibration import Statistics
from wq.study.spec.composition import compose
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Calibration, Content
from wq.study.speech.datasets import load_speech
from wq.whisper.layers.layers import walk
from wq.whisper.methods.sequence import treated

FEW = ("limit=4", "calibration.limit=3", "max_new_tokens=8", "resamples=40")


def spec_of(*arguments):
    (config,) = compose([*arguments, *FEW])
    speech = load_speech(config.dataset, split="calibration", limit=3)
    calibration = Calibration(speech.split, len(speech.utterances), speech.content_hash)
    sources = Content("nano", "m" + "".join(arguments)), Content("commands", "d")
    return resolve_spec(config, resolve_treatment(config), *sources, 4, "n", False, calibration), speech


def under(whisper, spec, speech=None):
    """The model under the treatment of a spec."""
    return treated(whisper, spec.treatment, Statistics(whisper, spec, speech))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WQ_CACHE", str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_static_ranges_are_of_the_layers_that_need_them(nano):
    spec, speech = spec_of("activation=int8_tensor", "activation.roles=[encoder.mlp]")
    with under(nano, spec, speech) as state:
        roles = {layer.role for layer in walk(nano.model) if layer.name in state.ranges}
        assert roles == {"encoder.mlp.fc1", "encoder.mlp.fc2"}
        assert all(span.amin == -span.amax < 0 for span in state.ranges.values())
        assert state.observe.seconds is not None
    with under(nano, spec, speech) as state:
        assert state.observe.seconds is None  # the statistics were kept: nothing was measured
    dynamic, _ = spec_of("activation=int8_token")
    with under(nano, dynamic) as state:
        assert not state.ranges


@pytest.mark.usefixtures("cache")
def test_encoder_and_decoder_have_schemes_of_their_own(nano):
    spec, speech = spec_of("activation=fp8_token", "activation@decoder_activation=int8_tensor")
    with under(nano, spec, speech) as state:
        assert {name.split(".")[1] for name in state.ranges} == {"decoder"}


@pytest.mark.usefixtures("cache")
def test_the_model_comes_back_whatever_happens(nano):
    before = {name: value.clone() for name, value in nano.model.named_parameters()}
    spec, speech = spec_of("format=int4", "activation=nvfp4")
    with pytest.raises(RuntimeError), under(nano, spec, speech):
        raise RuntimeError
    assert all(torch.equal(before[name], value) for name, value in nano.model.named_parameters())
    hooked = [
        name for name, each in nano.model.named_modules() if each._forward_pre_hooks or each._forward_hooks
    ]
    assert not hooked


def test_a_job_records_its_calibration(wq, tmp_path):
    done = wq(
        "activation=int8_tensor", "activation.calibrator=percentile", *FEW, WQ_CACHE=str(tmp_path / "c")
    )
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    row = json.loads(result.read_text())
    assert row["activation"] == "int8-tensor-percentile99.9"
    assert row["point"].startswith("W8A8 ")
    assert (row["calibration_split"], row["calibration_utterances"]) == ("calibration", 3)
    assert row["calibrate_seconds"] > 0
    assert len(list((tmp_path / "c" / "calibration").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dataset.calibration_split=null",), "names no data for it"),
        (("dataset.calibration_split=other",), "dataset.calibration_split=other is the tested split"),
        (("dataset.calibration_split=nowhere",), "has no split nowhere"),
        (("activation.roles=[encoder.mpl]",), "role encoder.mpl matches no layer"),
        (("activation.roles=[embedding]",), "embedding is no linear layer"),
        (("activation=nvfp4", "activation.calibrator=entropy"), "calibrator=entropy is for one symmetric"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(here, arguments, message):
    done = here(run_jobs, "activation=int8_tensor", *arguments, *FEW)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert message in line
