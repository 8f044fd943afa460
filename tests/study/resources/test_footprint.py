"""Memory by formula against what a decode allocates, stores and, packed, would write."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import WhisperForConditionalGeneration

from wq.commands.memory import tell
from wq.numerics.fake_quant import quantize
from wq.numerics.packing import pack_quantized
from wq.study.resources.footprint import Footprint, activation_bits, footprint, workload
from wq.study.spec.config import FormatOptions, KVCacheConfig
from wq.study.spec.resolution import resolve_kv_cache
from wq.whisper.checkpoint.geometry import PUBLIC, Geometry, find_geometry, skeleton
from wq.whisper.decoding import greedy, onednn
from wq.whisper.decoding.greedy import Batch, Rules, decode_greedily, encode, encode_rows
from wq.whisper.decoding.kv_cache import KVQuantizer, Rounding, layer_name
from wq.whisper.layers.treatment import Treatment

NANO = find_geometry("wq:nano")
TINY, SMALL = PUBLIC["openai/whisper-tiny"], PUBLIC["openai/whisper-small"]
NEVER = -1  # no token ends a transcript, so that all rows stay to the end

SCHEMES = {
    "fp32": None,
    "fp16": KVCacheConfig(format="fp16"),
    "int8": KVCacheConfig(format="int8"),
    "int6": KVCacheConfig(format="int6"),
    "int4": KVCacheConfig(format="int4"),
    "int3": KVCacheConfig(format="int3"),
    "int2": KVCacheConfig(format="int2"),
    "int4 asymmetric in groups": KVCacheConfig(
        format="int4", keys="group", values="group", group=24, options=FormatOptions(int_range="asymmetric")
    ),
    "fp8_e4m3": KVCacheConfig(format="fp8_e4m3"),
    "fp8_e5m2": KVCacheConfig(format="fp8_e5m2"),
    "fp4_e2m1": KVCacheConfig(format="fp4_e2m1"),
    "mxfp8": KVCacheConfig(format="mxfp8_e4m3", keys="group", values="group"),
    "mxfp4": KVCacheConfig(format="mxfp4", keys="group", values="group"),
    "nvfp4": KVCacheConfig(format="nvfp4", keys="group", values="group"),
    "int4 keys per channel": KVCacheConfig(format="int4", keys="channel"),
    "int3 keys per channel, short blocks": KVCacheConfig(format="int3", keys="channel", block=7),
    "int8 of cross-attention": KVCacheConfig(format="int8", attention=["cross"]),
}


@lru_cache(maxsize=1)
def random_model(geometry: Geometry) -> Any:
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(skeleton(geometry).config).eval().requires_grad_(False)


def decode(geometry: Geometry, tokens: int, batch: int = 1, kv_cache: KVQuantizer | None = None) -> None:
    features = torch.randn(batch, geometry.num_mel_bins, 2 * geometry.max_source_positions)
    rules = Rules(tuple(range(geometry.prompt_length)), (), (), NEVER, tokens)
    model = random_model(geometry)
    decode_greedily(model, encode_rows(model, features), batch, rules, kv_cache)


@lru_cache(maxsize=1)
def _encoded(encoder: Any) -> dict[int, torch.Tensor]:
    return {}


def encoded_once(encoder: Any, features: torch.Tensor) -> torch.Tensor:
    """The states of the first audio that this encoder hears, whatever it is: they are most of the time."""
    heard = _encoded(encoder)
    if len(features) not in heard:
        heard[len(features)] = encode(encoder, features)
    return heard[len(features)]


@pytest.fixture
def batches(monkeypatch) -> list[Batch]:
    """Every batch that is decoded, with its caches as they are before the last rows let go of them."""
    kept = []

    class Kept(Batch):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            kept.append(self)

        def keep(self, rows: Sequence[int]) -> list[int]:
            return super().keep(rows) if rows else []

    monkeypatch.setattr(greedy, "Batch", Kept)
    return kept


def stored_bytes(x: torch.Tensor, rounding: Rounding) -> int:
    """What keys or values [rows, heads, positions, head size] take, packed in their format."""
    x = x.nan_to_num()  # the last token's place is never written
    if rounding.quantizer is None:
        return x.nbytes
    quantizer, rest = rounding.quantizer, x[:, :, :0]
    if rounding.is_by_channel:
        block = rounding.block or x.shape[2]
        whole = x.shape[2] - x.shape[2] % block if rounding.grows else x.shape[2]
        rest, x = x[:, :, whole:], x[:, :, :whole].mT.contiguous()
        quantizer = quantizer._replace(granularity="group", group=block)
    if not x.numel():
        return rest.nbytes + 4 * quantizer.format.has_tensor_scale
    packed = pack_quantized(quantize(x, *quantizer, amax=rounding.amax))
    return sum(tensor.nbytes for tensor in packed.values()) + rest.nbytes


def check_cache(
    geometry: Geometry, config: KVCacheConfig | None, batches: list[Batch], tokens: int, batch: int
):
    scheme = resolve_kv_cache(config) if config else None
    names = (
        layer_name(index, attention, projection)
        for index in range(geometry.decoder_layers)
        for attention in ("self", "cross")
        for projection in ("k_proj", "v_proj")
    )
    decode(geometry, tokens, batch, KVQuantizer(scheme, dict.fromkeys(names, 4.0)) if scheme else None)
    found = [
        sum(
            stored_bytes(x, rounding)
            for cache in caches
            for x, rounding in zip((cache.keys, cache.values), cache.roundings, strict=True)
        )
        for caches in (batches[-1].text, batches[-1].audio)
    ]
    expected = footprint(
        geometry, 0, Treatment(kv_cache=scheme), workload(geometry, batch, tokens=tokens), 32
    )
    assert found == [expected.self_attention, expected.cross_attention]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_caches_after_a_decode_take_what_the_formula_says(scheme, batches):
    check_cache(NANO, SCHEMES[scheme], batches, tokens=41, batch=3)


def test_caches_of_tiny(batches):
    check_cache(TINY, SCHEMES["int4 keys per channel"], batches, tokens=5, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("geometry", [TINY, SMALL], ids=["tiny", "small"])
def test_caches_of_larger_models(geometry, scheme, batches, monkeypatch):
    monkeypatch.setattr(greedy, "encode", encoded_once)
    check_cache(geometry, SCHEMES[scheme], batches, tokens=36, batch=1)


def test_the_cache_of_a_window_is_mostly_the_audio_s():
    """tiny: 2 tensors, 4 layers, 384 channels, 2 bytes, for 1500 frames and for 4 + 224 tokens."""
    needed = footprint(TINY, 0, Treatment(), workload(TINY))
    assert (needed.cross_attention, needed.self_attention) == (2 * 4 * 384 * 2 * 1500, 2 * 4 * 384 * 2 * 228)


@pytest.mark.parametrize(
    ("format", "bits"), [("int8", 8.25), ("int4", 4.25), ("fp8_e4m3", 8.5), ("mxfp4", 4.25), ("nvfp4", 4.5)]
)
def test_bits_of_a_stored_number(format, bits):
    """Heads of 64 numbers: a scale of 16 bits (32 for fp8) for each, or of 8 bits for 32 or 16 numbers."""
    granularity = "group" if format in ("mxfp4", "nvfp4") else "token"
    scheme = resolve_kv_cache(KVCacheConfig(format=format, keys=granularity, values=granularity))
    work = workload(SMALL, batch=8)
    plain, rounded = (footprint(SMALL, 0, Treatment(kv_cache=each), work).kv_cache for each in (None, scheme))
    tensor_scales = 4 * 2 * 2 * SMALL.decoder_layers if format == "nvfp4" else 0
    assert rounded - tensor_scales == plain * bits / 16


# --- activations ----------------------------------------------------------------------------------


def peak_allocation(run) -> int:
    """The most bytes that torch's allocator holds at once for what `run` allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results: Any = recorded.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    held = most = 0
    for event in sorted(
        (e for e in results.events() if e.name() == "[memory]"), key=lambda event: event.start_ns()
    ):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("geometry", "batch"),
    [(NANO, 1), (NANO, 4), pytest.param(TINY, 1, marks=pytest.mark.slow)],
    ids=["nano", "nano, batch 4", "tiny"],
)
def test_the_peak_is_what_torch_allocates(geometry, batch, monkeypatch):
    """With torch's own products. Those of oneDNN copy the operands of attention."""
    decode(geometry, 2, batch)
    predicted = footprint(geometry, 0, Treatment(), workload(geometry, batch, tokens=4), 32).total
    monkeypatch.setattr(onednn, "encoder_library", lambda: "onednn")
    with_copies = peak_allocation(lambda: decode(geometry, 4, batch))
    monkeypatch.setattr(onednn, "encoder_library", lambda: "torch")
    monkeypatch.setattr(greedy, "fast_products", lambda *modules: nullcontext())
    plain = peak_allocation(lambda: decode(geometry, 4, batch))
    print(f"predicted {predicted:,}, torch {plain:,}, with the faster products {with_copies:,} bytes")
    assert predicted == pytest.approx(plain, rel=0.01)
    assert predicted == pytest.approx(with_copies, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 8])
