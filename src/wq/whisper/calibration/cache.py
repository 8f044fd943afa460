"""Statistics of calibration, kept between processes: a grid's jobs ask for the same ones many times."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wq import caches
from wq.whisper.calibration.calibration import Observed

KIND = "calibration"

# Raise it when the same speech gives other statistics, or the files hold them otherwise
VERSION = 3

TENSORS = ("channel_max", "negative", "positive", "token_max", "sample")
MOMENT = "moment"  # only where it was asked for
NUMBERS = ("tokens", "amin", "amax", "output_amax")


def cached(key: Mapping[str, object], compute: Callable[[], dict[str, Observed]]) -> dict[str, Observed]:
    """What was computed for this key before, or what `compute` gives now.

    key   whatever the statistics depend on: content hashes of model and speech, smoothing, decode settings
    """
    name = caches.digest({**key, "version": VERSION})
    if file := caches.open_kept(KIND, name):
        with file:
            return load(Path(file.name))
    observed = compute()
    caches.keep(KIND, name, lambda path: save(path, observed))
    return observed


def save(file: Path, observed: Mapping[str, Observed]) -> None:
    """Layers that share statistics share them in the file. Raises OSError where it cannot be written."""
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    layers: dict[str, dict[str, object]] = {}
    for name, each in observed.items():
        owner = owners.setdefault(id(each.sample), name)
        layers[name] = {"owner": owner, **{number: getattr(each, number) for number in NUMBERS}}
        if owner == name:
            parts = {part: getattr(each, part) for part in (*TENSORS, MOMENT)}
            tensors |= {f"{name}.{part}": x.contiguous() for part, x in parts.items() if x is not None}
    try:
        save_file(tensors, file, {"layers": json.dumps(layers)})
    except SafetensorError as error:  # which is how a full disk is told
        raise OSError(None, str(error)) from error


def load(file: Path) -> dict[str, Observed]:
    """Copies, so that nothing of the file is used afterwards."""
    with safe_open(file, framework="pt") as content:
        layers = json.loads(content.metadata()["layers"])
        tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
    return {
        name: Observed(
            **{part: tensors[f"{each['owner']}.{part}"] for part in TENSORS},
            **{number: each[number] for number in NUMBERS},
            moment=tensors.get(f"{each['owner']}.{MOMENT}"),
        )
        for name, each in layers.items()
    }
