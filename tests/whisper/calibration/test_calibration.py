"""Statistics of layers' inputs against the inputs themselves, and ranges against direct searches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import fake_quantize
from wq.study.spec.config import with_wide_scale
from wq.whisper.calibration.cache import cached
from wq.whisper.calibration.calibration import BINS, SAMPLE_ROWS, Observed, bin_edges, bins_of, observe
from wq.whisper.calibration.ranges import SHARES, linear_histogram, range_of
from wq.whisper.decoding.decode import SAMPLING_RATE
from wq.whisper.layers.layers import walk
from wq.whisper.layers.schemes import Activation

COUNT = 3


def observed_of(values, sample=None):
    """The statistics of a tensor [..., K], as an observer of it would have them."""
    x = values.reshape(-1, values.shape[-1])
    bins = torch.bincount((bins_of(x) + BINS * (x >= 0)).flatten(), minlength=2 * BINS)
    return Observed(
        tokens=len(x),
        amin=min(x.min().item(), 0.0),
        amax=max(x.max().item(), 0.0),
        channel_max=x.abs().amax(0),
        negative=bins[:BINS],
        positive=bins[BINS:],
        token_max=torch.bincount(bins_of(x.abs().amax(1)), minlength=BINS),
        sample=x if sample is None else sample,
        output_amax=0.0,
    )


def activation(format, granularity="tensor", calibrator="max", percentile=None, **options):
    described = replace(with_wide_scale(load_format(format)), **options)
    return Activation(Quantizer(described, granularity), calibrator, percentile)


@pytest.fixture(scope="module")
def seen(nano, commands):
    def observed(batch_size):
        read = lambda index: commands.read(index, SAMPLING_RATE)  # noqa: E731
        return observe(nano, read, COUNT, batch_size=batch_size, language="en", max_new_tokens=6)

    return observed(1), observed(2)


@pytest.fixture(scope="module")
def real_inputs(nano, commands):
    """What two layers read, gathered by plain hooks, one utterance at a time."""
    from tests.whisper.decoding.test_decode import run

    names = ("model.encoder.layers.2.fc2", "model.decoder.layers.1.self_attn.v_proj")
    gathered = {name: [] for name in names}
    handles = [
        nano.model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: gathered[name].append(args[0].flatten(0, 1).clone())
        )
        for name in names
    ]
    run(nano, commands, list(range(COUNT)), 1, max_new_tokens=6)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in gathered.items()}


@pytest.fixture(scope="module")
def audible(nano, commands, real_inputs):
    """Of those inputs, what stands for audio or text: the first frames of every window, and all tokens."""
    positions = nano.model.config.max_source_positions
    lengths = [len(commands.read(index, SAMPLING_RATE)) / SAMPLING_RATE for index in range(COUNT)]
    frames = [math.ceil(length / nano.window_seconds * positions) for length in lengths]
    encoder, decoder = real_inputs
    assert sum(frames) < len(real_inputs[encoder]) / 2
    windows = real_inputs[encoder].split(positions)
    heard = torch.cat([window[:count] for window, count in zip(windows, frames, strict=True)])
    return {encoder: heard, decoder: real_inputs[decoder]}


def test_statistics_are_those_of_the_inputs(seen, real_inputs, audible):
    for name, everything in real_inputs.items():
        found, x = seen[0][name], audible[name]
        assert (found.amin, found.amax) == (min(everything.min().item(), 0), max(everything.max().item(), 0))
        assert torch.equal(found.channel_max, everything.abs().amax(0))
        assert found.tokens == len(x)
        assert int(found.histogram.sum()) == x.numel()
        assert int(found.negative.sum()) == int((x < 0).sum())
        assert int(found.token_max.sum()) == len(x)
        edges = bin_edges()
        for count, low, high in zip(found.histogram[::97], edges[:-1:97], edges[1::97], strict=True):
            assert count == int(((x.abs() >= low) & (x.abs() < high)).sum())


def test_statistics_do_not_depend_on_the_batch(seen):
    one, four = seen
    assert list(one) == list(four)
    for name in one:
        assert one[name].tokens == four[name].tokens
        for part in ("channel_max", "negative", "positive", "token_max", "sample"):
            torch.testing.assert_close(
                getattr(one[name], part), getattr(four[name], part), rtol=1e-5, atol=1e-5
            )


def test_all_linear_layers_are_seen_and_share_what_they_read(nano, seen):
    layers = [layer for layer in walk(nano.model) if layer.is_linear]
    assert list(seen[0]) == [layer.name for layer in layers]
    by_source = {}
    for layer in layers:
        by_source.setdefault(layer.source, set()).add(id(seen[0][layer.name].sample))
    assert all(len(samples) == 1 for samples in by_source.values())
    assert seen[0]["model.decoder.layers.0.encoder_attn.k_proj"].output_amax > 0


def test_what_all_cross_attention_reads_is_audio_too(seen, audible):
    frames, tokens = map(len, audible.values())
    assert seen[0]["model.decoder.layers.1.encoder_attn.k_proj"].tokens == frames
    assert seen[0]["model.decoder.layers.1.encoder_attn.q_proj"].tokens == tokens


def test_the_sample_is_of_the_inputs_and_bounded(seen, audible):
    for name, x in audible.items():
        sample = seen[0][name].sample
        assert len(sample) == min(SAMPLE_ROWS, len(x))
        known = {row.numpy().tobytes() for row in x}
        assert all(row.numpy().tobytes() in known for row in sample)


def test_the_maximum_covers_everything():
    x = torch.tensor([[-3.0, 0.5, 2.0, 0.0]])
    assert range_of(observed_of(x), activation("int8")) == (-3.0, 3.0)
    assert range_of(observed_of(x), activation("int8", int_range="asymmetric")) == (-3.0, 2.0)
    assert range_of(observed_of(x.abs()), activation("int8", int_range="asymmetric")) == (0.0, 3.0)
    assert range_of(observed_of(torch.zeros(1, 4)), activation("int8", calibrator="entropy")) == (0.0, 0.0)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentiles_are_numpys_within_a_bin(percentile):
    x = torch.randn(40, 500, generator=torch.Generator().manual_seed(0))
    found = range_of(observed_of(x), activation("int8", calibrator="percentile", percentile=percentile))
    assert found.amax == pytest.approx(np.percentile(x.abs().numpy(), percentile), rel=5e-3)
    assert found.amin == -found.amax


def test_percentiles_with_a_zero_point_have_equal_tails():
    x = torch.randn(40, 500, generator=torch.Generator().manual_seed(0)).add(1.0)
    scheme = activation("int8", calibrator="percentile", percentile=98.0, int_range="asymmetric")
    expected = np.percentile(x.numpy(), [1.0, 99.0])
    np.testing.assert_allclose(range_of(observed_of(x), scheme), expected, rtol=2e-2)


@pytest.mark.parametrize("format", ["int8", "int4", "fp8_e4m3", "fp4_e2m1"])
def test_least_squares_is_the_search_over_all_values(format):
    torch.manual_seed(0)
    x = torch.randn(100, 200) * torch.where(torch.rand(100, 200) < 1e-3, 30.0, 1.0)
    scheme = activation(format, calibrator="mse")
    found = range_of(observed_of(x), scheme).amax

    def error(amax):
        return (fake_quantize(x, *scheme.quantizer, amax=amax) - x).double().square().sum().item()

    best = min(error(share * x.abs().max().item()) for share in SHARES)
    assert error(found) == pytest.approx(best, rel=2e-3)
    if format == "int4":  # outliers are cut where there are few codes
        assert found < 0.7 * x.abs().max()


def test_least_squares_of_a_tensor_scale_is_over_blocks():
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    scheme = activation("nvfp4", "group", "mse")
    found = range_of(observed_of(x), scheme).amax
    whole = range_of(observed_of(x), activation("nvfp4", "group")).amax
    errors = [(fake_quantize(x, *scheme.quantizer, amax=a) - x).square().sum() for a in (found, whole)]
    assert errors[0] <= errors[1]


def test_entropy_cuts_outliers_and_keeps_what_has_none():
    torch.manual_seed(0)
    x = torch.randn(200, 200)
    spoilt = x.clone()
    spoilt[0, 0] = 400.0
    scheme = activation("int8", calibrator="entropy")
    assert range_of(observed_of(spoilt), scheme).amax < 0.1 * 400
    even = torch.rand(200, 200) * 2 - 1
    assert range_of(observed_of(even), scheme).amax > 0.95


def histograms():
    """Values of five shapes: what their clipping costs differs."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(200, 200, generator=g)
    uniform = torch.rand(200, 200, generator=g).clamp(1e-6, 1 - 1e-6)
    laplace = torch.distributions.Laplace(0.0, 1.0).icdf(uniform)
    outliers = torch.where(torch.rand(200, 200, generator=g) < 1e-3, 100.0, 1.0)
    return {
        "normal": normal,
        "laplace": laplace,
        "outliers": laplace * outliers,
        "gelu": torch.nn.functional.gelu(3 * normal),
        "narrow": torch.cat([uniform * 1e-3, torch.ones(1, 200)]),
    }


