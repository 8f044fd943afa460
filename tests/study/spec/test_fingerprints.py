"""Fingerprints recorded when stores were first written: results stay found, however the code is arranged.

Three are newer than the rest, as their numbers changed: a search of asymmetric integers' scales clips both
ends, and what calibration counts leaves out the silence behind an audio. If one of these changes, everybody's
results of such points are run again: change it knowingly, with a version of what gives other numbers.
"""

import pytest

from wq.study.spec.composition import compose
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Calibration, Content

# settings, the point's name, its fingerprint
RECORDED = [
    ("format=fp32", "fp32", "b886132e7f8a6784"),
    ("format=fp16", "fp16", "70e4afb6261cef28"),
    ("format=int4 group=32", "int4-g32", "29d1f896c44e0eef"),
    ("format=int8 granularity=channel", "int8-channel", "743a06819566d7bb"),
    ("format=nvfp4 share_tensor_scale=true", "nvfp4-fused", "b3b2be6b11d107f2"),
    ("format=mxfp4 format.scale_rule=even", "mxfp4-even", "cb68e421f5b456a9"),
    (
        "format=int4 format.int_range=asymmetric format.scale_search=mse",
        "int4-asymmetric-mse-g128",
        "fe788139d4d5d2ed",
    ),
    ("format=nf4 decoder_format=fp8_e4m3", "nf4-g64@encoder+fp8_e4m3-g128@decoder", "bd5a09917076ad6f"),
    ("format=int3 roles=[encoder.mlp,embedding]", "int3-g128@encoder.mlp,embedding", "1c755744855e2539"),
    ("format=int8 activation=int8_token", "W8A8 int8-g128 / int8-token", "56b0d2cb921bfd64"),
    (
        "format=int4 activation=int8_tensor activation.calibrator=percentile",
        "W4A8 int4-g128 / int8-tensor-percentile99.9",
        "636a1d597ffaba27",
    ),
    (
        "format=int8 activation=nvfp4 decoder_activation=int8_token",
        "W8A4+8 int8-g128 / nvfp4@encoder+int8-token@decoder",
        "db663f4fe7936a4f",
    ),
    ("format=fp32 activation=mxfp8", "W32A8 fp32 / mxfp8_e4m3", "73214a357228a98b"),
    (
        "format=int4 smoothquant=fixed smoothquant.alpha=0.8 smoothquant.fc2=true activation=int8_token",
        "W4A8 int4-g128 / int8-token + smoothquant-0.8-fc2",
        "91347e6d8fe7a0f1",
    ),
    (
        "format=int4 smoothquant=search smoothquant.scope=layer",
        "int4-g128 + smoothquant-search-layer",
        "46b501f7d85703f3",
    ),
    (
        "format=fp32 kv_cache=int4 kv_cache.keys=channel",
        "W32A16KV4 fp32 / none / int4-keys_channel",
        "dea0280871c9ea2d",
    ),
    (
        "format=int4 kv_cache=nvfp4 kv_cache.attention=[cross]",
        "W4A16KV4 int4-g128 / none / nvfp4@cross",
        "6ecec930a70c0256",
    ),
    ("format=int8 long_audio=chunk max_new_tokens=40 seed=3", "int8-g128", "ca8ef2513685474b"),
    (
        "format=float format.exponent_bits=3 format.mantissa_bits=2 group=16 granularity=group",
        "float-e3m2-g16",
        "c8f5f46a692b0960",
    ),
]
REFERENCES = {
    "cut": "b886132e7f8a6784",
    "chunk": "c0152ea8bca33412",
}  # the latter of another seed too


@pytest.mark.parametrize(("settings", "point", "fingerprint"), RECORDED, ids=[row[0] for row in RECORDED])
def test_points_of_earlier_stores_are_found(settings, point, fingerprint):
    (config,) = compose(settings.split())
    model, dataset = Content("nano", "m" * 64), Content("commands", "d" * 64)
    calibration = Calibration("calibration", 64, "c" * 64)
    resolved = resolve_treatment(config)
    spec = resolve_spec(config, resolved, model, dataset, 320, "normaliser-1", False, calibration)
    assert (spec.point, spec.fingerprint) == (point, fingerprint)
    assert spec.reference().fingerprint == REFERENCES[spec.long_audio]
