"""The kernel for GPUs, proven without one: its bits in Triton's interpreter, its operations in PTX."""

# pyright: reportMissingImports=false
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from wq.catalogue import load_format
from wq.numerics import fused
from wq.numerics.effective import resolve
from wq.numerics.fake_quant import fake_quantize
from wq.numerics.shared_scales import shared_scales

from .oracle import bits_equal, weight
from .test_native import VARIANTS

triton = pytest.importorskip("triton", reason="needs triton: make refs")

LAYOUTS = [("tensor", None), ("channel", None), ("group", 16), ("group", 37)]
FILES = ("cases.pt", "results.pt")
ALL: dict[str, Any] = {str(variant.id): variant.values[0] for variant in VARIANTS}
FORMATS = {
    name: format
    for name, format in ALL.items()
    if format.element != "levels" or len(format.code_book) <= fused.MAX_LEVELS
}


# One for every kind of element, of scale, of rule and of search
FEW = (
    *(
        "int4",
        "int8-fp32-full",
        "int4-bf16-asymmetric",
        "int3-mse-asymmetric",
        "int16",
        "fp8_e4m3",
        "fp8_e5m2",
    ),
    *("fp4_e2m1", "fp6_e3m2-e4m3", "nf4", "nf4-e8m0", "nvfp4", "nvfp4_46-mse-symmetric", "mxfp4", "mxint8"),
    *("mxfp4-even", "mxfp8_e4m3-rceil", "mxfp6_e2m3-ceil", "e7m0"),
)


def inputs() -> list[torch.Tensor]:
    bits = torch.randint(-(2**31), 2**31 - 1, (8, 100), generator=torch.Generator().manual_seed(0))
    anything = bits.to(torch.int32).view(torch.float32)
    anything = torch.where(torch.isfinite(anything), anything, 1.0)
    return [weight(8, 100), weight(4, 100) * 1e-39, torch.zeros(2, 100), -weight(2, 100).abs(), anything]


def few_inputs() -> list[torch.Tensor]:
    """The same in two tensors."""
    *plain, anything = inputs()
    return [torch.cat(plain), anything]


RANGED = [
    (weight(6, 96), load_format("int8"), "tensor", None, torch.tensor(0.7)),
    (weight(6, 96), load_format("nvfp4"), "group", None, torch.tensor(0.7)),
    (weight(6, 96), load_format("nvfp4"), "group", None, weight(6, 96).abs().amax(1, keepdim=True)),
]


def not_finite(value: float) -> list[tuple]:
    """Cases with the value in the first, a middle and the last place, and one without."""
    cases = []
    for position in (0, 511, 3 * 512 - 1):
        x = weight(3, 512)
        x.view(-1)[position] = value
        cases += [(x, load_format(name), "group", None, None) for name in ("int4", "nf4", "mxfp4")]
    return [*cases, (weight(3, 512), load_format("int4"), "group", None, None)]


VALUES = (float("nan"), float("inf"), -float("inf"))


