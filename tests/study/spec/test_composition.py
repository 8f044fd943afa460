"""What is typed is what is meant: texts stay texts, and keys that are none are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wq.study.spec.composition import compose, respell
from wq.study.spec.config import ConfigurationError

TEXTS = ("experiment_name", "tracking_uri", "model.path", "model.revision", "dataset.name")


@pytest.mark.parametrize("text", ["2026_11_27", "1e3", "true", "NULL", "12:30:00"])
def test_texts_stay_as_they_are_typed(text: str):
    typed = [f"{key}={text}" for key in TEXTS]
    (config,) = compose([*typed, f"roles=[{text},encoder]", "dataset.split=1_0"])
    assert config.experiment_name == config.tracking_uri == config.dataset.name == text
    assert config.model.path == config.model.revision == text
    assert (config.roles, config.dataset.split) == ([text, "encoder"], "1_0")


def test_null_is_a_text_only_where_nothing_may_be_null():
    (config,) = compose(["experiment_name=null", "dataset.name=null", "tracking_uri=null"])
    assert (config.experiment_name, config.dataset.name, config.tracking_uri) == ("null", "commands", None)


RESPELLED = {
    "experiment_name=1e3,a,0010, -1": "experiment_name='1e3',a,0010, '-1'",
    "experiment_name=choice(1e3,a)": "experiment_name=choice('1e3',a)",
    "experiment_name=range(1,3)": "experiment_name=range(1,3)",
    "experiment_name='1e3'": "experiment_name='1e3'",
    "experiment_name=${oc.env:X,1e3}": "experiment_name=${oc.env:X,1e3}",
    "hydra.run.dir=2026_11_27": "hydra.run.dir='2026_11_27'",
    "hydra.sweep.dir=1e3/2": "hydra.sweep.dir=1e3/2",
    "batch_size=1_0": "batch_size=1_0",
    "kv_cache.options.scale_dtype=1e3": "kv_cache.options.scale_dtype='1e3'",
    "expect_wer.nano=[1,2]": "expect_wer.nano=[1,2]",
    "decoder_format=int8": "format@decoder_format=int8",
    "+chunk=2": "chunk=2",
    "+experiment=wer_by_format": "+experiment=wer_by_format",
    "hydra/launcher=joblib": "hydra/launcher=joblib",
    "--config-dir=1e3": "--config-dir=1e3",
    "-m": "-m",
}


@pytest.mark.parametrize("typed", RESPELLED)
def test_what_hydra_gets(typed: str):
    assert respell([typed]) == [RESPELLED[typed]]


@given(st.text(alphabet="abz019_.-+eE", min_size=1, max_size=8))
def test_any_word_stays_as_it_is_typed(word: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides(respell([f"experiment_name={word}"]))
    value = parsed.value()
    assert getattr(value, "text", value) == word


UNKNOWN = {
    "batchsize=1": "batchsize is no setting; did you mean batch_size?",
    "+batchsize=1": "batchsize is no setting; did you mean batch_size?",
    "++batchsize=1": "batchsize is no setting; did you mean batch_size?",
    "dataset.pth=x": "dataset.pth is no setting; did you mean dataset.path?",
    "+dataset.pth=x": "dataset.pth is no setting; did you mean dataset.path?",
    "++kv_cache.options.scal_dtype=fp32": "did you mean kv_cache.options.scale_dtype?",
    "+format.groups=3": "format.groups is no setting; did you mean format.group?",
    "+calibration.foo=1": "calibration.foo is no setting; choose one of calibration.limit",
    "+decoder_format.groups=3": "decoder_format.groups is no setting; did you mean decoder_format.group?",
}


@pytest.mark.parametrize("typed", UNKNOWN)
def test_keys_that_are_none_are_refused(typed: str):
    with pytest.raises(ConfigurationError) as refused:
        compose(["decoder_format=int8", typed])
    assert UNKNOWN[typed] in str(refused.value)


def test_what_is_known_may_be_added():
    assert compose(["+expect_wer.nano=[0.1,0.2]"])[0].expect_wer == {"nano": [0.1, 0.2]}
    assert len(compose(["+experiment=wer_by_format"])) > 1
