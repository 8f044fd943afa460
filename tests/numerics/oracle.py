"""Slow, obvious versions of what `wq.numerics` does fast, in exact rational arithmetic, and tensors to
try."""

from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from wq.catalogue import format_names, load_format
from wq.numerics.formats import Format

FORMATS = format_names()
SCALED = [name for name in FORMATS if not load_format(name).is_cast]
# formats whose code book is short enough to walk through value by value
LISTED = [name for name in FORMATS if load_format(name).bits <= 8]
SCALE_RULES = ("floor", "even", "rceil", "ceil")


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equality of float32 tensors that tells -0 from 0."""
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


def is_even(format: Format, index: int) -> bool:
    """Whether code_book[index] ends in a zero bit: of its integer, its index, or its significand."""
    if format.element == "int":
        return (index + format.min_code) % 2 == 0
    if format.element == "levels":
        return index % 2 == 0
    magnitude_code = abs(index - (len(format.code_book) - 1) // 2)
    return magnitude_code == 0 if format.mantissa_bits == 0 else magnitude_code % 2 == 0


@cache
def fractions(format: Format) -> list[Fraction]:
    return [Fraction(value) for value in format.code_book]


def nearest(x: float, format: Format) -> float:
    """The value of the code book nearest to x by looking at all of them. Ties to even; where both
    significands are odd, because they have one bit only, to the larger magnitude (IEEE 754-2019 section
    4.3.1)."""
    book, exact = format.code_book, Fraction(x)
    distances = [abs(exact - value) for value in fractions(format)]
    least = min(distances)
    tied = [i for i, distance in enumerate(distances) if distance == least]
    return book[next((i for i in tied if is_even(format, i)), max(tied, key=lambda i: abs(book[i])))]


def weight(rows: int = 16, columns: int = 256, seed: int = 0) -> Tensor:
    """A weight-like tensor: normal, rows of different size, a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.logspace(-2, 1, rows)[:, None]
    x.view(-1)[torch.randperm(x.numel(), generator=generator)[: max(1, x.numel() // 500)]] *= 20
    return x
