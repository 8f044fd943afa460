"""The effective spec: defaults filled in, what has no effect dropped, one fingerprint for one point."""

from dataclasses import asdict, replace

import pytest

from wq.catalogue import load_format
from wq.study.job.job import prepare
from wq.study.spec.composition import compose
from wq.study.spec.config import (
    ActivationConfig,
    Config,
    ConfigurationError,
    DatasetConfig,
    FormatConfig,
    FormatOptions,
    KVCacheConfig,
    ModelConfig,
    SmoothQuantConfig,
)
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Calibration, Content

MODEL, DATASET = Content("nano", "m" * 64), Content("commands", "d" * 64)


def described(format, options=()):
    return FormatConfig(**asdict(load_format(format)) | dict(options))  # type: ignore[misc]


def configuration(format="int4", **settings):
    options = settings.pop("format_options", {})
    language = settings.pop("language", None)
    spoken = settings.pop("dataset_language", "en")
    if "decoder_format" in settings:
        settings["decoder_format"] = described(settings["decoder_format"])
    return Config(
        model=ModelConfig(path="wq:nano", language=language),
        dataset=DatasetConfig(source="manifest", path="wq:commands", split="clean", language=spoken),
        format=described(format, options),
        **settings,
    )


def spec(format="int4", model=MODEL, dataset=DATASET, **settings):
    multilingual = settings.pop("multilingual", False)
    config = configuration(format, **settings)
    return resolve_spec(config, resolve_treatment(config), model, dataset, 320, "normaliser-1", multilingual)


def activation(format="int8", granularity="token", **settings):
    return ActivationConfig(format=format, granularity=granularity, **settings)


