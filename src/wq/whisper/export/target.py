"""The place of a checkpoint that is to be written: free, or an earlier export's; filled whole or not at all.

Needs no torch: a place that is taken is told of at once.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from wq import outputs
from wq.whisper.checkpoint.files import FILES, WEIGHTS

LAYOUTS = ("auto", "compressed-tensors", "wq")
RESTS = ("fp16", "fp32")  # dtypes of what is not quantized
CARD, CONFIG = "README.md", "config.json"
COMPANIONS = tuple(name for name in FILES if name not in (*WEIGHTS, CONFIG))


class ExportError(ValueError):
    """A checkpoint that was not written: one line that names the place, the reason and the remedy."""


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse a place that is taken. Only what an export wrote is ever overwritten.

    Raises ExportError.
    """
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise ExportError(f"out={out} exists; give another directory, or overwrite=true")
    if out.is_symlink() or not out.is_dir():
        raise ExportError(f"out={out} is no directory, which no export wrote; give another directory")
    strange = sorted(
        path.name for path in out.iterdir() if path.name != outputs.LIST and not outputs.is_own(path)
    )
    if strange:
        raise ExportError(
            f"out={out} holds {strange[0]}, which no export wrote as it is; give another directory"
        )


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new directory that takes the place of `out` when all went well, and is gone when not.

    Raises ExportError where the disk is full or may not be written to.
    """
    place = out.resolve()
    new, old = (place.with_name(f".{place.name}.{os.getpid()}{end}") for end in ("", ".old"))
    try:
        new.mkdir(parents=True)
        yield new
        outputs.claim(sorted(new.iterdir()))
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if place.exists():
            place.rename(old)
        new.rename(place)
    except (OSError, SafetensorError) as error:
        if old.exists() and not place.exists():
            old.rename(place)
        raise ExportError(
            f"out={out} cannot be written ({error}) and is as it was; make room there, or give another place"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
