"""`--help`: every setting with what it means, from where that is written: the comments of conf/config.yaml,
and the docstrings of the schema."""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import yaml

from wq.catalogue import conf_dir
from wq.numerics.formats import Format
from wq.study.spec.config import Config, FormatConfig, FormatOptions

WIDTH, INDENT, COLUMN = 110, 2, 32  # characters of a line, before a setting, and where its meaning begins
DECODERS = {"format": "decoder_format", "activation": "decoder_activation"}
ENTRY = re.compile(r"    (\w+(?:, \w+)*)  +(\S.*)")  # of a docstring: names, and what they mean


def help_text() -> str:
    defaults = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    chosen = {
        name: choice
        for each in defaults["defaults"]
        if isinstance(each, dict)
        for name, choice in each.items()
    }
    meanings = comments()
    lines = [
        defaults["hydra"]["help"]["header"].strip(),
        "",
        "Settings of a job, key=value, with what they are by default:",
        "",
    ]
    lines += _shown([(f"{name}={_value(defaults[name])}", meanings[name]) for name in settings()])
    for name, schema in groups():
        own = DECODERS.get(name)
        title = f"{name}={chosen[name]}" if name in chosen else name
        told = f"{title}  {_summary(schema)}" + (f" {own}=... gives the decoder its own." if own else "")
        lines += ["", *_wrapped(told, 0), *_choices(name)]
        lines += _shown([(f"{name}.{key}", text) for key, text in documented(schema).items()])
    lines += [
        "",
        "experiment, as +experiment=NAME with -m: a question of the study, as a grid",
        *_choices("experiment"),
    ]
    return "\n".join((*lines, "", defaults["hydra"]["help"]["footer"].strip()))


def settings() -> list[str]:
    """The keys of a job that are no groups."""
    return [
        each.name
        for each in fields(Config)
        if _schema(each.type) is None and each.name not in DECODERS.values()
    ]


def groups() -> Iterator[tuple[str, type]]:
    """The groups of settings, each with its schema; a decoder's own is like that of both."""
    for each in fields(Config):
        schema = _schema(each.type)
        if schema is not None and each.name not in DECODERS.values():
            yield each.name, schema


def comments() -> dict[str, str]:
    """What the comment above each key of conf/config.yaml says."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in (conf_dir() / "config.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            above.append(line[2:])
        else:
            if above and (key := re.match(r"(\w+):", line)):
                found[key[1]] = " ".join(above)
            above = []
    return found


def documented(schema: type) -> dict[str, str]:
    """What a schema's docstring says of each of its fields."""
    text = (Format if schema is FormatConfig else schema).__doc__ or ""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        entry = ENTRY.fullmatch(line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif names and line.startswith("      ") and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return {each.name: found[each.name] for each in fields(schema) if each.name in found}


def _schema(kind: Any) -> type | None:
    """The dataclass that a field holds, if it holds one; format options are those of `format`."""
    kinds = (each for each in (kind, *get_args(kind)) if isinstance(each, type) and is_dataclass(each))
    return next((each for each in kinds if each is not FormatOptions), None)


def _summary(schema: type) -> str:
    text = "A number format." if schema is FormatConfig else schema.__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())


def _choices(group: str) -> list[str]:
    names = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    return _wrapped(f"one of {', '.join(names)}", INDENT) if names else []


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _shown(entries: list[tuple[str, str]]) -> list[str]:
    lines = []
    for name, meaning in entries:
        first, *rest = _wrapped(meaning, COLUMN)
        lead = " " * INDENT + name
        lines += [lead.ljust(COLUMN) + first.strip()] if len(lead) < COLUMN - 1 else [lead, first]
        lines += rest
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
