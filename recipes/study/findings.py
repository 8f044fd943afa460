"""Fill the tables of docs/findings.md from the committed results: python recipes/study/findings.py

A table stands between two comments, of which the first says what is in it:

    <!-- points SET/EXPERIMENT: NAME; NAME -->      points by name, against fp32; a name may be a pattern
    <!-- tokens SET/EXPERIMENT: NAME; NAME -->      the same points by every token
    <!-- pairs SET: QUESTION -->                    the second of each pair against the first
    <!-- tokens-of-pairs SET: QUESTION -->          the same by every token
    <!-- agreement SET: EXPERIMENT -->              how far the order by kl is that by wer_capped
    <!-- front SET/EXPERIMENT -->                   of every format, how many points are on the front
    ...
    <!-- end -->
"""

import csv
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "findings.md"
BLOCK = re.compile(
    r"<!-- (points|tokens-of-pairs|tokens|pairs|agreement|front) (.+?) -->\n.*?<!-- end -->", re.DOTALL
)

Row = dict[str, str]


def filled(page: str, results: Path = DOCS / "results") -> str:
    """The page with every table made anew. Raises ValueError for a table that nothing is known of."""

    def block(found: re.Match[str]) -> str:
        kind, query = found.groups()
        return f"<!-- {kind} {query} -->\n{TABLES[kind](results, query)}\n<!-- end -->"

    return BLOCK.sub(block, page)


def points(results: Path, query: str) -> str:
    place, _, names = query.partition(": ")
    rows = read(results, place)
    found = [
        row
        for name in names.split("; ")
        for row in matching(rows, name, query)
        if row["is_reference"] != "True"
    ]
    size = "kv_cache_bytes" if place.endswith("kv_cache") else "linear_bytes"
    return table(
        ("point", "WER %", "change [95 %]", "MB", "front"),
        [
            (
                code(row["point"]),
                percent(row["wer"]),
                change(row),
                megabytes(row[size]),
                row["front"],
            )
            for row in found
        ],
    )


def tokens(results: Path, query: str) -> str:
    place, _, names = query.partition(": ")
    rows = read(results, place)
    found = [row for name in names.split("; ") for row in matching(rows, name, query)]
    size = "kv_cache_bytes" if place.endswith("kv_cache") else "linear_bytes"
    return table(
        ("point", "kl, mnat/token [95 %]", "same top token %", "WER %", "change [95 %]", "MB", "front"),
        [
            (
                *(code(row["point"]), kl(row), percent(row["top1_agreement"]), percent(row["wer"])),
                *(change(row), megabytes(row[size]), row["front"]),
            )
            for row in found
            if row["is_reference"] != "True"
        ],
    )


def tokens_of_pairs(results: Path, query: str) -> str:
    return table(
        ("from", "to", "kl", "kl", "change, mnat/token [95 %]", "MB", "MB"),
        [
            (
                *(code(row["first"]), code(row["second"])),
                *(thousandths(row["first_kl"]), thousandths(row["second_kl"]), kl_change(row)),
                *(megabytes(row["first_linear_bytes"]), megabytes(row["second_linear_bytes"])),
            )
            for row in of_question(results, query)
        ],
    )


def of_question(results: Path, query: str) -> list[Row]:
    place, _, question = query.partition(": ")
    rows = [row for row in read(results, f"{place}/pairs") if row["question"] == question]
    if not rows:
        raise ValueError(f"{query}: no such pairs in {results / place}")
    return rows


def pairs(results: Path, query: str) -> str:
    rows = of_question(results, query)
    return table(
        ("from", "to", "WER %", "WER %", "change [95 %]", "MB", "MB"),
        [
            (
                *(
                    code(row["first"]),
                    code(row["second"]),
                    percent(row["first_wer"]),
                    percent(row["second_wer"]),
                ),
                *(change(row), megabytes(row["first_linear_bytes"]), megabytes(row["second_linear_bytes"])),
            )
            for row in rows
        ],
    )


def agreement(results: Path, query: str) -> str:
    place, _, experiment = query.partition(": ")
    rows = [row for row in read(results, f"{place}/agreement") if row["experiment"] == experiment]
    if not rows:
        raise ValueError(f"{query}: nothing in {results / place}")
    ends = "[{:.2f}, {:.2f}]"
    return table(
        ("points", "how many", "rank correlation of kl with wer_capped", "95 % interval"),
        [
            (
                *(row["points"], row["count"], f"{float(row['spearman']):.2f}"),
                ends.format(float(row["ci_low"]), float(row["ci_high"])),
            )
            for row in rows
        ],
    )


def front(results: Path, query: str) -> str:
    rows = [row for row in read(results, query) if row["is_reference"] != "True"]
    formats = dict.fromkeys(row["format"] for row in rows)
    found = {row["front"] for row in rows}
    standings = [each for each in STANDINGS if each in found or each not in ("equivalent", "broken")]
    counts = [
        (
            code(name),
            *(
                sum(row["format"] == name and row["front"] == standing for row in rows)
                for standing in standings
            ),
        )
        for name in formats
    ]
    counts.append(("all", *(sum(row["front"] == standing for row in rows) for standing in standings)))
    return table(("format", *standings), counts)


STANDINGS = ("on", "equivalent", "undecided", "off", "broken")
TABLES: dict[str, Callable[[Path, str], str]] = {
    "points": points,
    "tokens": tokens,
    "pairs": pairs,
    "tokens-of-pairs": tokens_of_pairs,
    "agreement": agreement,
    "front": front,
}


def read(results: Path, place: str) -> list[Row]:
    with (results / f"{place}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def matching(rows: Sequence[Row], name: str, query: str) -> list[Row]:
    found = [row for row in rows if row["point"] == name or fnmatchcase(row["point"], name)]
    if not found:
        raise ValueError(f"{query}: no point is called {name}")
    return found


def change(row: Row) -> str:
    """The difference with its interval in percentage points, bold where the interval leaves out zero."""
    low, high = float(row["wer_delta_ci_low"]), float(row["wer_delta_ci_high"])
    text = f"{signed(row['wer_delta'])} [{signed(low)}, {signed(high)}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def kl(row: Row) -> str:
    ends = (thousandths(row[f"kl_ci_{end}"]) for end in ("low", "high"))
    return f"{thousandths(row['kl'])} [{', '.join(ends)}]"


def kl_change(row: Row) -> str:
    """In thousandths of a nat per token, bold where the interval leaves out zero."""
    low, high = float(row["kl_delta_ci_low"]), float(row["kl_delta_ci_high"])
    values = (f"{1000 * float(value):+.2f}" for value in (row["kl_delta"], low, high))
    text = "{} [{}, {}]".format(*values)
    return f"**{text}**" if low > 0 or high < 0 else text


def thousandths(value: str) -> str:
    return f"{1000 * float(value):.2f}"


def percent(rate: str | float) -> str:
    return f"{round(100 * float(rate), 2) + 0.0:.2f}"


def signed(rate: str | float) -> str:
    points = round(100 * float(rate), 2) + 0.0
    return f"{points:+.2f}" if points else "0.00"


def megabytes(count: str) -> str:
    return f"{int(count) / 1e6:.2f}"


def code(name: str) -> str:
    return f"`{name}`"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---" if n == 0 else "---:" for n in range(len(header))], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