@pytest.mark.parametrize(
    ("settings", "point"),
    [
        ({"format": "int4"}, "int4-g128"),
        ({"format": "int4", "group": 128}, "int4-g128"),
        ({"format": "int4", "group": 32}, "int4-g32"),
        ({"format": "int4", "granularity": "channel"}, "int4-channel"),
        ({"format": "nvfp4", "group": 32}, "nvfp4-g32"),
        ({"format": "nvfp4", "group": 16}, "nvfp4"),
        ({"format": "mxfp4", "format_options": {"scale_rule": "even"}}, "mxfp4-even"),
        ({"format": "int4", "roles": ["encoder"]}, "int4-g128@encoder"),
        ({"format": "int4", "roles": ["decoder", "encoder"]}, "int4-g128"),
        ({"decoder_format": "fp8_e4m3"}, "int4-g128@encoder+fp8_e4m3-g128@decoder"),
        ({"format": "fp32", "decoder_format": "int4"}, "int4-g128@decoder"),
        ({"format": "nvfp4", "share_tensor_scale": True}, "nvfp4-fused"),
        ({"activation": activation()}, "W4A8 int4-g128 / int8-token"),
        ({"format": "fp32", "activation": activation()}, "W32A8 fp32 / int8-token"),
        (
            {"activation": activation(), "kv_cache": KVCacheConfig(format="int8")},
            "W4A8KV8 int4-g128 / int8-token / int8",
        ),
        ({"kv_cache": KVCacheConfig(format="int4")}, "W4A16KV4 int4-g128 / none / int4"),
        (
            {"kv_cache": KVCacheConfig(format="int4", keys="channel", block=16, attention=["cross"])},
            "W4A16KV4 int4-g128 / none / int4-keys_channel-block16@cross",
        ),
        (
            {"kv_cache": KVCacheConfig(format="nvfp4", keys="group", values="group")},
            "W4A16KV4 int4-g128 / none / nvfp4",
        ),
        (
            {"activation": activation(granularity="tensor", calibrator="percentile")},
            "W4A8 int4-g128 / int8-tensor-percentile99.9",
        ),
        (
            {"activation": activation("nvfp4", "group", roles=["encoder"])},
            "W4A4 int4-g128 / nvfp4@encoder",
        ),
        (
            {"activation": activation("fp8_e4m3"), "decoder_activation": activation("int8", "tensor")},
            "W4A8 int4-g128 / fp8_e4m3-token@encoder+int8-tensor@decoder",
        ),
        (
            {"activation": activation("mxfp4", "group", options=FormatOptions(scale_rule="even"))},
            "W4A4 int4-g128 / mxfp4-even",
        ),
        ({"smoothquant": SmoothQuantConfig("fixed")}, "int4-g128 + smoothquant-0.5"),
        (
            {"smoothquant": SmoothQuantConfig("fixed", alpha_decoder=0.96)},
            "int4-g128 + smoothquant-encoder0.5,decoder0.96,cross0.5",
        ),
        (
            {"smoothquant": SmoothQuantConfig("search", scope="layer", fc2=True)},
            "int4-g128 + smoothquant-search-layer-fc2",
        ),
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
    ({"multilingual": True, "language": "German"}, {"multilingual": True, "language": "de"}),
    ({"dataset_language": "mandarin"}, {"dataset_language": "zh-CN"}),
    ({"group": 32}, {"format_options": {"group": 32}}),
    ({"granularity": "channel", "format_options": {"group": 32}}, {"granularity": "channel"}),
    ({"roles": ["encoder.mlp", "encoder.self_attn"]}, {"roles": ["encoder", "encoder.mlp"]}),
    ({"batch_size": 1}, {"batch_size": 64}),
    ({"device": "cpu"}, {"device": "auto"}),
    ({"tracking_uri": "sqlite:///a.db"}, {"experiment_name": "other"}),
    ({"rerun": True}, {}),
    ({"roles": ["encoder", "decoder"]}, {"roles": ["decoder", "encoder", "encoder"]}),
    ({"model": Content("nano", "m" * 64)}, {"model": Content("renamed", "m" * 64)}),
    ({"format": "int4"}, {"format": "int", "format_options": {"integer_bits": 4}}),
    ({"decoder_format": "int4"}, {}),
    ({"format": "int4", "roles": ["decoder"]}, {"format": "fp32", "decoder_format": "int4"}),
    ({"share_tensor_scale": True}, {}),
    ({"long_audio": "cut"}, {}),
    ({"window": "full"}, {}),
    ({"activation": ActivationConfig()}, {"activation": activation("fp32")}),
    ({"activation": activation(calibrator="mse")}, {"activation": activation()}),
    ({"activation": activation(), "decoder_activation": activation()}, {"activation": activation()}),
    (
        {"activation": ActivationConfig(), "decoder_activation": activation()},
        {"activation": activation(roles=["decoder"])},
    ),
    ({"kv_cache": KVCacheConfig(format="int8", block=16)}, {"kv_cache": KVCacheConfig(format="int8")}),
    ({"smoothquant": SmoothQuantConfig(alpha=0.7)}, {}),
    (
        {"smoothquant": SmoothQuantConfig("fixed", 0.1, 0.5, 0.5, 0.5)},
        {"smoothquant": SmoothQuantConfig("fixed")},
    ),
]
DIFFERENT = [
    ({"group": 32}, {"group": 128}),
    ({"format": "int4"}, {"format": "int3"}),
    ({"format": "mxfp4"}, {"format": "mxfp4", "format_options": {"scale_rule": "even"}}),
    ({"granularity": "channel"}, {"granularity": "tensor"}),
    ({"roles": ["encoder"]}, {}),
    ({"multilingual": True, "language": "de"}, {"multilingual": True, "language": "en"}),
    ({"max_new_tokens": 10}, {}),
    ({"long_audio": "chunk"}, {}),
    ({"seed": 1}, {}),
    ({"activation": activation()}, {"activation": activation("int4")}),
    ({"activation": activation()}, {"activation": activation(granularity="tensor")}),
    ({"activation": activation()}, {"activation": activation(options=FormatOptions(scale_dtype="fp16"))}),
    ({"decoder_format": "int3"}, {}),
    ({"format": "nvfp4", "share_tensor_scale": True}, {"format": "nvfp4"}),
    ({"kv_cache": KVCacheConfig(format="int8")}, {"kv_cache": KVCacheConfig(format="int8", keys="channel")}),
    (
        {"kv_cache": KVCacheConfig(format="int8")},
        {"kv_cache": KVCacheConfig(format="int8", attention=["self"])},
    ),
    ({"smoothquant": SmoothQuantConfig("fixed")}, {"smoothquant": SmoothQuantConfig("search")}),
    ({"model": Content("nano", "x" * 64)}, {}),
    ({"dataset": Content("commands", "x" * 64)}, {}),
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
    assert spec(share_tensor_scale=True).ignored == ("share_tensor_scale=true",)
    assert spec(activation=activation(calibrator="mse")).ignored == ("activation.calibrator=mse",)
    assert spec(activation=ActivationConfig(group=7)).ignored == ("activation.group=7",)
    assert spec(kv_cache=KVCacheConfig(keys="channel")).ignored == ("kv_cache.keys=channel",)
    assert spec(kv_cache=KVCacheConfig("int4", group=64, block=7)).ignored == (
        "kv_cache.group=64",
        "kv_cache.block=7",
    )
    assert spec(kv_cache=KVCacheConfig("int4", values="group", group=64)).ignored == ()
    even = FormatOptions(scale_rule="even")
    assert spec(kv_cache=KVCacheConfig("int8", options=even)).ignored == ("kv_cache.options.scale_rule=even",)
    assert spec(kv_cache=KVCacheConfig(options=even)).ignored == ("kv_cache.options.scale_rule=even",)
    assert spec(smoothquant=SmoothQuantConfig(alpha=0.7)).ignored == ("smoothquant.alpha=0.7",)
    assert spec(smoothquant=SmoothQuantConfig("search", alpha=0.7)).ignored == ("smoothquant.alpha=0.7",)
    assert spec(smoothquant=SmoothQuantConfig("fixed", scope="layer")).ignored == ("smoothquant.scope=layer",)
    assert spec(smoothquant=SmoothQuantConfig("fixed", alpha=0.7, fc2=True)).ignored == ()


def test_points_that_are_calibrated_otherwise_are_named_otherwise():
    config = configuration(activation=activation(granularity="tensor"))
    usual, fewer = (
        resolve_spec(
            config,
            resolve_treatment(config),
            MODEL,
            DATASET,
            320,
            "n",
            False,
            Calibration("calibration", count, "c" * 64),
        )
        for count in (64, 8)
    )
    assert usual.point == "W4A8 int4-g128 / int8-tensor"
    assert fewer.point == "W4A8 int4-g128 / int8-tensor + calibrated on 8"
    assert fewer.reference().point == "fp32"
    options = FormatOptions(scale_rule="even")
    assert spec(activation=activation(options=options)).ignored == ("activation.options.scale_rule=even",)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"activation": activation()}, False),
        ({"activation": activation("mxfp4", "group")}, False),
        ({"activation": activation("fp16", "tensor")}, False),
        ({"activation": activation("int8", "tensor")}, True),
        ({"activation": activation("nvfp4", "group")}, True),
        ({"decoder_activation": activation("nvfp4", "group")}, True),
        ({"kv_cache": KVCacheConfig(format="int8")}, False),
        ({"kv_cache": KVCacheConfig(format="nvfp4", keys="group", values="group")}, True),
        ({"smoothquant": SmoothQuantConfig("fixed")}, True),
    ],
)
def test_only_static_scales_and_smoothing_need_calibration(settings, needed):
    assert resolve_treatment(configuration(**settings)).treatment.needs_calibration is needed