def interpreted(cases: dict[Any, list[tuple]], directory) -> dict[Any, list[tuple[bool, torch.Tensor]]]:
    """(finite, output) of the kernel for every case, in a process of its own: it takes longer to start than
    most cases."""
    torch.save([case for each in cases.values() for case in each], directory / FILES[0])
    run = subprocess.run(
        [sys.executable, "-m", "tests.numerics.interpreted", *(directory / name for name in FILES)],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = iter(torch.load(directory / FILES[1], weights_only=False))
    return {key: [next(found) for _ in each] for key, each in cases.items()}


def plain_cases(names, tensors) -> dict[Any, list[tuple]]:
    return {
        (name, layout): [(x, FORMATS[name], *layout, None) for x in tensors]
        for name in names
        for layout in LAYOUTS
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    cases = plain_cases(FEW, few_inputs()) | {"ranged": RANGED} | {str(v): not_finite(v) for v in VALUES}
    return interpreted(cases, tmp_path_factory.mktemp("interpreted"))


@pytest.fixture(scope="module")
def all_results(tmp_path_factory):
    return interpreted(plain_cases(FORMATS, inputs()), tmp_path_factory.mktemp("interpreted"))


def check_bits(cases, found) -> None:
    for (*case, amax), (finite, out) in zip(cases, found, strict=True):
        assert finite
        assert bits_equal(out, fake_quantize(*case, amax=amax))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", FEW)
def test_equal_to_the_cpu_to_the_bit(results, name, layout):
    check_bits([(x, FORMATS[name], *layout, None) for x in few_inputs()], results[name, layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_equal_to_the_cpu_to_the_bit(all_results, name, layout):
    check_bits([(x, FORMATS[name], *layout, None) for x in inputs()], all_results[name, layout])


def test_calibrated_ranges_saturate_as_on_the_cpu(results):
    check_bits(RANGED, results["ranged"])


@pytest.mark.parametrize("value", VALUES)
def test_not_finite_is_told_wherever_it_is(results, value):
    assert [finite for finite, _ in results[str(value)]] == [False] * 9 + [True]


def ptx(format, granularity, capability, shape=(64, 512)) -> str:
    """The kernel compiled for a format, with the arguments specialized as at a launch."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wq.numerics import fused_kernel

    x, effective = torch.ones(shape), resolve(format, granularity)
    shared = shared_scales(x, effective, None, None)
    block = min(effective.group or shape[-1], shape[-1])
    _, arguments = fused.launch_arguments(x, x, block, effective.format, shared.tensor_scale, shared.scale)
    arguments["is_bad"] = torch.zeros(1, dtype=torch.int32)
    warps = arguments.pop("num_warps")
    constants = {}

    def type_of(value, path):
        if isinstance(value, tuple):
            return type(value)(*(type_of(item, (*path, i)) for i, item in enumerate(value)))
        if isinstance(value, torch.Tensor):
            return "*i32" if value.dtype == torch.int32 else "*fp32"
        if isinstance(value, float):
            return "fp32"
        if value == 1 or names[path[0]].isupper():
            constants[path] = value
            return "constexpr"
        return "i32"

    names = fused_kernel.fake_quantize.arg_names
    signature = {name: type_of(arguments[name], (i,)) for i, name in enumerate(names)}
    source = ASTSource(fused_kernel.fake_quantize, signature, constants)
    options = {"num_warps": warps, **fused.OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


COMPILED = [
    *((load_format(name), "group") for name in ("int4", "nvfp4", "nvfp4_46", "mxfp4", "nf4", "fp8_e4m3")),
    (load_format("int8"), "tensor"),
    (load_format("int8"), "channel"),
    (replace(load_format("int4"), int_range="asymmetric"), "group"),
    (replace(load_format("int4"), scale_search="mse"), "group"),
    (replace(load_format("int4"), int_range="asymmetric", scale_search="mse"), "group"),
]


def compiled_cases():
    """A processor each for few formats; the others are slow."""
    few = {("int4", 80), ("nvfp4", 90), ("nf4", 90)}
    for format, granularity in COMPILED:
        for capability in (80, 90):
            is_fast = (format.name, capability) in few and format == load_format(format.name)
            marks = () if is_fast else pytest.mark.slow
            yield pytest.param(format, granularity, capability, marks=marks)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 compiles nothing")
@pytest.mark.parametrize(
    ("format", "granularity", "capability"),
    list(compiled_cases()),
    ids=lambda value: getattr(value, "name", value),
)
def test_compiled_every_operation_rounds_once(tmp_path, monkeypatch, format, granularity, capability):
    """IEEE division, no multiply-add in one, and denormals kept: else a GPU would differ in the last bit."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = ptx(format, granularity, capability)
    floating = set(re.findall(r"^\s*(?:@\S+ )?([a-z]+[\w.]*\.f(?:32|64))\b", code, re.MULTILINE))
    assert "div.rn.f32" in floating
    assert not [each for each in floating if each.startswith(("fma", "mad", "div.full", "div.approx", "rcp"))]
    assert ".ftz" not in code


def test_where_it_cannot_run_torch_does_and_it_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    fused.runs_on.cache_clear()
    with pytest.warns(UserWarning, match="does not run on cpu .*quantizing in torch"):
        assert not fused.runs_on(torch.device("cpu"))
