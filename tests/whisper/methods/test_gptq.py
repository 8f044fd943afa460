"""GPTQ against rounding to nearest, the textbook's loop, and the values that formats can hold."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import REAL
from wq.catalogue import format_names, load_format
from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import dequantize, fake_quantize, quantize
from wq.numerics.formats import with_options
from wq.study.spec.composition import compose
from wq.study.spec.config import ConfigurationError, DatasetConfig
from wq.study.spec.resolution import resolve_treatment
from wq.study.speech.datasets import load_speech
from wq.whisper.calibration.calibration import observe
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding.decode import SAMPLING_RATE
from wq.whisper.layers.layers import assign, walk
from wq.whisper.layers.schemes import Assignment
from wq.whisper.layers.treatment import Gptq, Treatment
from wq.whisper.methods.gptq import inverse_factor, output_error, rounded_codes
from wq.whisper.methods.nearest import quantize_weights
from wq.whisper.methods.sequence import treated

ROWS, COLUMNS = 16, 136  # more than are brought up to date together; the last group is ragged
FORMATS = [name for name in format_names() if not load_format(name).is_cast]
GRANULARITIES = [("tensor", None), ("channel", None), ("group", 32), ("group", 48)]


def weight(seed=0):
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def moment(seed=1, rows=400):
    """Of inputs whose channels go together, as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(40, COLUMNS, generator=generator)
    x = torch.randn(rows, 40, generator=generator) @ mixing
    x += 0.3 * torch.randn(rows, COLUMNS, generator=generator)
    return x.T @ x


def values(nearest, codes):
    return dequantize(replace(nearest, codes=codes))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("granularity", "group"), GRANULARITIES)
def test_it_is_rounding_to_nearest_where_no_column_says_anything_of_another(name, granularity, group):
    nearest = quantize(weight(), load_format(name), granularity, group)
    codes = rounded_codes(weight(), 3.7 * torch.eye(COLUMNS), nearest)
    assert torch.equal(codes, nearest.codes)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("granularity", "group"), [GRANULARITIES[1], GRANULARITIES[3]])
def test_what_it_gives_lies_on_the_grid_and_disturbs_outputs_less(name, granularity, group):
    format = load_format(name)
    nearest = quantize(weight(), format, granularity, group)
    codes = rounded_codes(weight(), moment(), nearest)
    assert codes.dtype == nearest.codes.dtype
    rounded = values(nearest, codes)
    # codes that the format knows: what they stand for has these very codes under the same scales
    assert torch.isfinite(rounded).all()
    again = rounded_codes(rounded, torch.eye(COLUMNS), nearest)
    assert torch.equal(values(nearest, again), rounded)
    before, after = (output_error(each - weight(), moment()) for each in (dequantize(nearest), rounded))
    assert after < before


def textbook(weight, hessian, nearest, damping, order):
    """Column after column, the inverse taken anew for the columns that are left: no factor, no blocks."""
    diagonal = hessian.diagonal()
    columns = (
        torch.argsort(diagonal, descending=True, stable=True).tolist() if order else list(range(COLUMNS))
    )
    damped = hessian.double() + damping * diagonal.double().mean() * torch.eye(COLUMNS)
    left, codes = weight.double().clone(), torch.empty_like(nearest.codes)
    while columns:
        inverse = torch.linalg.inv(damped[columns][:, columns])
        column = columns.pop(0)
        trial = weight.clone()
        trial[:, column] = left[:, column].float()
        found = rounded_codes(trial, torch.eye(COLUMNS), nearest)[:, column]
        codes[:, column] = found
        error = left[:, column] - values(nearest, codes)[:, column].double()
        left[:, columns] -= error[:, None] * (inverse[0, 1:] / inverse[0, 0])[None, :]
    return codes


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize(("name", "granularity", "group"), [("int4", "group", 48), ("nvfp4", "group", 16)])
def test_codes_are_those_of_the_textbook(name, granularity, group, order):
    nearest = quantize(weight(), load_format(name), granularity, group)
    codes = rounded_codes(weight(), moment(), nearest, 0.01, order)
    expected = textbook(weight(), moment(), nearest, 0.01, order)
    assert (codes != expected).float().mean() < 1e-3  # ties that the last bits decide


def test_asymmetric_and_searched_scales_are_kept():
    format = with_options(load_format("int4"), int_range="asymmetric")
    format = replace(format, scale_search="mse")
    nearest = quantize(weight() + 1, format, "group", 48)
    codes = rounded_codes(weight() + 1, moment(), nearest)
    assert codes.min() >= -8  # offset by the zero point
    assert codes.max() <= 7
    before, after = (
        output_error(each - weight() - 1, moment()) for each in (dequantize(nearest), values(nearest, codes))
    )
    assert after < before


def test_a_column_that_reads_nothing_goes_to_the_nearest():
    dead = moment()
    dead[7] = dead[:, 7] = 0
    nearest = quantize(weight(), load_format("int4"), "group", 32)
    codes = rounded_codes(weight(), dead, nearest)
    assert torch.equal(codes[:, 7], nearest.codes[:, 7])


