"""What the encoder's states depend on, and who may use those of another point."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from wq.study.job.calibration import Statistics
from wq.study.job.reuse import encoder_spec, plan, reads
from wq.study.spec.composition import compose
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Calibration, Content, Spec
from wq.study.speech.datasets import load_speech
from wq.whisper.decoding.decode import SAMPLING_RATE
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.greedy import encode_rows
from wq.whisper.methods.sequence import treated


@cache
def spec_of(*arguments: str) -> Spec:
    (config,) = compose([*arguments, "limit=2", "calibration.limit=2"])
    speech = load_speech(config.dataset, split="calibration", limit=2)
    calibration = Calibration(speech.split, len(speech.utterances), speech.content_hash)
    sources = Content("nano", "m"), Content("commands", "d")
    return resolve_spec(config, resolve_treatment(config), *sources, 2, "n", False, calibration)


# Settings in pairs, and whether one change between them reaches the encoder
PERTURBATIONS = [
    # nothing that the encoder's states follow from
    ("roles=[decoder]", "format=fp32", True),
    pytest.param(
        "roles=[decoder] format=int4", "roles=[decoder.mlp] format=nvfp4", True, marks=pytest.mark.slow
    ),
    ("roles=[embedding]", "format=fp32", True),
    ("kv_cache=int8", "", True),
    pytest.param("kv_cache=nvfp4", "kv_cache=int8 kv_cache.keys=channel", True, marks=pytest.mark.slow),
    pytest.param("decoder_format=int4", "decoder_format=fp8_e4m3", True, marks=pytest.mark.slow),
    ("decoder_activation=int8_token", "", True),
    ("decoder_activation=int8_tensor", "", True),
    pytest.param("decoder_activation=nvfp4", "decoder_activation=int8_tensor", True, marks=pytest.mark.slow),
    ("activation=int8_token activation.roles=[decoder]", "", True),
    ("max_new_tokens=5", "", True),
    ("activation=int8_tensor max_new_tokens=5", "activation=int8_tensor", True),
    ("seed=1", "", True),
    pytest.param("resamples=50", "", True, marks=pytest.mark.slow),
    ("format=int8 decoder_format=nvfp4 share_tensor_scale=true", "format=int8 decoder_format=nvfp4", True),
    ("smoothquant=fixed smoothquant.alpha_decoder=0.9", "smoothquant=fixed", True),
    ("roles=[encoder] format=nvfp4", "format=nvfp4 decoder_format=int4", True),
    # something that they do follow from
    ("format=int8", "format=fp32", False),
    ("format=int8", "format=int8 granularity=channel", False),
    pytest.param("group=32", "group=64", False, marks=pytest.mark.slow),
    pytest.param("format=int8 format.int_range=full", "format=int8", False, marks=pytest.mark.slow),
    pytest.param("format=int4 format.scale_dtype=fp32", "format=int4", False, marks=pytest.mark.slow),
    ("format=int4 format.scale_search=mse", "format=int4", False),
    pytest.param("roles=[encoder.mlp]", "roles=[encoder]", False, marks=pytest.mark.slow),
    ("roles=[conv]", "format=fp32", False),
    pytest.param("roles=[conv,decoder]", "roles=[decoder]", False, marks=pytest.mark.slow),
    ("format=nvfp4 share_tensor_scale=true", "format=nvfp4", False),
    ("activation=int8_token", "", False),
    pytest.param(
        "activation=int8_token activation.roles=[encoder.mlp.fc2]",
        "activation=int8_token",
        False,
        marks=pytest.mark.slow,
    ),
    ("activation=int8_tensor", "activation=int8_token", False),
    ("activation=int8_tensor activation.calibrator=percentile", "activation=int8_tensor", False),
    ("smoothquant=fixed", "", False),
    ("smoothquant=fixed smoothquant.alpha_encoder=0.6", "smoothquant=fixed", False),
    pytest.param(
        "smoothquant=fixed smoothquant.alpha_cross=0.6", "smoothquant=fixed", False, marks=pytest.mark.slow
    ),
    ("smoothquant=fixed smoothquant.fc2=true", "smoothquant=fixed", False),
    pytest.param("smoothquant=fixed roles=[decoder]", "roles=[decoder]", False, marks=pytest.mark.slow),
    pytest.param("smoothquant=search", "smoothquant=fixed", False, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def states(nano, commands, tmp_path_factory):
    """The real states under a spec."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    audios = [commands.read(0, SAMPLING_RATE)]
    features = log_mel(nano.feature_extractor, audios)
    calibration = load_speech(compose([])[0].dataset, split="calibration", limit=2)
    found: dict[str, torch.Tensor] = {}

    def compute(spec: Spec) -> torch.Tensor:
        if spec.fingerprint not in found:
            with treated(nano, spec.treatment, Statistics(nano, spec, calibration)), torch.inference_mode():
                found[spec.fingerprint] = torch.cat(list(encode_rows(nano.model, features)))
        return found[spec.fingerprint]

    yield compute
    patch.undo()


@pytest.mark.parametrize(("one", "other", "alike"), PERTURBATIONS)
def test_states_are_shared_exactly_where_they_are_equal(states, one, other, alike):
    specs = [spec_of(*text.split()) for text in (one, other)]
    assert specs[0].fingerprint != specs[1].fingerprint
    keys = [reads(spec).states for spec in specs]
    assert (keys[0] == keys[1]) == alike
    assert torch.equal(states(specs[0]), states(specs[1])) == alike


def test_whatever_a_search_may_look_at_counts():
    searched = spec_of("smoothquant=search")
    for change in ("decoder_format=int4", "decoder_activation=int8_token", "max_new_tokens=5"):
        assert reads(spec_of("smoothquant=search", change)) != reads(searched)
    assert reads(spec_of("smoothquant=search", "kv_cache=int8")) == reads(searched)


def test_models_and_speech_are_told_apart():
    spec = spec_of("roles=[decoder]")
    assert reads(spec).states == reads(spec.reference()).states
    for name in ("model", "dataset"):
        other = replace(spec, **{name: Content("nano", "another")})
        assert set(reads(other)).isdisjoint(reads(spec))
    for change in ({"long_audio": "chunk"}, {"window": 3}):
        assert set(reads(replace(spec, **change))).isdisjoint(reads(spec))
    assert encoder_spec(encoder_spec(spec)) == encoder_spec(spec)


@pytest.mark.parametrize(
    ("setting", "alike"),
    [
        ("activation=int8_tensor", False),
        ("smoothquant=fixed", False),
        ("decoder_activation=int8_tensor", True),
    ],
)
def test_states_of_other_calibration_speech_are_others(setting, alike):
    spec = spec_of(setting)
    assert spec.calibration
    other = replace(spec, calibration=replace(spec.calibration, content_hash="another"))
    assert (reads(other).states == reads(spec).states) == alike


def test_a_grid_runs_points_of_one_encoder_after_the_other():
    configs = dict(enumerate(compose(["kv_cache=none,int8", "format=int8,int4,mxfp4", "limit=2"])))
    configs[6] = replace(configs[0], roles=["encoder", "nowhere"])  # its own job will say so
    order, coming = plan(configs)
    assert order == [0, 3, 1, 4, 2, 5, 6]
    assert len(coming) == 6
    assert len({each.states for each in coming.values()}) == 3
    assert len({each.features for each in coming.values()}) == 1
