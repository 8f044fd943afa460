"""The catalogue on disk: one YAML file is one format, and nothing else is needed."""

import subprocess
import sys

import pytest
import torch

import wq
from wq.catalogue import conf_dir, format_names, load_format
from wq.numerics.fake_quant import dequantize, fake_quantize, quantize
from wq.numerics.scales import e8m0_scale
from wq.numerics.storage import storage

from .oracle import bits_equal, nearest, weight


def test_names_are_those_of_the_files_and_none_means_something_else_in_yaml():
    names = format_names()
    assert {"int4", "nvfp4", "mxfp4", "fp32"} <= set(names)
    assert not {"on", "off", "yes", "no", "null", "true", "false"} & set(names)
    assert not any(name.replace(".", "").isdigit() for name in names)


def test_an_unknown_format_lists_the_choices():
    with pytest.raises(ValueError, match=r"format=int9 is unknown; choose .*int4, .*nvfp4") as error:
        load_format("int9")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: mine\nelement: int\ninteger_bits: 4\ngroups: 3\n", "unknown field groups; choose from"),
        ("name: other\nelement: int\ninteger_bits: 4\n", "name is other; it must be the file's own"),
        ("- int4\n", "must be a flat mapping"),
        ("name: mine\nelement: int\n", "integer_bits=missing must be from 2 to 16"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    (tmp_path / "format").mkdir()
    (tmp_path / "format" / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message.split(";")[0]):
        load_format("mine", tmp_path)


def test_a_new_format_is_one_yaml_file_and_nothing_else(tmp_path):
    """E3M2 elements with E8M0 scales over 16: quantized, sized and rounded right from its description
    alone."""
    (tmp_path / "format").mkdir()
    (tmp_path / "format" / "mxfp6_g16.yaml").write_text(
        "name: mxfp6_g16\nelement: float\nexponent_bits: 3\nmantissa_bits: 2\nscale_dtype: e8m0\ngroup: 16\n"
    )
    assert format_names(tmp_path) == ["mxfp6_g16"]
    format = load_format("mxfp6_g16", tmp_path)
    x = weight(4, 70)
    y = wq.fake_quantize(x, format)
    for row in range(4):
        for start in range(0, 70, 16):
            block = x[row, start : start + 16]
            scale = e8m0_scale(block.abs().max()[None], format).item()
            expected = [nearest(value / scale, format) * scale for value in block.tolist()]
            assert y[row, start : start + 16].tolist() == expected
    assert bits_equal(y, dequantize(quantize(x, format)))
    assert storage((4, 64), format).bits_per_element == 6.5


def test_the_catalogues_formats_all_go_through_the_parametrised_tests():
    """A YAML file added to conf/format is picked up by every test over FORMATS: they are read from the same
    place."""
    from .oracle import FORMATS

    assert sorted(path.stem for path in (conf_dir() / "format").glob("*.yaml")) == FORMATS


def test_public_functions_take_names_and_descriptions():
    x = weight(4, 64)
    assert bits_equal(wq.fake_quantize(x, "int4", group=16), fake_quantize(x, load_format("int4"), group=16))
    assert bits_equal(
        wq.fake_quantize(x, "int4", scale_dtype="bf16", int_range="full"),
        wq.fake_quantize(x, load_format("int4"), scale_dtype="bf16", int_range="full"),
    )


def test_the_catalogue_is_read_without_importing_torch():
    code = (
        "import sys, wq, wq.catalogue as c; c.load_format('nvfp4'); wq.storage_bits((4, 4), 'int4');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_attribute_that_wq_does_not_have():
    with pytest.raises(AttributeError, match="no attribute quantise"):
        _ = wq.quantise  # type: ignore[attr-defined]
    assert torch.is_tensor(wq.fake_quantize(torch.ones(1), "int4"))
