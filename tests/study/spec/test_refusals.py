"""What Hydra refuses is said in one line, in our words, with what was probably meant."""

import shlex

import pytest

from wq.console import did_you_mean, nearest, one_line
from wq.study.spec.composition import compose, explained, refuse_options
from wq.study.spec.config import ConfigurationError
from wq.study.spec.refusals import setting_names


def compose_explained(words: list[str]) -> None:
    with explained(words):
        refuse_options(words)
        compose(words)


def refusal(line: str) -> str:
    words = shlex.split(line)
    with pytest.raises(ConfigurationError) as caught:
        compose_explained(words)
    text = one_line(caught.value)
    assert "Key " not in text
    assert "config search path" not in text.lower()
    return text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("formt=int4", "formt is no setting; did you mean format? python -m wq.main --help lists all"),
        ("batchsize=1", "did you mean batch_size?"),
        ("dataset.splt=clean", "did you mean dataset.split?"),
        ("split=clean", "split is no setting; did you mean dataset.split?"),
        ("smoothquant.alfa=1", "did you mean smoothquant.alpha?"),
        ("zzz=1", "zzz is no setting; python -m wq.main --help lists all"),
        ("hydra.swep.dir=x", "hydra.swep.dir is no setting of Hydra's; python -m wq.main --cfg hydra"),
        ("format=INT4", "format=INT4 is unknown; did you mean int4? choose one of bf16, float"),
        ("format=int44", "format=int44 is unknown; did you mean int4"),
        ("decoder_format=int44", "decoder_format=int44 is unknown; did you mean int4"),
        ("format=int4,int44", "format=int44 is unknown; did you mean int4"),
        ("activation=int8", "did you mean int8_tensor or int8_token?"),
        ("hydra/launcher=slrm", "hydra/launcher=slrm is unknown; did you mean slurm?"),
        ("+experiment=smoek", "+experiment=smoek is unknown; did you mean smoke?"),
        ("experiment=smoke", "experiment=smoke takes a plus: +experiment=smoke"),
        (
            "model=openai/whisper-tiny",
            "is given as model.path=openai/whisper-tiny; choose one of base, base_en",
        ),
        ("dataset=./my.jsonl", "is given as dataset=manifest dataset.path=./my.jsonl"),
        ("dataset=./speech", "is given as dataset=folder dataset.path=./speech"),
        ("dataset=manifest", "dataset.path is missing; give dataset.path=..."),
        ("roles=encoder", "roles=encoder is no list; give roles=[encoder]"),
        ("limit=abc", "limit=abc is no whole number; give one"),
        ("smoothquant.alpha=much", "smoothquant.alpha=much is no number; give one"),
        ("rerun=maybe", "rerun=maybe is neither true nor false; give one of them"),
        ("expect_wer=3", "expect_wer=3 is no value for this setting"),
        ("format=int4, group=32", "format=int4, ends in a comma; the values of a grid stand without spaces"),
        ("format int4", "format is no setting; give key=value"),
        ("group=[1", "group=[1 cannot be read; quote"),
        ("--format int4", "--format is no option; settings are written without dashes: format=int4"),
        ("--format=int4", "settings are written without dashes: format=int4"),
        ("--format", "settings are written without dashes: format=VALUE"),
        ("dataset.language=klingon", "dataset.language=klingon is no language that Whisper knows"),
    ],
)
def test_refusals(line, says):
    assert says in refusal(line)


@pytest.mark.parametrize(
    "line", ["", "format=int4 group=32", "-m format=int4,int8", "--cfg job", "--multirun a=1"]
)
def test_what_hydra_has_is_no_wrong_option(line):
    refuse_options(shlex.split(line))


def test_every_setting_has_its_name():
    names = set(setting_names())
    assert {"group", "dataset.split", "activation.options.scale_rule", "decoder_format.element"} <= names


@pytest.mark.parametrize(
    ("text", "choices", "near", "meant"),
    [
        ("INT4", ["int4", "int", "mxint4"], ["int4"], "did you mean int4? "),
        (
            "int8",
            ["int8_token", "int8_tensor", "int4_token"],
            ["int8_token", "int8_tensor"],
            "did you mean int8_token or int8_tensor? ",
        ),
        ("fp33", ["fp16", "fp32", "int4"], ["fp32"], "did you mean fp32? "),
        ("splt", ["path", "split"], ["split"], "did you mean split? "),
        ("zzz", ["fp32", "int4"], [], ""),
        ("", ["fp32", "int4"], [], ""),
    ],
)
def test_nearest_by_hand(text, choices, near, meant):
    assert nearest(text, choices)[: len(near) or None] == near
    assert did_you_mean(text, choices) == meant
