"""A quantized model as a checkpoint on disk: in the layout that fits, complete, whole or not at all."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import Quantized
from wq.numerics.storage import storage
from wq.whisper.checkpoint import packed
from wq.whisper.checkpoint.files import PACKED
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.export import compressed
from wq.whisper.export.compressed import LayoutError
from wq.whisper.export.target import CARD, COMPANIONS, CONFIG, LAYOUTS, RESTS, beside, check_target
from wq.whisper.layers.layers import Layer
from wq.whisper.layers.schemes import Activation

REST_DTYPES = dict(zip(RESTS, (torch.float16, torch.float32), strict=True))
GENERATION = "generation_config.json"
Plan = Sequence[tuple[Layer, Quantizer]]


@dataclass(frozen=True)
class Contents:
    """A checkpoint before it is written.

    config         changes of the source's config.json
    weight_bytes   of the quantized weights with their scales, as the model's size counts them
    extra_bytes    what the layout adds to them: shapes, and rows filled up to whole words
    rest_bytes     of all other parameters
    rounded        how many values of the rest their dtype has changed
    """

    layout: str
    file: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]
    weight_bytes: int
    extra_bytes: int
    rest_bytes: int
    rounded: int


def fitting_layout(layout: str, plan: Plan, activations: Mapping[str, Activation]) -> str:
    """The layout that is asked for, or with auto the one that other engines load where it fits.

    Raises LayoutError where it does not fit.
    """
    if layout not in LAYOUTS:
        raise LayoutError(f"layout={layout} is unknown; choose one of {', '.join(LAYOUTS)}")
    if layout == "wq":
        return layout
    try:
        schemes(plan, activations)
    except LayoutError:
        if layout != "auto":
            raise
        return "wq"
    return "compressed-tensors"


def schemes(plan: Plan, activations: Mapping[str, Activation]) -> dict[str, compressed.Scheme]:
    """How layers are written in the layout of compressed-tensors, by role; activations by role too."""
    found = {}
    for layer, quantizer in plan:
        if not layer.is_linear:
            raise compressed.refusal(f"{layer.role}, which is no linear layer,")
        activation = activations.get(layer.role)
        found[layer.role] = compressed.scheme(quantizer, activation, layer.matrix_shape[1])
    for role in activations:
        if role not in found:
            raise compressed.refusal(f"an activation of {role}, whose weights are not quantized,")
    if not found:
        raise compressed.refusal("a model without quantized weights")
    return found


def assemble(
    whisper: Whisper,
    weights: Sequence[tuple[Layer, Quantized]],
    activations: Mapping[str, Activation],
    *,
    layout: str = "auto",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    rest: str = "fp16",
    spec: Mapping[str, Any] | None = None,
) -> Contents:
    """The checkpoint of a model with these weights, as codes and scales that a method has left.

    activations   by role
    ranges        of inputs with a static scale, smallest and largest value, by layer name
    rest          the dtype of all other parameters
    spec          what the file tells of how it was made

    Raises LayoutError.
    """
    plan = [(layer, quantized.effective.quantizer) for layer, quantized in weights]
    if not plan:
        raise LayoutError("no weight is quantized, so that there is nothing to pack; give another format")
    layout = fitting_layout(layout, plan, activations)
    how = schemes(plan, activations) if layout != "wq" else {}
    stored: dict[str, Tensor] = {}
    counted = 0
    for layer, quantized in weights:
        counted += storage(layer.matrix_shape, *quantized.effective.quantizer).bytes
        if how:
            found = compressed.tensors(quantized, how[layer.role])
            if ranges and layer.name in ranges:
                found |= compressed.input_tensors(activations[layer.role], ranges[layer.name][1])
            parts = {f"{layer.name}.{name}": tensor for name, tensor in found.items()}
        else:
            parts = packed.tensors(f"{layer.name}.weight", quantized)
        stored |= {name: tensor.cpu() for name, tensor in parts.items()}
    extra = total_bytes(stored) - counted
    others, rounded = plain_tensors(whisper, {f"{layer.name}.weight" for layer, _ in plan}, rest)
    stored |= others
    if how:
        file, metadata = "model.safetensors", {"format": "pt"}
        config = {
            "dtype": compressed.model_dtype(how.values()),
            "quantization_config": compressed.quantization_config(how),
        }
    else:
        described = {f"{layer.name}.weight": (layer.weight.shape, each) for layer, each in plan}
        file, metadata, config = PACKED, packed.metadata(described, stored, ranges or {}, spec or {}), {}
    return Contents(layout, file, stored, metadata, config, counted, extra, total_bytes(others), rounded)


def plain_tensors(whisper: Whisper, without: set[str], rest: str) -> tuple[dict[str, Tensor], int]:
    """All parameters but some, in a dtype of REST_DTYPES, and how many values that has changed. A tied weight
    is there once. Raises LayoutError for one beyond the dtype's range."""
    if rest not in REST_DTYPES:
        raise LayoutError(f"rest={rest} is unknown; choose one of {', '.join(REST_DTYPES)}")
    tensors, rounded = {}, 0
    for name, parameter in whisper.model.named_parameters():
        if name in without:
            continue
        values = parameter.data.to("cpu", REST_DTYPES[rest]).contiguous()
        if not torch.isfinite(values).all():
            raise LayoutError(f"{name} has values beyond the range of rest={rest}; use rest=fp32")
        rounded += int((values.float() != parameter.data.cpu()).sum())
        tensors[name] = values
    return tensors, rounded


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write(out: Path, whisper: Whisper, contents: Contents, card: str, overwrite: bool = False) -> None:
    """Write the checkpoint beside its place and rename it: there is a whole one or none.

    Raises ExportError.
    """
    check_target(out, overwrite)
    with beside(out) as directory:
        for name in COMPANIONS:
            if (whisper.directory / name).is_file():
                shutil.copyfile(whisper.directory / name, directory / name)
        if not (directory / GENERATION).exists():
            whisper.model.generation_config.save_pretrained(directory)
        config = json.loads((whisper.directory / CONFIG).read_text(encoding="utf-8"))
        config = {name: value for name, value in config.items() if name != "torch_dtype"} | contents.config
        (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (directory / CARD).write_text(card, encoding="utf-8")
        weights = directory / contents.file
        save_file(contents.tensors, weights, contents.metadata)
        weights.chmod((directory / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
        check_target(out, overwrite)  # again: that took a while
