"""Device profiles, and the rule by which a pair of precisions finds the units that multiply it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from wq.catalogue import conf_dir
from wq.numerics.formats import Format

# The operands that units are built for. Where a device has no unit for a kind, the first later one that it
# has serves: each can hold every value of those before it.
KINDS = {
    "int4": ("int4", "int8", "fp16", "fp32"),
    "int8": ("int8", "fp16", "fp32"),
    "fp4": ("fp4", "fp6", "fp8", "fp16", "fp32"),
    "fp6": ("fp6", "fp8", "fp16", "fp32"),
    "fp8": ("fp8", "fp16", "fp32"),
    "fp16": ("fp16", "fp32"),
    "fp32": ("fp32",),
}
INTEGERS = {"int4", "int8"}


@dataclass(frozen=True)
class Hardware:
    """A device: conf/hardware/NAME.yaml, which names its sources.

    bandwidth   of the memory that holds weights and caches, GB/s
    on_chip     memory beside the units, MB; 0 where it is not published
    rates       dense peak by kind of operand, 10^12 operations a second; a multiply-add is two
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    on_chip: float = 0.0

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.rates if kind not in KINDS]:
            raise ValueError(
                f"hardware {self.name}: rates of {', '.join(unknown)} are unknown; "
                f"choose among {', '.join(KINDS)}"
            )
        if min(self.bandwidth, *self.rates.values()) <= 0 or self.on_chip < 0:
            raise ValueError(
                f"hardware {self.name}: bandwidth and rates must be above 0, on_chip at least 0; correct them"
            )

    def unit(self, kind: str) -> str:
        """The kind that serves this one. Raises ValueError where there is none."""
        for served in KINDS[kind]:
            if served in self.rates:
                return served
        raise ValueError(
            f"hardware {self.name} multiplies nothing as wide as {kind}, which this point needs; choose "
            "other hardware, or narrower operands"
        )


def hardware_names() -> list[str]:
    return sorted(path.stem for path in (conf_dir() / "hardware").glob("*.yaml"))


def load_hardware(name: str) -> Hardware:
    """The profile in conf/hardware/NAME.yaml, or in the file NAME if it ends in .yaml. Raises ValueError."""
    file = Path(name) if name.endswith(".yaml") else conf_dir() / "hardware" / f"{name}.yaml"
    try:
        return Hardware(**{"name": file.stem} | yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        known = ", ".join(hardware_names())
        raise ValueError(
            f"hardware={name} is unknown; choose among {known}, or give a file NAME.yaml"
        ) from error
    except (AttributeError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} is no hardware profile ({reason}); it has bandwidth, rates, on_chip"
        ) from error


def operand_kind(format: Format | None, plain_bits: int) -> str:
    """The narrowest kind that holds every value of a format, whose scales are applied outside of the product.
    None is what nothing rounds, which is `plain_bits` wide; levels of a table are looked up first."""
    if format is None:
        return "fp16" if plain_bits == 16 else "fp32"
    if format.element == "int":
        return "int4" if format.bits <= 4 else "int8" if format.bits <= 8 else "fp32"
    if format.element == "levels":
        return "fp16"
    return next((f"fp{width}" for width in (4, 6, 8, 16) if format.bits <= width), "fp32")


def product_kind(first: str, second: str) -> str:
    """What two operands are multiplied as: the wider one's kind; fp16 for an integer with a narrow float.

    So a weight-only format runs at the rate of its activations.
    """
    if (first in INTEGERS) == (second in INTEGERS):
        return max(first, second, key=list(KINDS).index)
    return "fp32" if "fp32" in (first, second) else "fp16"