def test_the_reference_of_every_point_is_the_same_fp32_job():
    references = {spec(**settings).reference().fingerprint for settings, _ in DIFFERENT[:5]}
    assert references == {spec(format="fp32").fingerprint}
    assert spec(format="fp32").is_reference
    assert not spec(format="fp16").is_reference


def test_the_fingerprint_is_stable():
    """It identifies stored results: if it changes, everybody's results are run again. Change it knowingly."""
    assert spec(group=32).fingerprint == "4e683ac61f7030dc"
    assert replace(spec(), ignored=("anything",)).fingerprint == spec().fingerprint


@pytest.mark.parametrize(
    ("arguments", "fingerprint"),
    [
        (["format=fp32"], "6951a3324bb45ea9"),
        (["format=int4", "group=32"], "98bc57ff1ff8e730"),
        (["format=int4", "group=32", "activation=int8_token", "kv_cache=int8"], "b9dd5b966ee92d11"),
        (["format=nvfp4", "dataset.language=de"], "4705323363e16ad6"),
        (["dataset.language=zh"], "d1f9b027ff5c24e5"),
        (["dataset.language=Mandarin"], "d1f9b027ff5c24e5"),
    ],
)
def test_points_of_the_shipped_model_and_speech_are_still_the_same(arguments, fingerprint):
    (config,) = compose([*arguments, "device=cpu"])
    assert prepare(config, arguments, looks_only=True).spec.fingerprint == fingerprint


SEARCHED = FormatOptions(int_range="asymmetric", scale_search="mse")


@pytest.mark.parametrize(
    ("settings", "fingerprint"),
    [
        ({}, "ddffb9c7ef4a053a"),
        ({"kv_cache": KVCacheConfig(format="int8")}, "95d0f2724744b088"),
        ({"format_options": {"scale_search": "mse"}}, "7b94a657ec9b55d2"),
        ({"format_options": {"int_range": "asymmetric"}}, "7fa4b55d047dec26"),
        ({"activation": activation(granularity="tensor")}, "b5f65b2a379b339c"),
        ({"smoothquant": SmoothQuantConfig("fixed")}, "22bece769aab33d3"),
    ],
)
def test_points_that_have_been_run_keep_their_fingerprints(settings, fingerprint):
    """As recorded when their results were: stored ones stay valid while the code gives the same numbers."""
    assert calibrated(**settings).fingerprint == fingerprint


