"""A whole spec on a model: what is calibrated, what a job records of it, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import run_jobs
from wq.study.job.calibration import Statistics
from wq.study.job.evaluation import notices
from wq.study.spec.composition import compose
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Calibration, Content
from wq.study.speech.datasets import load_speech
from wq.study.store.results import Row
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
def test_calibration_hears_the_window_of_its_point(nano):
    """Statistics of a window are never those of another, in memory or kept."""
    spec, speech = spec_of("activation=int8_tensor")
    name = "model.encoder.layers.0.self_attn.k_proj"
    full, short = (
        Statistics(nano, each, speech)(spec.treatment)[name] for each in (spec, replace(spec, window=3))
    )
    kept = Statistics(nano, spec, speech)
    assert torch.equal(kept(spec.treatment)[name].channel_max, full.channel_max)
    assert kept.seconds is None
    assert short.tokens == full.tokens  # of speech
    assert not torch.equal(short.channel_max, full.channel_max)  # the rest is silence


@pytest.mark.usefixtures("cache")
def test_a_point_and_its_reference_hear_one_window_whatever_the_batch(here, empty_store):
    shutil.copy(empty_store, ".")
    setting = ("window=4", "dataset.split=clean", "activation=int8_tensor", *FEW)
    transcripts = []
    for more in (("batch_size=1",), ("batch_size=3", "drafting=false", "reuse=false", "rerun=true")):
        done = here(run_jobs, *setting, *more)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(path.read_text()) for path in Path("job0").rglob("result.json")]
        assert [row["window"] for row in rows] == [4, 4]
        transcripts.append((Path("job0") / "hypotheses.jsonl").read_text())
    assert transcripts[0] == transcripts[1]


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


def test_scales_that_their_precision_does_not_reach_are_counted_by_layer(nano):
    """An int8 weight of magnitude 0.2 asks for a scale of 0.0016; E4M3 ends at 0.00195."""
    plain = ("format=int8", "granularity=channel", "roles=[encoder.mlp]")
    expected = {layer.name: len(layer.weight) for layer in walk(nano.model) if "encoder.mlp" in layer.role}
    with under(nano, spec_of(*plain, "format.scale_dtype=e4m3")[0]) as state:
        assert {each.layer: each.scales for each in state.clamped} == expected
        assert all(each.clamped > 0.5 * each.scales for each in state.clamped)
    for enough in (["format.scale_dtype=fp16"], ["format.scale_dtype=e4m3", "format.tensor_scale=true"]):
        with under(nano, spec_of(*plain, *enough)[0]) as state:
            assert state.clamped == []


def test_a_reader_is_told_of_clamped_scales_worst_layers_first():
    counts = ("utterances", "dropped_references", "cut_utterances", "capped_transcripts", "empty_hypotheses")
    row: Row = dict.fromkeys(counts, 0)
    assert notices(row) == notices(row | {"clamped_scales": []}) == []
    (told,) = notices(
        row | {"clamped_scales": [["a", 1, 100], ["b", 2000, 2000], ["c", 5, 100], ["d", 9, 100]]}
    )
    assert "2,000 of 2,000 in b, 9 of 100 in d, 5 of 100 in c, and some in 1 more" in told
    assert "\n" not in told
