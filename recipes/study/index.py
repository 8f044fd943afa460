"""The index of a set's results: what was run on what, with which versions, by which command."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tables import as_csv, read_csv

from wq.outputs import write_whole
from wq.study.compare.scenes import Scene, interval, number, percent
from wq.study.store.results import Row

SETS = {
    "nano-clean": "The shipped model on the shipped speech, split `clean`: synthetic voices with commands.",
    "nano-other": "The shipped model on the shipped speech, split `other`: commands with noise.",
    "tiny_en": "OpenAI's tiny.en, whole, on human speech: adults reading English that is not their first "
    "language, of whom a model understands most (speechocean762, OpenSLR 101, CC BY 4.0).",
    "real": "The convolution, attention, MLP and norm weights of OpenAI's tiny.en with a re-learned token "
    "embedding, which makes far more errors than tiny.en itself, on human speech: adults reading English "
    "that is not their first language (speechocean762, OpenSLR 101, CC BY 4.0). Paired differences are "
    "what it is for.",
}
# What is not shipped, by set
FOLDERS = {
    "tiny_en": {"model.path": "DIR/tiny_en", "dataset.path": "DIR/speech"},
    "real": {"model.path": "DIR/checkpoint", "dataset.path": "DIR/speech"},
}
SENSITIVITY = ("format=int4,int3,nvfp4", "limit=64")  # role by role, on the first utterances
MEMORY, BATCHES = "kv_cache_memory.csv", ("batch=1,8,32", "tokens=16,60")  # of the points of kv_cache
COUNTS = ("experiment", "finished", "points")


def write_index(
    directory: Path, scene: Scene, counts: Mapping[str, tuple[int, int]], settings: Sequence[str]
) -> None:
    """`README.md`, and `experiments.csv`: of every experiment, how many of its points are finished, and how
    many it has. What other experiments have written stays."""
    file, name = directory / "experiments.csv", directory.name
    earlier: dict[str, Row] = {row["experiment"]: row for row in read_csv(file)}
    new: dict[str, Row] = {
        each: dict(zip(COUNTS, (each, *found), strict=True)) for each, found in counts.items()
    }
    rows = [row for _, row in sorted((earlier | new).items())]
    write_whole(file, as_csv(COUNTS, rows))
    kept = [text for text in settings if text.partition("=")[0] not in FOLDERS.get(name, {})]
    shown = " ".join([*kept, *placed(name)])
    lines = [
        f"# {name}",
        "",
        f"{SETS[name]} {facts(scene)}",
        "",
        "| experiment | points | table | picture |",
        "| --- | ---: | --- | --- |",
        *(f"| {' | '.join(cells(directory, row))} |" for row in rows),
        "",
        "[pairs.csv](pairs.csv) has the paired differences between points neither of which is the reference "
        "that [recipes/study/pairs.yaml](../../../recipes/study/pairs.yaml) lists. Rates are fractions, "
        "sizes bytes, intervals of 95 %; `wer_delta` is against fp32, and `front` says where a point stands "
        "among those of its table (docs/recommending.md).",
        "",
        "All of it again, from nothing, and one experiment alone:",
        "",
        "```",
        f"python recipes/study/run.py {' '.join([name, *placed(name)])}",
        f"python -m wq.main -m +experiment=NAME {shown}",
        "```",
    ]
    if (directory / MEMORY).exists():
        lines += [
            "",
            f"[{MEMORY}]({MEMORY}) has the bytes of weights, keys and values, and activations, by formula:",
            "",
            "```",
            f"wq memory +experiment=kv_cache {' '.join((shown, *BATCHES))}",
            "```",
        ]
    if (directory / "sensitivity.csv").exists():
        lines += [
            "",
            "[sensitivity.csv](sensitivity.csv) and [its picture](sensitivity.svg) round one role at a time:",
            "",
            "```",
            f"wq sensitivity {' '.join((*SENSITIVITY, shown))}",
            "```",
        ]
    write_whole(directory / "README.md", "\n".join(lines) + "\n")


def facts(scene: Scene) -> str:
    reference = scene.reference
    assert reference is not None
    versions = {column: {str(row.get(column)) for row in scene.rows} for column in reference}
    told = ", ".join(
        f"{column.removeprefix('version_')} {' and '.join(sorted(found))}"
        for column, found in versions.items()
        if column.startswith("version_")
    )
    return (
        f"{reference['utterances']} utterances, {reference['reference_words']:,} words; fp32 "
        f"{percent(number(reference, 'wer'))} % {interval(reference, 'wer')}. On the CPU, with {told}."
    )


def cells(directory: Path, row: Row) -> tuple[str, ...]:
    name, found, asked = (str(row[column]) for column in COUNTS)
    picture = f"{name}.svg" if (directory / f"{name}.svg").exists() else ""
    return (
        name,
        found if found == asked else f"{found} of {asked}",
        f"[{name}.csv]({name}.csv)",
        f"[{picture}]({picture})" if picture else "",
    )


def placed(name: str) -> list[str]:
    """The settings that say where a set lies which is not shipped."""
    return [f"{key}={place}" for key, place in FOLDERS.get(name, {}).items()]
