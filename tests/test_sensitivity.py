"""One role or layer at a time: the parts, the error of their outputs, and the command in miniature."""

import csv
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from wq.console import Ending
from wq.study.job.sensitivity import only, output_error, parts_of, scheme_of
from wq.study.spec.composition import compose
from wq.study.spec.config import ConfigurationError
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Content, Spec
from wq.whisper.calibration.calibration import Observed, observe
from wq.whisper.checkpoint.geometry import Geometry
from wq.whisper.layers.layers import walk
from wq.whisper.layers.roles import LINEAR_ROLES


def spec_of(*arguments: str) -> Spec:
    (config,) = compose([*arguments])
    source = Content("nano", "m" * 64)
    return resolve_spec(config, resolve_treatment(config), source, source, 320, "normaliser", False)


@pytest.fixture(scope="module")
def seen(nano, commands) -> dict[str, Observed]:
    """What the layers of the shipped model read on two utterances."""
    return observe(nano, lambda index: commands.read(index, 16_000), 2, batch_size=2, language="en")


def test_parts_are_the_roles_or_the_layers_of_every_block():
    geometry = Geometry(encoder_layers=2, decoder_layers=3)
    assert parts_of(["encoder", "decoder"], "role", geometry) == list(LINEAR_ROLES)
    layers = parts_of(["encoder", "decoder", "embedding"], "layer", geometry)
    assert len(layers) == 2 * 6 + 3 * 10 + 1 == len(set(layers))
    assert layers[:7] == [f"{role}:0" for role in LINEAR_ROLES[:6]] + ["encoder.self_attn.q:1"]
    assert parts_of(["decoder.mlp"], "layer", geometry)[-1] == "decoder.mlp.fc2:2"
    with pytest.raises(ValueError, match="role nothing matches no layer"):
        parts_of(["nothing"], "layer", geometry)


def test_only_the_part_is_rounded_and_its_inputs_where_activations_are():
    (config,) = compose(["format=int4", "activation=int8_token"])
    narrowed, settings = only(config, "encoder.mlp.fc1:1")
    assert settings == ["roles=[encoder.mlp.fc1:1]", "activation.roles=[encoder.mlp.fc1:1]"]
    assert narrowed == compose(["format=int4", "activation=int8_token", *settings])[0]
    spec = spec_of("format=int4", "activation=int8_token", *settings)
    assert [each.roles for each in (*spec.treatment.plan, *spec.treatment.activations)] == [
        ("encoder.mlp.fc1:1",)
    ] * 2
    assert scheme_of(spec) == "int4-g128 / int8-token"


@pytest.mark.parametrize("setting", ["smoothquant=fixed", "kv_cache=int8"])
def test_what_is_for_a_whole_model_is_refused(setting):
    (config,) = compose([setting])
    with pytest.raises(ConfigurationError, match=f"^{setting.partition('=')[0]}=\\w+ is for a whole model"):
        only(config, "encoder")


def test_quantizing_nothing_gives_no_error(nano, seen):
    assert output_error(nano, "encoder", spec_of("format=fp32"), seen) == 0.0


@pytest.mark.parametrize("layer", ["encoder.mlp.fc1:0", "decoder.cross_attn.v:1"])
@pytest.mark.parametrize("activation", ["none", "int8_token"])
def test_the_error_of_a_layer_is_that_of_its_own_products(nano, seen, layer, activation):
    """Against int8 of one scale for every output channel, and for every token, written out."""
    setting = f"roles=[{layer}]", f"activation.roles=[{layer}]"
    spec = spec_of("format=int8", "granularity=channel", f"activation={activation}", *setting)
    (weight,) = (each for each in walk(nano.model) if each.block_role == layer)
    linear = nano.model.get_submodule(weight.name)
    x, w = seen[weight.name].sample, linear.weight.detach().clone()

    def rounded(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        scale = (rows.abs().amax(1, keepdim=True) / 127).to(dtype).float()
        return (rows / scale).round().clamp(-127, 127) * scale

    expected = x @ w.T + (0 if linear.bias is None else linear.bias)
    inputs = x if activation == "none" else rounded(x, torch.float32)
    found = inputs @ rounded(w, torch.float16).T + (0 if linear.bias is None else linear.bias)
    independent = ((found - expected).norm() / expected.norm()).item()
    assert independent > 1e-3
    assert output_error(nano, layer, spec, seen) == pytest.approx(independent, rel=1e-3)
    assert torch.equal(linear.weight, w)


def test_the_errors_of_a_role_are_those_of_its_layers(nano, seen):
    def error(part: str) -> float:
        return output_error(nano, part, spec_of("format=int3", f"roles=[{part}]"), seen) or 0.0

    blocks = [error(f"encoder.mlp.fc2:{block}") for block in range(nano.model.config.encoder_layers)]
    assert min(blocks) < error("encoder.mlp.fc2") < max(blocks)
    assert error("encoder.mlp.fc2") > 5 * (
        output_error(nano, "encoder.mlp.fc2", spec_of("format=int8", "roles=[encoder.mlp.fc2]"), seen) or 0.0
    )


def test_what_is_no_linear_layer_has_no_such_error(nano, seen):
    assert output_error(nano, "embedding", spec_of("format=int4", "roles=[embedding]"), seen) is None


ARGUMENTS = (
    "format=int4,int8,int4",
    "roles=[decoder.mlp.fc1]",
    "by=layer",
    "limit=2",
    "resamples=40",
    "out=here",
)


@pytest.mark.slow
def test_the_command_in_miniature_and_again(wq: Run, tmp_path: Path):
    first = wq("sensitivity", *ARGUMENTS, module="wq")
    assert first.returncode == 0, first.stderr
    rows = list(csv.DictReader((tmp_path / "here" / "sensitivity.csv").open()))
    assert [(row["part"], row["scheme"]) for row in rows] == [
        (f"decoder.mlp.fc1:{block}", f"{scheme}-g128") for scheme in ("int4", "int8") for block in range(2)
    ]
    assert all(float(row["output_error"]) > 0 and row["utterances"] == "2" for row in rows)
    assert (tmp_path / "here" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "here" / "sensitivity.svg").read_text()
    assert all(row["part"] in drawn and row["scheme"] in drawn for row in rows)

    again = wq("sensitivity", *ARGUMENTS, module="wq")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("(from the store)") == len(rows)
    assert list(csv.DictReader((tmp_path / "here" / "sensitivity.csv").open())) == rows


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("by=word", "by=word is no way"),
        ("format=int9", "int9"),
        ("roles=[ear]", "role ear matches no layer"),
        ("group=32,64", "give commas to format= alone"),
        ("layer", "layer is no setting"),
        ("out=/dev/null", "out=/dev/null is no directory"),
    ],
)
def test_what_is_mistyped_is_told_in_one_line(argument, said, monkeypatch, capsys, tmp_path):
    from wq.commands import sensitivity

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["wq sensitivity", argument])
    monkeypatch.setattr("wq.console.ending", Ending())
    with pytest.raises(SystemExit, match="1"):
        sensitivity.main()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.match(r"error: ", lines[0])
    assert said in lines[0]
