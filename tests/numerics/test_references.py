"""The same numbers from independent implementations: codes and scales exactly, values to 1e-6.

Elements against ml_dtypes and gfloat, blocks against gfloat, MX and integer schemes against torchao, int,
fp8, nvfp4 and mx against compressed-tensors. Where `wq` differs on purpose, a test shows both sides. The
toolkits are the optional extra `refs`; without one, its tests are skipped.
"""
# pyright: reportMissingImports=false, reportArgumentType=false, reportOptionalMemberAccess=false

import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wq.catalogue import load_format
from wq.numerics.elements import decode, encode, round_elements_
from wq.numerics.fake_quant import Quantized, dequantize, fake_quantize, quantize
from wq.numerics.formats import NORMAL_FLOAT_4

from .oracle import SCALE_RULES, weight

needs = "install the extra refs to compare with independent implementations"


def ml_dtypes():
    return pytest.importorskip("ml_dtypes", reason=needs)


def gfloat():
    pytest.importorskip("gfloat", reason=needs)
    import gfloat.formats

    return gfloat


def torchao():
    return pytest.importorskip("torchao", reason=needs)


def compressed_tensors():
    pytest.importorskip("compressed_tensors", reason=needs)
    from compressed_tensors import quantization

    return quantization


def data(rows: int = 64, columns: int = 512) -> Tensor:
    return weight(rows, columns, seed=11)


def nibbles(packed: Tensor) -> Tensor:
    """Two 4-bit codes per byte, the low one first."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def parts(quantized: Quantized) -> tuple[Tensor, Tensor]:
    assert quantized.scale is not None
    return quantized.codes, quantized.scale


# --- elements -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp4_e2m1", "float4_e2m1fn"),
        ("fp6_e2m3", "float6_e2m3fn"),
        ("fp6_e3m2", "float6_e3m2fn"),
        ("fp8_e4m3", "float8_e4m3fn"),
        ("fp8_e5m2", "float8_e5m2"),
        ("e3m4", "float8_e3m4"),
        ("e4m3_ieee", "float8_e4m3"),
    ],
)
def test_element_codes_equal_ml_dtypes(name, dtype):
    numpy = pytest.importorskip("numpy")
    dtype = getattr(ml_dtypes(), dtype)
    generic = {"e3m4": (3, 4), "e4m3_ieee": (4, 3)}
    if name in generic:
        e, m = generic[name]
        format = replace(load_format("float"), exponent_bits=e, mantissa_bits=m, special="ieee")
    else:
        format = load_format(name)
    book = torch.tensor(format.code_book)
    middles = (book[1:] + book[:-1]) / 2
    x = torch.cat([book, middles, torch.linspace(-format.max, format.max, 100001), torch.randn(1000)])
    x = torch.cat([x, x * format.min_positive, torch.tensor([-0.0])]).clamp(-format.max, format.max)
    theirs = x.numpy().astype(dtype)
    ours = round_elements_(x.clone(), format)
    assert torch.equal(encode(ours, format), torch.from_numpy(theirs.view(numpy.uint8)))
    assert torch.equal(ours, torch.from_numpy(theirs.astype(numpy.float32)))


@pytest.mark.parametrize("bits", [2, 4])
def test_integer_codes_equal_ml_dtypes(bits):
    numpy = pytest.importorskip("numpy")
    dtype = getattr(ml_dtypes(), f"int{bits}")
    format = replace(load_format("int"), integer_bits=bits, int_range="full")
    x = torch.linspace(format.min_code, format.max_code, 1001)
    theirs = numpy.rint(x.numpy()).astype(numpy.int8).astype(dtype).astype(numpy.int8)
    assert torch.equal(encode(round_elements_(x.clone(), format), format), torch.from_numpy(theirs))


GFLOAT_ELEMENTS = {
    "fp4_e2m1": "ocp_e2m1",
    "fp6_e2m3": "ocp_e2m3",
    "fp6_e3m2": "ocp_e3m2",
    "fp8_e4m3": "ocp_e4m3",
    "fp8_e5m2": "ocp_e5m2",
    "mxint8": "ocp_int8",
    "fp16": "binary16",
    "bf16": "bfloat16",
}


@pytest.mark.parametrize("name", GFLOAT_ELEMENTS)
def test_every_code_means_the_same_to_gfloat(name):
    toolkit, format = gfloat(), load_format(name)
    info = getattr(toolkit.formats, f"format_info_{GFLOAT_ELEMENTS[name]}")
    if format.element == "int":
        format = replace(format, int_range="full")
    step = 1 if format.bits <= 8 else 61
    for code in range(0, 2**format.bits, step):
        value = toolkit.decode_float(info, code).fval
        if abs(value) <= format.max or (format.element == "int" and value == -2.0):
            signed = code - 2**format.bits * (format.element == "int" or format.bits > 8) * (
                code >= 2 ** (format.bits - 1)
            )
            ours = decode(encode(torch.zeros(1), format).fill_(signed), format)
            assert ours.item() == value


GFLOAT_BLOCKS = ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8"]


@pytest.mark.parametrize("name", GFLOAT_BLOCKS)
def test_blocks_equal_gfloat(name):
    toolkit, format = gfloat(), load_format(name)
    suffix = {"mxfp4": "mxfp4_e2m1"}.get(name, name)
    info = getattr(toolkit.formats, f"format_info_{suffix}")
    if format.element == "int":
        format = replace(format, int_range="full")  # gfloat uses the code -128, which OCP leaves open
    for row in data(4, 32):
        theirs = toolkit.quantize_block(info, row.double().numpy(), toolkit.compute_scale_amax)
        assert fake_quantize(row, format).tolist() == list(theirs)


def test_normal_float_levels_are_the_quantiles_of_a_normal_distribution():
    """QLoRA's construction: the average of two tail probabilities, 8 quantiles above and 7 below zero."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    levels = sorted([*above, 0.0, *below])
    assert [level / max(levels) for level in levels] == pytest.approx(list(NORMAL_FLOAT_4), abs=1e-6)