def chosen_bins(counts, levels):
    """Migacz's method bin by bin: how many of the histogram's bins the range of least divergence has."""
    divergences = {}
    for bins in range(128, len(counts) + 1):
        nearest = [round((i + 0.5) / bins * levels) for i in range(bins)]
        members = {}
        for count, level in zip(counts[:bins], nearest, strict=True):
            members.setdefault(level, []).append(count)
        means = {
            level: sum(found) / max(sum(count > 0 for count in found), 1) for level, found in members.items()
        }
        q = np.array([means[level] if counts[i] > 0 else 0.0 for i, level in enumerate(nearest)])
        p = np.append(counts[: bins - 1], counts[bins - 1 :].sum())
        q = np.maximum(q / max(q.sum(), 1e-300), 1e-12)
        p, q = p[p > 0] / p.sum(), q[p > 0]
        divergences[bins] = np.sum(p * np.log(p / q))
    return min(divergences, key=divergences.__getitem__)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format", "levels"), [*((name, "int8", 127) for name in histograms()), ("outliers", "int4", 7)]
)
def test_entropy_is_migaczs(name, format, levels):
    x = histograms()[name]
    amax = x.abs().max().item()
    counts = linear_histogram(observed_of(x), amax)
    expected = chosen_bins(counts, levels)
    assert expected >= 128
    found = range_of(observed_of(x), activation(format, calibrator="entropy")).amax
    assert found == pytest.approx(expected / 2048 * amax)


