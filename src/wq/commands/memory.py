"""How much memory a quantized model takes, by formula: weights, keys and values, activations."""

from itertools import product
from pathlib import Path

from wq import outputs
from wq.console import run_command

HELP = """usage: wq memory [key=value ...]

The memory of a deployment that stores what the point says it stores and computes in float16: weights, keys
and values of self-attention (they grow with the tokens) and of cross-attention (as long as the audio window),
and the peak of activations. It needs no weights. It takes the settings of a job or a grid: python -m wq.main
--help.

  wq memory model=small format=int4 kv_cache=int8 batch=8 tokens=224
  wq memory model=tiny,small kv_cache=none,int8,int4 format=int4     a grid of points
  wq memory model=small batch=1,8,32 tokens=64,224,444 out=FILE.png  a sweep, and its picture (.png or .svg)

  batch=N      utterances at once (1)
  tokens=N     of the longest transcript (half of the decoder's positions; max_new_tokens is the same)
  beams=N      hypotheses of each utterance; they share the keys and values of its audio (1: greedy)
  seconds=S    of audio, for an engine that does not pad to the window (the whole window)
  csv=FILE     the same table, in bytes

MB are 10^6 bytes. docs/memory.md has the formulas, and how they compare with what is measured."""

# Settings of its own, with their defaults; None is the model's
WORKLOAD = {"batch": (int, 1), "beams": (int, 1), "tokens": (int, None), "seconds": (float, None)}
COLUMNS = ("weights", "self_attention", "cross_attention", "activations", "kv_cache", "total")


def main() -> None:
    run_command(tell, HELP)


def tell(arguments: list[str]) -> None:
    from wq.study.resources.footprint import workload
    from wq.study.resources.points import aligned, compose_points, leave_table, split_settings, table_file

    numbers = {name: kind for name, (kind, _) in WORKLOAD.items()}
    settings, overrides = split_settings(arguments, numbers | {"csv": table_file, "out": picture})
    asked = [settings.get(name, [default]) for name, (_, default) in WORKLOAD.items()]
    entries = []
    for point in compose_points(overrides):
        for batch, beams, tokens, seconds in product(*asked):
            limit = point.spec.max_new_tokens if tokens is None else tokens
            work = workload(point.geometry, batch, beams, limit, seconds)
            entries.append((point.names, work, point.footprint(work)))
    shown = ["batch", "tokens", *(name for name in ("beams", "seconds") if name in settings)]
    header = ("model", "point", *shown)
    starts = [(*names, *(getattr(work, name) for name in shown)) for names, work, _ in entries]
    counts = [[getattr(needed, column) for column in COLUMNS] for *_, needed in entries]
    table = [
        (*start, *(f"{count / 1e6:.2f}" for count in line))
        for start, line in zip(starts, counts, strict=True)
    ]
    print(aligned((*header, *(f"{column.replace('_', ' ')} MB" for column in COLUMNS)), table))
    rows = [(*start, *line) for start, line in zip(starts, counts, strict=True)]
    leave_table(settings, (*header, *COLUMNS), rows)
    if "out" in settings:
        from wq.study.report.footprint_figures import draw

        draw(settings["out"][-1], [(" ".join(names), work, needed) for names, work, needed in entries])
        print(settings["out"][-1])


def picture(name: str) -> Path:
    if not name.endswith((".png", ".svg")):
        raise ValueError(f"out={name} is no picture; give a name that ends in .png or .svg")
    outputs.refuse_foreign([Path(name)])
    return Path(name)