def test_nf4_codes_equal_torchao_given_the_same_levels():
    """torchao's table has four decimals (0.0796 for 0.0795803); given ours, its search finds the same
    codes."""
    torchao()
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor

    format = replace(load_format("nf4"), scale_dtype="fp32")
    x = data(16, 128)
    codes, scale = parts(quantize(x, format))
    assert torch.equal(scale, x.unflatten(-1, (-1, 64)).abs().amax(-1))
    normalised = x.unflatten(-1, (-1, 64)) / scale[..., None]
    theirs = NF4Tensor.quantize_tensor_nearest(normalised.flatten(), torch.tensor(NORMAL_FLOAT_4))
    assert torch.equal(codes.flatten().long(), theirs)


# --- MX -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("name", ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2"])
def test_mx_codes_and_scales_equal_torchao_under_every_rule(name, rule):
    torchao()
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    element = {
        "mxfp4": torch.float4_e2m1fn_x2,
        "mxfp6_e2m3": "fp6_e2m3",
        "mxfp6_e3m2": "fp6_e3m2",
        "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2,
    }[name]
    x = torch.cat([data(), torch.zeros(1, 512), torch.full((1, 512), 1.75), torch.full((1, 512), 1.5)])
    scales, packed = to_mx(x, element, 32, ScaleCalculationMode[rule.upper()])
    codes, scale = parts(quantize(x, replace(load_format(name), scale_rule=rule)))
    assert torch.equal(scale, scales.float())
    theirs = packed.view(torch.uint8)
    assert torch.equal(codes, nibbles(theirs) if name == "mxfp4" else theirs)


def compressed_tensors_fake_quantize(x: Tensor, group: int, **arguments) -> tuple[Tensor, Tensor]:
    """Scales and values of compressed-tensors, fed float32 and groups along the last axis."""
    quantization = compressed_tensors()
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize as theirs
    from compressed_tensors.quantization.utils import calculate_qparams

    global_scale = arguments.pop("global_scale", None)
    args = quantization.QuantizationArgs(group_size=group, **arguments)
    blocks = x.unflatten(-1, (-1, group))
    scale, zero_point = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=global_scale)
    return scale, theirs(x, scale, zero_point, args, global_scale=global_scale)


def test_mxfp4_even_equals_compressed_tensors():
    x = data()
    scale, values = compressed_tensors_fake_quantize(
        x, 32, num_bits=4, type="float", strategy="group", symmetric=True, scale_dtype=torch.uint8
    )
    quantized = quantize(x, replace(load_format("mxfp4"), scale_rule="even"))
    assert torch.equal(parts(quantized)[1], scale.float())
    assert torch.equal(dequantize(quantized), values)


def test_mxfp8_even_steps_elsewhere_than_compressed_tensors_on_purpose():
    """`even` rounds amax at the element's own mantissa: E4M3 steps at 1.9375. compressed-tensors rounds at
    E2M1's for every element and steps at 1.75; torchao agrees with wq."""
    scales, _ = compressed_tensors_fake_quantize(
        torch.tensor([[1.9] * 32]),
        32,
        num_bits=8,
        type="float",
        strategy="group",
        symmetric=True,
        scale_dtype=torch.uint8,
    )
    ours = parts(quantize(torch.tensor([[1.9] * 32]), replace(load_format("mxfp8_e4m3"), scale_rule="even")))[
        1
    ]
    assert ours.item() == 2.0**-8
    assert scales.float().item() != ours.item()


# --- NVFP4 ----------------------------------------------------------------------------------------


NVFP4 = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "symmetric": True,
    "scale_dtype": torch.float8_e4m3fn,
    "zp_dtype": torch.float8_e4m3fn,
}