def test_the_peak_on_a_gpu(batch):
    model = random_model.__wrapped__(TINY).to("cuda", torch.float16)
    features = torch.randn(batch, TINY.num_mel_bins, 3000, device="cuda", dtype=torch.float16)
    rules = Rules(tuple(range(TINY.prompt_length)), (), (), NEVER, 32)
    decode_greedily(
        model, encode_rows(model, features), batch, rules
    )  # cuBLAS keeps a workspace from its first product on
    workspace = torch.cuda.memory_allocated() - features.nbytes
    torch.cuda.reset_peak_memory_stats()
    decode_greedily(model, encode_rows(model, features), batch, rules)
    measured = torch.cuda.max_memory_allocated()
    predicted = footprint(TINY, workspace, Treatment(), workload(TINY, batch, tokens=32)).total
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("rounded", "bits"),
    [
        ({}, 10 * 16),  # the residual stream, its copy, and fc1's output before and after GELU
        ({"mlp.fc2": 8}, (1 + 1 + 4) * 16 + 4 * 8),
        ({"mlp.fc1": 8, "mlp.fc2": 8}, (1 + 4) * 16 + 5 * 8),
        ({"mlp.fc1": 4, "mlp.fc2": 4}, 7 * 16),  # then attention's step is the largest
        ({"mlp.fc1": 4, "mlp.fc2": 4, "self_attn.q": 4, "self_attn.out": 4}, (1 + 4) * 16 + 5 * 4),
    ],
)
def test_rounded_inputs_are_held_as_they_are_rounded(rounded, bits):
    """tiny, by hand: bits of a position of an encoder layer, by the width of the model."""
    inputs = {f"encoder.{role}": width for role, width in rounded.items()}
    features = 2 * 1500 * 80 * 16
    assert activation_bits(TINY, workload(TINY), inputs) == features + 1500 * 384 * bits


