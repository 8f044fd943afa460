"""Write docs/formats.md and docs/formats.png from the descriptions in conf/format: python docs/formats.py"""

from pathlib import Path

import altair

from wq.catalogue import format_names, load_format
from wq.numerics.formats import Format
from wq.numerics.storage import storage

HERE = Path(__file__).parent
WEIGHT = (1280, 5120)  # the largest linear layer of whisper-large, for the effective bits

HEAD = """# Number formats

Every file in `conf/format` is a format; this page is generated from them by `python docs/formats.py`.

Bits per weight are those of a {rows} x {columns} weight with its scales at the format's own group size.
Smallest and largest are of the element; what a block can hold is these times its scale. How elements are
rounded, scales chosen and blocks cut is said where it is done: `src/wq/numerics/formats.py`, `elements.py`,
`scales.py` and `granularity.py`.

| format | element | bits | largest | smallest > 0 | values | scale | group | bits per weight |
| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |
"""

TAIL = """
![Every code book on one number line](formats.png)

Each row is one code book, divided by its largest value; formats that differ only in their scales share a row.
Integers are spaced evenly; floats are dense around zero, more so with more exponent bits; NormalFloat
follows the quantiles of a normal distribution.

Options of a job: `format.scale_dtype` (fp32, fp16, bf16, e8m0, e4m3), `format.scale_rule` for e8m0
(floor, even, rceil, ceil), `format.int_range` for integers (symmetric, full, asymmetric),
`format.scale_search` (none, mse: the best of scales from 0.4 to 1.5 times the one that fits the range, of
which both ends move), and for any other shape of number
`format=float format.exponent_bits=3 format.mantissa_bits=3` or `format=int format.integer_bits=7`.
A new name is one more file beside the others.

A scale that its precision does not reach is limited to it: fp16 ends at 65504 and 2^-24, and e4m3 at 2^-9
unless `format.tensor_scale=true` puts a float32 scale above it. Such scales are counted by layer in the
result (`clamped_scales`), and told.

The same numbers come out of three implementations, to the bit: `quantize` and `dequantize` through integer
codes, torch's operations in tiles, and one pass in C where the machine has a compiler, which is about as
fast as copying (`benchmarks/numerics.py`). On a GPU the one pass is a Triton kernel, proven in Triton's
interpreter and by the instructions it compiles to; its speed has not been measured. `WQ_NATIVE=off` does
without either.
`tests/numerics/test_references.py` holds them against ml_dtypes, gfloat, torchao and compressed-tensors,
and says where they differ on purpose: nvfp4 blocks far below the tensor's maximum stay alive, `even` rounds
at each element's own mantissa, and elements saturate where a cast gives Inf.
"""


def element_name(format: Format) -> str:
    """The element in its standard notation: int4, E4M3, or the name of its levels."""
    if format.element == "int":
        return f"int{format.bits}" if format.unit == 1 else f"int{format.bits} x {format.unit:g}"
    return format.levels if format.element == "levels" else f"E{format.exponent_bits}M{format.mantissa_bits}"


def scale_name(format: Format) -> str:
    rule = f", {format.scale_rule}" if format.scale_dtype == "e8m0" else ""
    second = " under fp32 per tensor" if format.has_tensor_scale else ""
    choice = ", four over six" if format.four_over_six else ""
    return f"{format.scale_dtype}{rule}{second}{choice}"


def row(format: Format) -> str:
    values = f"{len(format.code_book):,}" if format.bits <= 16 else ""
    bits = f"{storage(WEIGHT, format).bits_per_element:.6g}"
    cells = [
        f"`{format.name}`",
        element_name(format),
        str(format.bits),
        f"{format.max:.6g}",
        f"{format.min_positive:.4g}",
        values,
        scale_name(format),
        str(format.group or ""),
        bits,
    ]
    return f"| {' | '.join(cells)} |\n"


def formats() -> list[Format]:
    """The whole catalogue, narrow to wide."""
    return sorted(map(load_format, format_names()), key=lambda f: (f.bits, storage(WEIGHT, f).total, f.name))


def page() -> str:
    rows = "".join(map(row, formats()))
    return HEAD.format(rows=WEIGHT[0], columns=WEIGHT[1]) + rows + TAIL


def picture() -> altair.Chart:
    """Code books of up to 8 bits, one row each, on a line from -1 to 1."""
    books: dict[tuple[float, ...], list[str]] = {}
    for format in formats():
        if format.bits <= 8:
            books.setdefault(tuple(value / format.max for value in format.code_book), []).append(format.name)
    ticks = [
        {"code book": ", ".join(names), "value / largest value": value}
        for book, names in books.items()
        for value in book
    ]
    return (
        altair.Chart(altair.Data(values=ticks), title="Code books", width=900, height=26 * len(books))
        .mark_tick(thickness=1, height=16, color="#1f3a5f", opacity=1)
        .encode(
            x=altair.X(
                "value / largest value:Q",
                scale=altair.Scale(domain=(-1.02, 1.02)),
                axis=altair.Axis(grid=False),
            ),
            y=altair.Y("code book:N", sort=None, title=None, axis=altair.Axis(labelLimit=260)),
        )
    )


if __name__ == "__main__":
    (HERE / "formats.md").write_text(page())
    picture().save(HERE / "formats.png", scale_factor=1.5)
