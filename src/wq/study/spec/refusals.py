"""Hydra's refusals in one line each: what is wrong, what was probably meant, and where the choices are."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import get_args

from wq.console import did_you_mean, nearest
from wq.study.spec.config import Config

HELP = "python -m wq.main --help lists all"
HYDRAS = ("hydra.", "hydra/")
# Omegaconf's kinds of values, as people call them
KINDS = {
    "Integer": "no whole number; give one",
    "Float": "no number; give one",
    "bool": "neither true nor false; give one of them",
}


def explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """What Hydra refuses of a command line, in our words; None where there are none for it."""
    for explanation in (_choice, _setting, _value, _spelling, _grid):
        if text := explanation(error, arguments):
            return text
    return None


def setting_names(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every key that may be set, in full: group, dataset.split, activation.options.scale_rule."""
    for each in fields(schema):
        yield prefix + each.name
        for kind in (each.type, *get_args(each.type)):
            if isinstance(kind, type) and is_dataclass(kind):
                yield from setting_names(kind, f"{prefix}{each.name}.")


def unknown_setting(key: str) -> str:
    """That a key is no setting, with the one most like it, in full or by its last part."""
    if key.startswith(HYDRAS):
        return f"{key} is no setting of Hydra's; python -m wq.main --cfg hydra prints them"
    names = list(setting_names())
    place, _, last = key.rpartition(".")
    siblings = [name for name in names if place and name.rpartition(".")[0] == place]
    ends = [name for name in names if name.endswith(f".{key}")]
    near = [f"{place}.{each}" for each in nearest(last, [name.rpartition(".")[2] for name in siblings], 1)]
    if near or ends:
        return f"{key} is no setting; did you mean {' or '.join(near or ends)}?"
    if siblings:
        return f"{key} is no setting; choose one of {', '.join(siblings)}"
    return f"{key} is no setting; {did_you_mean(key, names)}{HELP}"


def _choice(error: Exception, arguments: Sequence[str]) -> str | None:
    """A file that a group of the configuration has not."""
    file, options = getattr(error, "missing_cfg_file", None), getattr(error, "options", None)
    group = re.search(r"Available options in '(.+?)'", str(error))
    if not file or not group:
        return None
    value = str(file).removeprefix(f"{group[1]}/")
    given = next((text for text in arguments if text.partition("=")[2] == value), f"{group[1]}={value}")
    text = f"{given.partition('@')[2] or given} is unknown; "
    if group[1] in ("model", "dataset") and re.search(r"[/.]", value):
        source = "manifest" if value.endswith(".jsonl") else "folder"
        path = f"model.path={value}" if group[1] == "model" else f"dataset={source} dataset.path={value}"
        text += f"a path or a hub id is given as {path}; "
    choices = sorted(options or ())
    return f"{text}{did_you_mean(value, choices)}choose one of {', '.join(choices)}"


def _setting(error: Exception, arguments: Sequence[str]) -> str | None:
    """A key that the schema has not."""
    found = re.search(r"Could not override '(?:.*@)?(.+?)'", str(error))
    if not found:
        return None
    key = found[1]
    if key == "experiment":
        given = next((text for text in arguments if text.startswith(key)), f"{key}=NAME")
        return f"{given} takes a plus: +{given}"
    return unknown_setting(key)


def _value(error: Exception, arguments: Sequence[str]) -> str | None:
    """A value that is not of its setting's type."""
    found = re.search(r"Error merging override (.+)", str(error))
    if not found:
        return None
    given, cause = found[1].strip(), str(error.__cause__ or "")
    key, _, value = given.partition("=")
    if "is not a ListConfig" in cause:
        return f"{given} is no list; give {key}=[{value}]"
    kind = re.search(r"could not be converted to (\w+)|is not a valid (bool)", cause)
    if kind and (name := KINDS.get(kind[1] or kind[2])):
        return f"{given} is {name}"
    return f"{given} is no value for this setting ({cause.splitlines()[0] if cause else error}); {HELP}"


def _spelling(error: Exception, arguments: Sequence[str]) -> str | None:
    """What Hydra's grammar cannot read."""
    given = getattr(error, "override", None)
    if given is None:
        return None
    key, equals, value = given.partition("=")
    if not equals:
        return f"{given} is no setting; give key=value, such as format=int4"
    if value.endswith(","):
        return f"{given} ends in a comma; the values of a grid stand without spaces, as in {given}NEXT"
    return f"{given} cannot be read; quote what has brackets, commas or spaces in it: '{key}=\"{value}\"'"


def _grid(error: Exception, arguments: Sequence[str]) -> str | None:
    """Several values, and no -m."""
    found = re.search(r"(?:Sweep parameters|Ambiguous value for argument) '(.+?)'(?:\s|$)", str(error))
    return f"{found[1]} gives several values; -m makes a grid of them" if found else None
