"""Every experiment in conf/experiment composes into different points that can be."""

import pytest

from wq.catalogue import conf_dir
from wq.study.config import compose
from wq.study.effective import effective_spec
from wq.study.spec import Source

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


def points(*arguments: str) -> dict[str, str]:
    """The distinct points of a grid: fingerprint to name."""
    model, dataset = Source("nano", "m" * 64), Source("commands", "d" * 64)
    specs = [
        effective_spec(config, model, dataset, 320, "normaliser", False) for config in compose([*arguments])
    ]
    return {spec.fingerprint: spec.point for spec in specs}


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=() if name == "smoke" else pytest.mark.slow) for name in EXPERIMENTS],
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
