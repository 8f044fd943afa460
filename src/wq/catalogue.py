"""The catalogue of number formats, and quantization by a format's name.

conf/format/NAME.yaml is the one description of a format: a flat mapping of the fields of `Format`. A new file
there is a new format everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from wq.numerics.formats import Format, with_options

if TYPE_CHECKING:
    from torch import Tensor


def conf_dir() -> Path:
    """The configuration directory: wq/conf in an installed wheel, conf at the top of a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def format_names(directory: Path | None = None) -> list[str]:
    """Names of all formats in the catalogue, sorted."""
    return sorted(path.stem for path in ((directory or conf_dir()) / "format").glob("*.yaml"))


@lru_cache
def load_format(name: str, directory: Path | None = None) -> Format:
    """The format in conf/format/NAME.yaml. Raises ValueError for an unknown name or a wrong description."""
    path = (directory or conf_dir()) / "format" / f"{name}.yaml"
    names = format_names(directory)
    if name not in names:
        raise ValueError(f"format={name} is unknown; choose one of {', '.join(names)}, or add {path}")
    description = yaml.safe_load(path.read_text())
    if not isinstance(description, dict):
        raise ValueError(f"{path} must be a flat mapping of the fields of Format; see the files beside it")
    known = {field.name for field in fields(Format)}
    for field in description:
        if field not in known:
            raise ValueError(f"{path}: unknown field {field}; choose from {', '.join(sorted(known))}")
    if description.get("name") != name:
        raise ValueError(
            f"{path}: name is {description.get('name')}; it must be the file's own, name: {name}"
        )
    return Format(**description)


def fake_quantize(
    x: Tensor,
    format: str | Format,
    granularity: str = "group",
    group: int | None = None,
    *,
    scale_dtype: str | None = None,
    scale_rule: str | None = None,
    int_range: str | None = None,
    amin: Tensor | float | None = None,
    amax: Tensor | float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`wq.numerics.fake_quant.fake_quantize` that takes a format's name too: wq.fake_quantize(weight,
    "nvfp4")."""
    from wq.numerics import fake_quant

    description = with_options(_as_format(format), scale_dtype, scale_rule, int_range)
    return fake_quant.fake_quantize(x, description, granularity, group, amin=amin, amax=amax, out=out)


def storage_bits(
    shape: Sequence[int],
    format: str | Format,
    granularity: str = "group",
    group: int | None = None,
    *,
    scale_dtype: str | None = None,
    int_range: str | None = None,
) -> int:
    """Exact number of bits of a quantized tensor of this shape, its scales, zero points and tensor scale
    included."""
    from wq.numerics.storage import storage

    return storage(
        shape, with_options(_as_format(format), scale_dtype, None, int_range), granularity, group
    ).total


def _as_format(format: str | Format) -> Format:
    return load_format(format) if isinstance(format, str) else format
