"""wq's own layout: one safetensors file that holds any format, and its loader. docs/export.md describes it.

`packed.safetensors` has for a quantized weight NAME.weight the tensors of `numerics.packing.layout`, called
NAME.weight.codes, NAME.weight.scale and so on, and for every other parameter itself. Its header's metadata
says how the weights are quantized, and has a checksum over everything. Reading it executes nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import GENERATION_CONFIG_NAME

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import Quantized, dequantize
from wq.numerics.formats import Format
from wq.numerics.packing import PackingError, pack_quantized, unpack_quantized
from wq.whisper.checkpoint.files import PACKED, ModelError

VERSION = "1"
PARTS = ("codes", "scale", "zero_point", "tensor_scale")


def tensors(name: str, quantized: Quantized) -> dict[str, Tensor]:
    """The tensors of a weight, by their names in the file."""
    return {f"{name}.{part}": tensor for part, tensor in pack_quantized(quantized).items()}


def metadata(
    weights: Mapping[str, tuple[Sequence[int], Quantizer]],
    stored: Mapping[str, Tensor],
    ranges: Mapping[str, tuple[float, float]],
    spec: Mapping[str, Any],
) -> dict[str, str]:
    """The header's metadata for weights of these shapes, by name, in a file of these tensors.

    Beside what the loader needs it tells how the model was made, and the calibrated ranges of inputs.
    """
    quantizers = list(dict.fromkeys(quantizer for _, quantizer in weights.values()))
    described = {
        "quantizers": [{**each._asdict(), "format": asdict(each.format)} for each in quantizers],
        "weights": {name: [list(shape), quantizers.index(each)] for name, (shape, each) in weights.items()},
        "input_ranges": {name: list(ends) for name, ends in ranges.items()},
        "spec": spec,
    }
    told = json.dumps(described)
    return {"format": "wq", "version": VERSION, "quantization": told, "sha256": checksum(told, stored)}


def checksum(told: str, stored: Mapping[str, Tensor]) -> str:
    """SHA-256 over what the metadata tells, and every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(told.encode())
    for name in sorted(stored):
        tensor = stored[name].contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def load(directory: Path, **options: Any) -> Any:
    """The model of a packed checkpoint with dequantized weights; options as for `from_pretrained`, of which
    output_loading_info makes it return a report as well.

    Raises ModelError where the file is cut off, changed, or does not fit its own description.
    """
    config = WhisperConfig.from_pretrained(directory, local_files_only=True)
    options = {"dtype": torch.float32, "config": config} | options
    if (directory / GENERATION_CONFIG_NAME).is_file():
        options["generation_config"] = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return WhisperForConditionalGeneration.from_pretrained(None, state_dict=read(directory), **options)


def read(directory: Path) -> dict[str, Tensor]:
    """All parameters of a packed checkpoint by name: float32 where they were quantized, else as stored.

    Raises ModelError.
    """
    file = directory / PACKED
    try:
        with safe_open(file, framework="pt") as opened:
            description = opened.metadata() or {}
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, OSError) as error:
        raise _fault(file, f"is corrupt or cut off ({error})") from error
    if description.get("format") != "wq" or description.get("version") != VERSION:
        raise _fault(
            file,
            f"has format {description.get('format')} version {description.get('version')}, and should have "
            f"format wq version {VERSION}",
        )
    told = description.get("quantization", "")
    if checksum(told, stored) != description.get("sha256"):
        raise _fault(file, "was changed after it was written: its checksum is another")
    try:
        for name, shape, quantizer in _described(told):
            parts = {part: stored.pop(f"{name}.{part}") for part in PARTS if f"{name}.{part}" in stored}
            matrix = shape[0], int(torch.Size(shape[1:]).numel())
            try:
                stored[name] = dequantize(unpack_quantized(parts, matrix, *quantizer)).view(shape)
            except PackingError as error:
                raise PackingError(f"{name}: {error}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _fault(file, f"does not fit its own description ({error})") from error
    return stored


def _described(told: str) -> Iterator[tuple[str, list[int], Quantizer]]:
    """Name, shape and quantizer of every quantized weight."""
    description = json.loads(told)
    quantizers = [
        Quantizer(Format(**each["format"]), each["granularity"], each["group"])
        for each in description["quantizers"]
    ]
    for name, (shape, index) in description["weights"].items():
        yield name, shape, quantizers[index]


def _fault(file: Path, what: str) -> ModelError:
    return ModelError(f"{file} {what}; export or download it anew")