def test_entropy_clips_to_a_sixteenth_of_the_range_at_most():
    """With fewer of its bins than an int8 has levels, a histogram shows no rounding."""
    x = histograms()["outliers"]
    for format in ("int8", "int4", "int3"):
        found = range_of(observed_of(x), activation(format, calibrator="entropy")).amax
        assert found >= x.abs().max().item() / 16


def test_statistics_are_kept_and_a_corrupt_file_is_made_anew(seen, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WQ_CACHE", str(tmp_path))
    key, calls = {"model": "a"}, []

    def compute():
        calls.append(1)
        return seen[0]

    for _ in range(2):
        found = cached(key, compute)
        for name, each in seen[0].items():
            other = found[name]
            assert (each.tokens, each.amin, each.amax) == (other.tokens, other.amin, other.amax)
            assert each.output_amax == other.output_amax
            assert torch.equal(each.sample, other.sample)
            assert torch.equal(each.histogram, other.histogram)
    assert len(calls) == 1
    (file,) = (tmp_path / "calibration").iterdir()
    content = bytearray(file.read_bytes())
    for damage in (content[: len(content) // 2], content[:-9] + b"x" + content[-8:]):
        file.write_bytes(damage)
        capsys.readouterr()
        cached(key, compute)
        err = capsys.readouterr().err
        assert err.count("\n") <= 1  # told once of every file
    assert len(calls) == 3
    cached({"model": "b"}, compute)
    assert len(calls) == 4
