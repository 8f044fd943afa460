"""Statistics of calibration, kept between processes: a grid's jobs ask for the same ones many times."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wq.whisper.calibration import Observed

# Raise it when the same speech gives other statistics, or the files hold them otherwise
VERSION = 1

TENSORS = ("channel_max", "negative", "positive", "token_max", "sample")
NUMBERS = ("tokens", "amin", "amax", "output_amax")


def cached(key: Mapping[str, object], compute: Callable[[], dict[str, Observed]]) -> dict[str, Observed]:
    """What was computed for this key before, or what `compute` gives now.

    key   whatever the statistics depend on: content hashes of model and speech, smoothing, decode settings
    """
    file = path(key)
    if file.exists():
        try:
            return load(file)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            print(f"{file} is corrupt ({reason}); calibrating anew", file=sys.stderr)
    observed = compute()
    try:
        save(file, observed)
    except OSError as error:  # a cache that cannot be written costs time, and nothing else
        print(f"{file} cannot be written ({error.strerror}); calibration is not kept", file=sys.stderr)
    return observed


def path(key: Mapping[str, object]) -> Path:
    """Under $WQ_CACHE, or else the user's cache directory."""
    text = json.dumps({**key, "version": VERSION}, sort_keys=True)
    own = os.environ.get("WQ_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wq"
    return root / "calibration" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def save(file: Path, observed: Mapping[str, Observed]) -> None:
    """Written beside its place and renamed, so that it is whole wherever it is found. Layers that share
    statistics share them in the file."""
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    layers: dict[str, dict[str, object]] = {}
    for name, each in observed.items():
        owner = owners.setdefault(id(each.sample), name)
        layers[name] = {"owner": owner, **{number: getattr(each, number) for number in NUMBERS}}
        if owner == name:
            tensors |= {f"{name}.{part}": getattr(each, part).contiguous() for part in TENSORS}
    checksum = digest(tensors)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        written = Path(directory) / file.name
        save_file(tensors, written, {"layers": json.dumps(layers), "checksum": checksum})
        written.replace(file)


def load(file: Path) -> dict[str, Observed]:
    """Raises SafetensorError, KeyError or ValueError for a file that is not as it was written."""
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata() or {}
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    if digest(tensors) != metadata["checksum"]:
        raise ValueError("its tensors are not those that were written")
    layers = json.loads(metadata["layers"])
    return {
        name: Observed(
            **{part: tensors[f"{each['owner']}.{part}"] for part in TENSORS},
            **{number: each[number] for number in NUMBERS},
        )
        for name, each in layers.items()
    }


def digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
