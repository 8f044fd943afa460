"""How much of a window a test set needs, what it makes of a point, and who must fit into it."""

from dataclasses import replace
from itertools import pairwise

import pytest

from wq.study.job.job import prepare
from wq.study.job.reuse import reads
from wq.study.resources import cost
from wq.study.resources.size import size_of
from wq.study.spec.composition import compose
from wq.study.spec.config import ConfigurationError
from wq.study.spec.spec import Spec
from wq.study.spec.window import LENGTHS, MARGIN, resolve_window
from wq.whisper.checkpoint.geometry import PUBLIC


@pytest.mark.parametrize(
    ("setting", "longest", "own", "window"),
    [
        ("full", 1.0, 30, None),
        ("auto", 1.0, 30, 6),
        ("auto", 3.0, 30, 8),
        ("auto", 3.01, 30, 12),
        ("auto", 6.6, 30, 12),
        ("auto", 19.0, 30, 24),
        ("auto", 19.5, 30, None),
        ("auto", 40.0, 30, None),
        ("auto", 2.0, 5, None),
        ("auto", 2.0, 8.5, 8),
        ("auto", 2.0, 8, None),
        ("10", 6.6, 30, 10),
        ("10", 10.0, 30, 10),
        ("30", 6.6, 30, None),
    ],
)
def test_windows(setting, longest, own, window):
    assert resolve_window(setting, longest, own) == window


@pytest.mark.parametrize(
    ("setting", "longest", "own", "message"),
    [
        ("31", 6.6, 30, "window=31 is longer than the model's own 30 s; give less, or full"),
        ("6", 6.6, 30, "window=6 does not hold the longest utterance, 6.6 s, .*; give at least 7, or auto"),
        ("20", 40.0, 30, "window=20 does not hold the longest utterance, 40 s, .*; give full"),
    ],
)
def test_what_does_not_fit_is_refused(setting, longest, own, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve_window(setting, longest, own)


@pytest.mark.parametrize("setting", ["long", "0", "7.5"])
def test_what_is_no_window_is_refused_before_anything_is_read(setting):
    with pytest.raises(ConfigurationError, match="is no window; give full, auto, or whole seconds"):
        compose([f"window={setting}", "model.path=nowhere"])


def test_lengths_are_few_and_ascend_by_half_at_most():
    assert all(low < high <= 1.5 * low for low, high in pairwise(LENGTHS))
    assert LENGTHS[0] > MARGIN


def prepared(*arguments: str) -> Spec:
    (config,) = compose([*arguments, "dataset.split=clean", "limit=3", "device=cpu"])
    return prepare(config, list(arguments), looks_only=True).spec


def test_a_shorter_window_is_another_point_with_another_reference():
    full, short = prepared("format=int4"), prepared("format=int4", "window=4", "calibration.limit=2")
    assert (full.window, short.window, short.reference().window) == (None, 4, 4)
    assert short.point == full.point
    assert short.fingerprint != full.fingerprint
    assert short.reference().fingerprint != full.reference().fingerprint
    assert set(reads(short)).isdisjoint(reads(full))
    assert short.reference().fingerprint == prepared("format=fp32", "window=4").fingerprint


def test_the_models_own_window_is_the_point_as_it_was():
    full = prepared("format=int4")
    for setting in ("window=5", "window=auto"):
        own = prepared("format=int4", setting)
        assert own.fingerprint == full.fingerprint
        assert own.ignored == (setting,)


def test_the_window_holds_the_calibration_speech_whether_or_not_a_point_needs_it():
    """Or points of one grid would have other references."""
    test_set = ("format=int4", "limit=1", "dataset.split=clean", "calibration.limit=1", "window=2")
    (config,) = compose([*test_set])  # 1.5 s of speech, and 2.6 s of calibration
    with pytest.raises(ConfigurationError, match="or the calibration split; give at least 3, or auto"):
        prepare(config, [], looks_only=True)
    (config,) = compose([*test_set, "dataset.calibration_split=null"])
    assert prepare(config, [], looks_only=True).spec.window == 2


def test_memory_is_that_of_the_shorter_window():
    """Keys and values of cross-attention: 2 x 4 layers x 384 values of 2 bytes for each of 50 positions a
    second."""
    geometry, spec = PUBLIC["openai/whisper-tiny.en"], prepared("format=int4")
    full, short = (
        cost.columns(geometry, size_of(geometry, each), each) for each in (spec, replace(spec, window=8))
    )
    assert full["kv_cache_bytes"] - short["kv_cache_bytes"] == (30 - 8) * 50 * 2 * 4 * 384 * 2
    assert all(short[column] < full[column] for column in full)