def test_nvfp4_codes_and_scales_equal_torchao():
    torchao()
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    x = torch.randn(1280, 512, generator=torch.Generator().manual_seed(0))
    tensor_scale = per_tensor_amax_to_scale(x.abs().max())
    scales, packed = nvfp4_quantize(x, 16, tensor_scale)
    quantized = quantize(x, load_format("nvfp4"))
    codes, scale = parts(quantized)
    assert quantized.tensor_scale == tensor_scale
    assert torch.equal(scale, scales.float())
    assert torch.equal(codes, nibbles(packed))


def test_nvfp4_scales_and_values_equal_compressed_tensors():
    compressed_tensors()
    from compressed_tensors.quantization.utils import generate_gparam

    x = torch.randn(1280, 512, generator=torch.Generator().manual_seed(0))
    global_scale = generate_gparam(x.min(), x.max())
    scale, values = compressed_tensors_fake_quantize(x, 16, **NVFP4, global_scale=global_scale)
    quantized = quantize(x, load_format("nvfp4"))
    assert torch.equal(parts(quantized)[1], scale.float())
    torch.testing.assert_close(dequantize(quantized), values, rtol=1e-6, atol=0)


def test_nvfp4_keeps_small_blocks_that_others_lose_on_purpose():
    """A block at a millionth of the tensor's maximum: others' smallest scale is E4M3's smallest normal value,
    or 0.125 in place of zero; here it is E4M3's smallest subnormal."""
    torchao()
    compressed_tensors()
    from compressed_tensors.quantization.utils import generate_gparam
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    x /= x.abs().amax(-1, keepdim=True)
    x[1] *= 1e-6
    other = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().max()))
    _, another = compressed_tensors_fake_quantize(
        x, 16, **NVFP4, global_scale=generate_gparam(x.min(), x.max())
    )
    ours = fake_quantize(x, load_format("nvfp4"))
    for theirs in (other.dequantize(torch.float32), another):
        torch.testing.assert_close(theirs[0], ours[0], rtol=1e-6, atol=0)
        assert (theirs[1] - x[1]).norm() / x[1].norm() > 0.9
    assert (ours[1] - x[1]).norm() / x[1].norm() < 0.4


# --- integers and fp8 -----------------------------------------------------------------------------


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize("int_range", ["full", "asymmetric", "symmetric"])
def test_integer_codes_scales_and_zero_points_equal_torchao(bits, int_range, group):
    torchao()
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

    x = data()
    format = replace(load_format("int"), integer_bits=bits, int_range=int_range, scale_dtype="fp32")
    mapping = MappingType.ASYMMETRIC if int_range == "asymmetric" else MappingType.SYMMETRIC
    scale, zero_point = choose_qparams_affine(
        x, mapping, (1, group), torch.int8, format.min_code, format.max_code, scale_dtype=torch.float32
    )
    codes = quantize_affine(x, (1, group), scale, zero_point, torch.int8, format.min_code, format.max_code)
    quantized = quantize(x, format, group=group)
    assert torch.equal(parts(quantized)[1], scale)
    # torchao multiplies by the rounded reciprocal, so exact ties may go the other way. Under a full range
    # every block's amax is one, at 7.5 steps for 4 bits; compared with compressed-tensors, which divides, it
    # agrees.
    steps = (x.unflatten(-1, (-1, group)) / scale[..., None]).flatten(-2)
    is_tie = ((steps - steps.floor()) - 0.5).abs() < 1e-5
    assert torch.equal(quantized.codes[~is_tie], codes[~is_tie])
    assert is_tie.float().mean() < 0.05
    if quantized.zero_point is not None:
        assert torch.equal(quantized.zero_point, zero_point.to(torch.int8))


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integer_scales_and_values_equal_compressed_tensors(bits, symmetric):
    x = data()
    scale, values = compressed_tensors_fake_quantize(
        x, 128, num_bits=bits, type="int", strategy="group", symmetric=symmetric
    )
    int_range = "full" if symmetric else "asymmetric"
    format = replace(load_format("int"), integer_bits=bits, int_range=int_range, scale_dtype="fp32")
    quantized = quantize(x, format)
    assert torch.equal(parts(quantized)[1], scale)
    torch.testing.assert_close(dequantize(quantized), values, rtol=1e-6, atol=0)


def test_fp8_scales_and_values_equal_compressed_tensors():
    x = data()
    scale, values = compressed_tensors_fake_quantize(
        x, 128, num_bits=8, type="float", strategy="group", symmetric=True
    )
    quantized = quantize(x, load_format("fp8_e4m3"))
    assert torch.equal(parts(quantized)[1], scale)
    torch.testing.assert_close(dequantize(quantized), values, rtol=1e-6, atol=0)


def test_fp8_e5m2_saturates_where_a_cast_of_torch_gives_infinity_on_purpose():
    format = replace(load_format("float"), exponent_bits=5, mantissa_bits=2, special="ieee")
    assert torch.tensor([65000.0]).to(torch.float8_e5m2).float().isinf().all()
    assert round_elements_(torch.tensor([65000.0]), format).item() == 57344.0
