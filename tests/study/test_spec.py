"""The effective spec: defaults filled in, what has no effect dropped, one fingerprint for one point."""

from dataclasses import asdict, replace

import pytest

from wq.catalogue import load_format
from wq.study.config import Config, ConfigurationError, DatasetConfig, FormatConfig, ModelConfig
from wq.study.spec import Source, effective_spec

MODEL, DATASET = Source("nano", "m" * 64), Source("commands", "d" * 64)


def spec(format="int4", model=MODEL, dataset=DATASET, **settings):
    options = settings.pop("format_options", {})
    multilingual = settings.pop("multilingual", False)
    language = settings.pop("language", None)
    config = Config(
        model=ModelConfig(path="wq:nano", language=language),
        dataset=DatasetConfig(source="manifest", path="wq:commands", split="clean"),
        format=FormatConfig(**asdict(load_format(format)) | options),  # type: ignore[misc]
        **settings,
    )
    return effective_spec(config, model, dataset, 320, "normaliser-1", multilingual)


@pytest.mark.parametrize(
    ("settings", "point"),
    [
        ({"format": "int4"}, "int4"),
        ({"format": "int4", "group": 128}, "int4"),
        ({"format": "int4", "group": 32}, "int4-g32"),
        ({"format": "int4", "granularity": "channel"}, "int4-channel"),
        ({"format": "nvfp4", "group": 32}, "nvfp4-g32"),
        ({"format": "nvfp4", "group": 16}, "nvfp4"),
        ({"format": "mxfp4", "format_options": {"scale_rule": "even"}}, "mxfp4-even"),
        ({"format": "int4", "roles": ["encoder"]}, "int4@encoder"),
        ({"format": "int4", "roles": ["decoder", "encoder"]}, "int4"),
        ({"format": "fp32"}, "fp32"),
        ({"format": "fp16", "group": 32}, "fp16"),
    ],
)
def test_point(settings, point):
    assert spec(**settings).point == point


# Pairs of settings that are the same point, and pairs that are not
SAME = [
    ({"group": None}, {"group": 128}),
    ({"granularity": "channel", "group": 32}, {"granularity": "channel", "group": 128}),
    ({"format": "fp32", "granularity": "tensor"}, {"format": "fp32", "group": 32}),
    ({"format": "fp32", "roles": ["encoder"]}, {"format": "fp32"}),
    ({"limit": None}, {"limit": 320}),
    ({"limit": 1000}, {"limit": 320}),
    ({"language": "de"}, {"language": "en"}),
    ({"multilingual": True, "language": "en"}, {"multilingual": True}),
    ({"group": 32}, {"format_options": {"group": 32}}),
    ({"granularity": "channel", "format_options": {"group": 32}}, {"granularity": "channel"}),
    ({"roles": ["encoder.mlp", "encoder.self_attn"]}, {"roles": ["encoder", "encoder.mlp"]}),
    ({"batch_size": 1}, {"batch_size": 64}),
    ({"device": "cpu"}, {"device": "auto"}),
    ({"tracking_uri": "sqlite:///a.db"}, {"experiment_name": "other"}),
    ({"rerun": True}, {}),
    ({"roles": ["encoder", "decoder"]}, {"roles": ["decoder", "encoder", "encoder"]}),
    ({"model": Source("nano", "m" * 64)}, {"model": Source("renamed", "m" * 64)}),
    ({"format": "int4"}, {"format": "int", "format_options": {"integer_bits": 4}}),
]
DIFFERENT = [
    ({"group": 32}, {"group": 128}),
    ({"format": "int4"}, {"format": "int3"}),
    ({"format": "mxfp4"}, {"format": "mxfp4", "format_options": {"scale_rule": "even"}}),
    ({"granularity": "channel"}, {"granularity": "tensor"}),
    ({"roles": ["encoder"]}, {}),
    ({"multilingual": True, "language": "de"}, {"multilingual": True, "language": "en"}),
    ({"max_new_tokens": 10}, {}),
    ({"seed": 1}, {}),
    ({"model": Source("nano", "x" * 64)}, {}),
    ({"dataset": Source("commands", "x" * 64)}, {}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_settings_without_effect_do_not_make_another_point(one, other):
    assert spec(**one).fingerprint == spec(**other).fingerprint


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_settings_with_effect_do(one, other):
    assert spec(**one).fingerprint != spec(**other).fingerprint


def test_what_is_ignored_is_named():
    assert spec(granularity="channel", group=32).ignored == ("group=32",)
    assert "roles=[encoder]" in spec(format="fp32", roles=["encoder"]).ignored
    assert spec(group=32).ignored == ()


def test_the_reference_of_every_point_is_the_same_fp32_job():
    references = {spec(**settings).reference().fingerprint for settings, _ in DIFFERENT[:5]}
    assert references == {spec(format="fp32").fingerprint}
    assert spec(format="fp32").is_reference
    assert not spec(format="fp16").is_reference


def test_the_fingerprint_is_stable():
    """It identifies stored results: if it changes, everybody's results are run again. Change it knowingly."""
    assert spec(group=32).fingerprint == "10456099bf370428"
    assert replace(spec(), ignored=("anything",)).fingerprint == spec().fingerprint


def test_limit_is_told_where_it_chose():
    assert spec(limit=320).limit == 320
    assert spec(limit=1000).limit is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": -1}, "group=-1 must be at least 1"),
        ({"group": 0}, "group=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"granularity": "row"}, "granularity=row is unknown; choose one of tensor, channel, group"),
        ({"device": "gpu"}, "device=gpu is unknown"),
        ({"roles": []}, "name a role"),
        ({"roles": ["encoder", "decodr"]}, "role decodr matches no layer"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"resamples": 1}, "resamples=1 gives no 95 % interval"),
        ({"format_options": {"integer_bits": 99}}, "integer_bits=99"),
        ({"format_options": {"int_range": "wide"}}, "int_range=wide"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message.replace("[", r"\[")):
        spec(**settings)