def test_a_moment_that_cannot_be_inverted_is_told():
    few = moment(rows=30)
    with pytest.raises(ValueError, match=r"cannot be inverted with algorithm.damping=0; give more damping"):
        inverse_factor(few - few.diagonal().mean() * torch.eye(COLUMNS), 0.0, True)
    copied = moment()
    copied[3], copied[:, 3] = copied[5].clone(), copied[:, 5].clone()
    copied[3, 3] = copied[5, 5]
    with pytest.raises(ValueError, match=r"cannot be inverted with algorithm.damping=0; give more damping"):
        inverse_factor(copied, 0.0, True)
    for moments in (few, copied):
        inverse_factor(moments, 0.01, True)


ASSIGNED = (Assignment(Quantizer(load_format("int4"), "group", 32), ("encoder", "decoder")),)


def observed(whisper, speech, batch_size):
    return observe(
        whisper,
        lambda index: speech.read(index, SAMPLING_RATE),
        4,
        batch_size=batch_size,
        language="en",
        moments=True,
    )


def test_a_model_holds_what_an_export_takes_whatever_the_batches_of_calibration(nano):
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split="calibration"), limit=4)
    treatment = Treatment(ASSIGNED, (Gptq(),))
    originals = [layer.weight.data.clone() for layer in walk(nano.model)]
    seen = [observed(nano, speech, batch_size) for batch_size in (1, 3)]
    held = []
    for statistics in seen:
        with treated(nano, treatment, lambda *_, statistics=statistics: statistics) as state:
            held.append({layer.name: layer.weight.data.clone() for layer, _ in state.plan})
    with treated(nano, treatment, lambda *_: seen[0], codes_only=True) as state:
        codes = state.codes
    nearest = {layer.name: dequantize(each) for layer, each in quantize_weights(state.plan)}
    moved = 0
    for name, one in held[0].items():
        assert torch.equal(one, held[1][name])
        assert torch.equal(one, dequantize(codes[name]))
        moved += int((one != nearest[name]).sum())
    assert moved > 0
    for layer, original in zip(walk(nano.model), originals, strict=True):
        assert torch.equal(layer.weight.data, original)


@pytest.mark.parametrize(
    ("settings", "point"),
    [
        ("format=int4 group=32 algorithm=gptq", "int4-g32-gptq"),
        ("format=int4 algorithm=gptq algorithm.damping=0.1", "int4-g128-gptq-damping0.1"),
        ("format=nvfp4 algorithm=gptq algorithm.activation_order=false", "nvfp4-gptq-no_activation_order"),
    ],
)
def test_points_are_called_by_their_algorithm(settings, point):
    from tests.study.spec.test_fingerprints import REFERENCES
    from wq.study.spec.resolution import resolve_spec
    from wq.study.spec.spec import Calibration, Content

    (config,) = compose(settings.split())
    resolved = resolve_treatment(config)
    sources = Content("nano", "m" * 64), Content("commands", "d" * 64)
    calibration = Calibration("calibration", 64, "c" * 64)
    spec = resolve_spec(config, resolved, *sources, 320, "normaliser-1", False, calibration)
    assert spec.point == point
    assert spec.calibration == calibration
    assert spec.reference().fingerprint == REFERENCES["cut"]


def test_what_gptq_cannot_do_is_told():
    (config,) = compose(["format=fp16", "algorithm=gptq"])
    assert "algorithm=gptq" in resolve_treatment(config).ignored
    (config,) = compose(["format=int4", "algorithm=gptq", "roles=[conv,embedding]"])
    assert "algorithm=gptq" in resolve_treatment(config).ignored
    (config,) = compose(["format=int4", "algorithm.damping=0.2"])
    assert "algorithm.damping=0.2" in resolve_treatment(config).ignored
    with pytest.raises(ConfigurationError, match=r"algorithm\.damping=-1\.0 must be at least 0"):
        compose(["format=int4", "algorithm=gptq", "algorithm.damping=-1"])


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL / "tiny_en").is_dir(), reason="../shared/real with tiny_en and speech is not there"
)
@pytest.mark.parametrize(("name", "granularity", "group"), [("int4", "group", 128), ("mxfp4", "group", 32)])
def test_no_layer_of_tiny_en_is_disturbed_more_than_by_the_nearest(name, granularity, group):
    whisper = load(REAL / "tiny_en")
    config = DatasetConfig(source="manifest", path=str(REAL / "speech"), split="fluent_calibration")
    seen = observed(whisper, load_speech(config, limit=4), 4)
    quantizer = Quantizer(load_format(name), granularity, group)
    plan = assign(list(walk(whisper.model)), (Assignment(quantizer, ("encoder", "decoder")),))
    for layer, nearest in quantize_weights(plan):
        original, own = layer.weight.data, seen[layer.name].moment
        assert own is not None
        codes = rounded_codes(original, own, nearest)
        before, after = (
            output_error(each - original, own) for each in (dequantize(nearest), values(nearest, codes))
        )
        assert after <= before, layer.name


def test_the_grid_is_the_formats():
    """Of a format whose values are few: what gptq leaves is what fake quantization leaves alone."""
    format = load_format("fp4_e2m1")
    nearest = quantize(weight(), format, "tensor")
    rounded = values(nearest, rounded_codes(weight(), moment(), nearest))
    assert nearest.scale is not None
    scale = nearest.scale.item()
    kept = fake_quantize(rounded, format, "tensor", amax=format.max * scale)
    torch.testing.assert_close(kept, rounded, rtol=1e-6, atol=1e-7)
