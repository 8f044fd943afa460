"""From the words of a command line to checked configurations, through Hydra."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wq.catalogue import conf_dir
from wq.study.spec.config import Config, ConfigurationError
from wq.study.spec.refusals import explain


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
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = str(getattr(error, "full_key", "")) or "a mandatory value"
        raise ConfigurationError(f"{key} is missing; give {key}=... on the command line") from error
    assert isinstance(config, Config)
    return config


def respell(arguments: Sequence[str]) -> list[str]:
    """Settings as people write them, in Hydra's spelling: an option of a group under another key, and keys
    that are always there with the + of those that are not."""
    groups = {"decoder_format": "format", "decoder_activation": "activation"}
    found = (re.sub(r"^\+(?=detach=|chunk=)", "", text) for text in arguments)
    return [
        f"{groups[key]}@{text}" if equals and key in groups else text
        for text in found
        for key, equals, _ in [text.partition("=")]
    ]


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
