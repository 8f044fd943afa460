"""docs/performance.md from the data of the parts: no number of it is written by hand."""

import json
from importlib import import_module
from pathlib import Path

from benchmarks.measuring import Data

# Part: its title on the page, in this order
PARTS = {
    "stages": "Where the time of a job goes",
    "grid": "A grid",
    "transcription": "Transcription",
    "encoder": "The encoder",
    "scaling": "Scaling",
    "numerics": "Quantization",
    "activation": "Activations",
    "packing": "Packing and export",
    "report": "A report",
}
TITLE = "# How fast things are"
DATA, PAGE = "performance.json", "performance.md"


def write(directory: Path, parts: dict[str, Data]) -> None:
    """The data, the page and its pictures; parts that are not given stay as they are there."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / DATA
    known = json.loads(path.read_text()) if path.is_file() else {}
    known |= parts
    known = {part: known[part] for part in PARTS if part in known}
    path.write_text(json.dumps(known, indent=1) + "\n")
    (directory / PAGE).write_text(text(known))
    for part in parts:
        for name, chart in charts(part, known[part]["results"]).items():
            chart.save(directory / f"performance-{name}.png", scale_factor=1.5)


def charts(part: str, results: Data) -> Data:
    make = getattr(import_module(f"benchmarks.{part}"), "charts", None)
    return make(results) if make else {}


def text(parts: dict[str, Data]) -> str:
    """The page as Markdown."""
    first = described(next(iter(parts.values()))["machine"])
    lines = [
        TITLE,
        f"Measured on {first}. Ratios are between things measured in turn in the same run. `make bench` "
        "measures all of it anew and writes this page, `make bench ONLY=grid` one part.",
        "On a CUDA device nothing of this has been measured; `python -m benchmarks.numerics --device cuda` "
        "and `python -m benchmarks.transcription --device cuda` would. Quantization is one fused kernel "
        "there, proven in Triton's interpreter and compiled for two architectures, and the decoder's step is "
        "captured as a graph, proven as the same operations on a CPU; neither has been started on a device.",
    ]
    for part, data in parts.items():
        own = described(data["machine"])
        lines += [f"## {PARTS[part]}", f"`{data['command']}`" + (f", on {own}." if own != first else ":")]
        lines += [import_module(f"benchmarks.{part}").section(data["results"])]
        lines += [f"![{PARTS[part]}](performance-{name}.png)" for name in charts(part, data["results"])]
    return "\n\n".join(lines) + "\n"


def described(machine: Data) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    kind = f" ({machine['capability']})" if "capability" in machine else ""  # older figures do not tell
    # more than a part and what it starts
    is_busy = machine.get("load", 0) > machine["threads"] + 1
    load = f", beside other work (load average {machine['load']})" if is_busy else ""
    return (
        f"{machine['threads']} cores of {machine['processor']}{kind}, "
        f"{machine['memory_gb']} GB, Python {machine['python']}, {libraries}{load}"
    )
