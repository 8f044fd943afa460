"""From the words of a command line to checked configurations, through Hydra."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.conf import HydraConf
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wq.catalogue import conf_dir
from wq.study.spec.config import Config, ConfigurationError
from wq.study.spec.refusals import explain, unknown_setting

# Of Hydra's grammar: what alone is no text, and what makes a longer value with its neighbours
OTHER_TYPES = {OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL, OverrideLexer.NULL}
PARTS = OTHER_TYPES | {
    *(OverrideLexer.ID, OverrideLexer.INTERPOLATION, OverrideLexer.UNQUOTED_CHAR),
    *(OverrideLexer.COLON, OverrideLexer.ESC),
}


def register_schema() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml starts from, and let our launchers
    take the place of Hydra's and its plugins' of the same names, which Hydra would merge with them."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # they register themselves as they are found
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml"):
        store.repo["hydra"]["launcher"].pop(path.name, None)


def as_config(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, checked. Raises ConfigurationError."""
    refuse_unknown(composed, Config)
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = str(getattr(error, "full_key", "")) or "a mandatory value"
        raise ConfigurationError(f"{key} is missing; give {key}=... on the command line") from error
    assert isinstance(config, Config)
    return config


def refuse_unknown(composed: DictConfig, schema: type, prefix: str = "") -> None:
    """Raises ConfigurationError for a key that the schema has not: Hydra takes any behind a +."""
    known = hints(schema)
    for key in map(str, composed):
        if key not in known:
            raise ConfigurationError(unknown_setting(f"{prefix}{key}"))
        below, kind = None if OmegaConf.is_missing(composed, key) else composed[key], without_null(known[key])
        if isinstance(below, DictConfig) and is_dataclass(kind):
            refuse_unknown(below, kind, f"{prefix}{key}.")  # type: ignore[arg-type]


def hints(schema: Any) -> dict[str, Any]:
    """The types of a schema's fields."""
    return get_type_hints(schema) | ({"hydra": HydraConf} if schema is Config else {})


def without_null(kind: Any) -> Any:
    """The type that a value has where it is not null."""
    kinds = [each for each in get_args(kind) if each is not NoneType]
    return kinds[0] if NoneType in get_args(kind) and len(kinds) == 1 else kind


def type_of(key: str) -> Any:
    """The type of a setting by its dotted key, such as model.path; None of what the schema leaves open.

    Raises ConfigurationError for a key that it has not.
    """
    kind: Any = Config
    names = key.split(".")
    for name in names:
        kind = without_null(kind)
        if not is_dataclass(kind):
            return None
        known = hints(kind)
        if name not in known and kind is Config and (conf_dir() / name).is_dir():
            return None  # an option of a group without a place of its own: experiment
        if name not in known:
            raise ConfigurationError(unknown_setting(key))
        kind = known[name]
    return kind


def quote_texts(setting: str, may_be_null: bool) -> str:
    """KEY=VALUES of a setting that is text, or a list of texts, in quotation marks where Hydra would make
    something else of them: 20261127 of 2026_11_27, 1000.0 of 1e3."""
    tokens = CommonTokenStream(OverrideLexer(InputStream(setting)))
    tokens.fill()
    seen = [token for token in tokens.tokens if token.type != OverrideLexer.WS]
    pieces, end, calls = [], 0, [""]
    for before, token, after in zip(seen, seen[1:], seen[2:], strict=False):
        if token.type == OverrideLexer.POPEN:
            calls.append(before.text.rstrip("("))
        if token.type == OverrideLexer.PCLOSE:
            calls.pop()
        stands_alone = not {before.type, after.type} & PARTS
        is_null = may_be_null and token.text == "null"
        if token.type in OTHER_TYPES and stands_alone and not is_null and calls[-1] in ("", "choice", "str"):
            pieces += [setting[end : token.start], f"'{token.text}'"]
            end = token.stop + 1
    return "".join((*pieces, setting[end:]))


def respell(arguments: Sequence[str]) -> list[str]:
    """Settings as people write them, in Hydra's spelling: an option of a group under another key, keys that
    are always there with the + of those that are not, and texts that look like numbers.

    Raises ConfigurationError for a key that the schema has not; Hydra would recommend to add it.
    """
    return [_respelled(text) for text in arguments]


def _respelled(text: str) -> str:
    groups = {"decoder_format": "format", "decoder_activation": "activation"}
    text = re.sub(r"^\+(?=detach=|chunk=)", "", text)
    found = re.match(r"(\+{0,2})([A-Za-z_][\w.]*)=", text)
    if not found:
        return text
    plus, key = found.groups()
    if key in groups and not plus:
        return f"{groups[key]}@{text}"
    try:
        kind = type_of(key)
    except ConfigurationError:
        if plus or key.startswith("hydra."):  # of a group in somebody's own directory, or for Hydra to judge
            return text
        raise
    is_text = without_null(kind) in (str, list[str])
    return quote_texts(text, NoneType in get_args(kind)) if is_text else text


def refuse_options(arguments: Sequence[str]) -> None:
    """Raises ConfigurationError for an option with dashes that Hydra has not: settings have none."""
    from hydra._internal.utils import get_args_parser

    for text in get_args_parser().parse_known_args(arguments)[1]:
        value = [*arguments, ""][arguments.index(text) + 1]
        setting = text.lstrip("-")
        meant = setting if "=" in setting else f"{setting}={value or 'VALUE'}"
        raise ConfigurationError(f"{text} is no option; settings are written without dashes: {meant}")


@contextmanager
def explained(arguments: Sequence[str]) -> Iterator[None]:
    """What Hydra refuses of these words is raised as a ConfigurationError that explains itself."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if text := explain(error, arguments):
            raise ConfigurationError(text) from error
        raise


def compose(arguments: list[str]) -> list[Config]:
    """The configurations of a command line without Hydra's application around it: one, or those of a grid.

    Raises ConfigurationError, and Hydra's own errors, which `console.one_line` tells with their causes.
    """
    from hydra import compose as compose_one
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    register_schema()
    arguments = respell(arguments)
    parser = OverridesParser.create()
    with explained(arguments), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        # An experiment's grid is the sweeper's; what is given beside it comes later and wins.
        plain = [
            str(each.input_line) for each in parser.parse_overrides(arguments) if not each.is_sweep_override()
        ]
        sweeper = compose_one("config", overrides=plain, return_hydra_config=True).hydra.sweeper
        grid = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        (jobs,) = BasicSweeper.split_arguments(
            parser.parse_overrides([*grid, *arguments]), max_batch_size=None
        )
        return [as_config(compose_one("config", overrides=job)) for job in jobs]