@pytest.mark.parametrize(
    ("settings", "former"),
    [
        ({"format_options": {"int_range": "asymmetric", "scale_search": "mse"}}, "d6bb93eb7604e75d"),
        ({"activation": activation(options=SEARCHED)}, "2d60939ac244368e"),
        ({"kv_cache": KVCacheConfig("int4", options=SEARCHED)}, "414a50878107404f"),
        ({"activation": activation(granularity="tensor", calibrator="percentile")}, "32197de443d9bb3d"),
        ({"activation": activation(granularity="tensor", calibrator="mse")}, "a34ceb56a5748afa"),
        ({"activation": activation(granularity="tensor", calibrator="entropy")}, "bbbb5c9ffe7e0e38"),
        ({"decoder_activation": activation(granularity="tensor", calibrator="mse")}, "3aaf4a19bd1a15e4"),
        ({"smoothquant": SmoothQuantConfig("search")}, "bafe6fede29db967"),
    ],
)
def test_points_whose_numbers_have_changed_have_other_fingerprints(settings, former):
    """What scale_search=mse tries for asymmetric integers, and what calibration counts: once both ends of a
    range were not clipped alike, and the silence behind an audio counted as the audio."""
    assert calibrated(**settings).fingerprint != former


def calibrated(**settings):
    calibration = Calibration("calibration", 64, "c" * 64)
    config = configuration(**settings)
    resolved = resolve_treatment(config)
    return resolve_spec(config, resolved, MODEL, DATASET, 320, "normaliser-1", False, calibration)


def test_pieces_where_nothing_is_longer_than_the_window_are_no_other_point():
    config = configuration(long_audio="chunk")
    short = resolve_spec(
        config, resolve_treatment(config), MODEL, DATASET, 320, "normaliser-1", False, has_long_audio=False
    )
    assert short.fingerprint == spec().fingerprint
    assert short.ignored == ("long_audio=chunk",)


def test_a_window_that_cannot_be_shortened_is_no_other_point():
    whole = spec(window="auto")
    assert whole.fingerprint == spec().fingerprint
    assert whole.ignored == ("window=auto",)


def test_limit_is_told_where_it_chose():
    assert spec(limit=320).limit == 320
    assert spec(limit=1000).limit is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": -1}, "group=-1 must be at least 1"),
        ({"group": 0}, "group=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"long_audio": "split"}, "long_audio=split is unknown; choose one of cut, chunk"),
        ({"granularity": "row"}, "granularity=row is unknown; choose one of tensor, channel, group"),
        ({"device": "gpu"}, "device=gpu is unknown"),
        ({"roles": []}, "name a role"),
        ({"roles": ["encoder", "decodr"]}, "role decodr matches no layer"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"resamples": 1}, "resamples=1 gives no 95 % interval"),
        ({"format_options": {"integer_bits": 99}}, "integer_bits=99"),
        ({"format_options": {"int_range": "wide"}}, "int_range=wide"),
        ({"activation": {"granularity": "row"}}, "activation.granularity=row is unknown"),
        ({"activation": {"format": "int9"}}, "activation: format=int9 is unknown; choose one of"),
        ({"activation": {"format": "int8", "roles": ["embedding"]}}, "embedding is no linear layer"),
        ({"activation": {"format": "int8", "roles": ["encodr"]}}, "role encodr matches no layer"),
        ({"activation": {"calibrator": "mean"}}, "activation.calibrator=mean is unknown"),
        ({"activation": {"percentile": 101}}, "activation.percentile=101 must be from 50 to 100"),
        ({"kv_cache": {"values": "channel"}}, "kv_cache.values=channel is unknown; choose one of token"),
        ({"kv_cache": {"attention": ["both"]}}, "kv_cache.attention=both is unknown"),
        ({"kv_cache": {"block": 0}}, "kv_cache.block=0 must be at least 1"),
        ({"smoothquant": {"alpha": 1.5}}, "smoothquant.alpha=1.5 must be from 0 to 1"),
        ({"smoothquant": {"alpha_cross": -0.1}}, "smoothquant.alpha_cross=-0.1 must be from 0 to 1"),
        ({"smoothquant": {"method": "auto"}}, "smoothquant.method=auto is unknown"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    groups = {"activation": ActivationConfig, "kv_cache": KVCacheConfig, "smoothquant": SmoothQuantConfig}
    with pytest.raises(ConfigurationError, match=message.replace("[", r"\[")):
        spec(**{key: groups[key](**value) if key in groups else value for key, value in settings.items()})