# --- how it grows ---------------------------------------------------------------------------------


def total(**settings) -> Footprint:
    return footprint(SMALL, 1000, Treatment(), workload(SMALL, **settings))


def test_what_grows_with_what():
    one = total()
    assert total(batch=8) == replace(
        one,
        self_attention=8 * one.self_attention,
        cross_attention=8 * one.cross_attention,
        activations=8 * one.activations,
    )
    assert total(beams=5) == replace(one, self_attention=5 * one.self_attention)
    assert total(tokens=444).self_attention == one.self_attention * 448 // 228
    assert total(tokens=444).cross_attention == one.cross_attention
    assert total(seconds=15).cross_attention == one.cross_attention // 2


def test_many_hypotheses_are_dominated_by_their_logits():
    few = workload(NANO, beams=1, seconds=0.1)
    assert footprint(TINY, 0, Treatment(), workload(TINY, beams=400)).activations == 2 * (
        2 * 1500 * 80 + 400 * (384 + 51865)
    )
    assert few.positions == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens=0 must be at least 1"),
        ({"tokens": 445}, "room for 444"),
        ({"batch": 0}, "batch=0"),
        ({"beams": -1}, "beams=-1"),
        ({"seconds": 31.0}, "at most 30"),
        ({"seconds": 0.0}, "seconds=0"),
    ],
)
def test_a_workload_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        workload(SMALL, **settings)


# --- the command ----------------------------------------------------------------------------------


def test_wq_memory(tmp_path, capsys):
    table, drawing = tmp_path / "memory.csv", tmp_path / "memory.svg"
    tell(
        [
            "model=small",
            "format=int4",
            "kv_cache=int8",
            "batch=1,8",
            "tokens=64,224",
            f"csv={table}",
            f"out={drawing}",
        ]
    )
    lines = table.read_text().splitlines()
    assert len(lines) == 5
    header, *rows = (line.split(",") for line in lines)
    for row in (dict(zip(header, map(str, row), strict=True)) for row in rows):
        parts = ("weights", "self_attention", "cross_attention", "activations")
        assert int(row["total"]) == sum(int(row[part]) for part in parts)
        assert row["weights"] == "189295104"  # wq size model=small format=int4
    assert "Cross-attention keys and values" in drawing.read_text()
    assert "W4A16KV8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokens=0"], "tokens=0"),
        (["tokens=many"], "tokens=many is no whole number"),
        (["-m", "tokens=5"], "-m is no setting; give key=value"),
        (["beams=0"], "beams=0"),
        (["out=picture.gif"], r"\.png or \.svg"),
        (["csv="], "csv= is no file; give a name"),
        (["kv_cache=int4", "kv_cache.block=0"], r"kv_cache\.block=0"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as told:
        tell(arguments)
    assert "\n" not in str(told.value)
