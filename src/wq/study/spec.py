"""What a job is, exactly: the effective spec, its name and its fingerprint.

The effective spec holds the settings that can change a number: defaults filled in, settings without effect
dropped. Two jobs with the same fingerprint are the same point, and only the first of them runs. Device,
paths, batch size and tracking are no part of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from wq.catalogue import load_format
from wq.numerics.effective import point_name, resolve
from wq.numerics.formats import Format
from wq.study.config import Config, ConfigurationError
from wq.whisper.roles import LINEAR_ROLES, expand, shorten

# Raise these when the code gives other numbers for the same settings: stored results are then not taken for
# new ones.
NUMERICS_VERSION = 1
DECODING_VERSION = 1

DEFAULT_ROLES = shorten(LINEAR_ROLES)
REFERENCE_FORMAT = "fp32"


@dataclass(frozen=True)
class Source:
    """A model or a test set: its readable name, and the hash of its content that identifies it."""

    name: str
    content_hash: str


@dataclass(frozen=True)
class Spec:
    """The effective settings of one job. `ignored` names the settings that were given but have no effect."""

    model: Source
    dataset: Source
    split: str
    language: str
    decoding_language: str | None
    limit: int | None
    format: Format
    granularity: str
    group: int | None
    roles: tuple[str, ...]
    max_new_tokens: int | None
    seed: int
    resamples: int
    normaliser: str
    ignored: tuple[str, ...] = ()

    @property
    def is_reference(self) -> bool:
        return self.format.native_cast == REFERENCE_FORMAT

    @property
    def quantizer(self) -> tuple[Format, str, int | None]:
        """Format, granularity and group as `fake_quantize` and `storage` take them; a cast has scales at
        none."""
        return self.format, "tensor" if self.granularity == "none" else self.granularity, self.group

    @property
    def point(self) -> str:
        """The readable name, such as int4-g32, nvfp4-channel, int8-encoder; unique among the points of a
        model and test set."""
        name = point_name(*self.quantizer, catalogued(self.format))
        return name if self.roles == DEFAULT_ROLES else f"{name}@{'+'.join(self.roles)}"

    @property
    def fingerprint(self) -> str:
        settings = asdict(self)
        for name in ("model", "dataset"):
            settings[name] = settings[name]["content_hash"]
        # The content hash tells which utterances were chosen, the effective group which scales there are.
        del settings["ignored"], settings["limit"], settings["format"]["group"]
        # What the format is called changes no number, so the same format under two names is one point.
        del settings["format"]["name"]
        settings["versions"] = [NUMERICS_VERSION, DECODING_VERSION]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def reference(self) -> "Spec":
        """The fp32 job of the same model and test set, with which this one is compared."""
        return replace(
            self,
            format=resolve(load_format(REFERENCE_FORMAT)).format,
            granularity="none",
            group=None,
            roles=DEFAULT_ROLES,
            ignored=(),
        )


def catalogued(format: Format) -> Format:
    """The catalogue's format of this name, from whose defaults a point's name tells the differences."""
    try:
        return load_format(format.name)
    except ValueError:  # described on the command line or in a user's own configuration directory
        return format


def effective_spec(
    config: Config, model: Source, dataset: Source, utterances: int, normaliser: str, multilingual: bool
) -> Spec:
    """The effective spec of a configuration; `utterances` is how many are transcribed.

    Raises ConfigurationError for a format that cannot be, or a role that there is not.
    """
    try:
        effective = resolve(config.number_format, config.granularity, config.group)
        roles = shorten(expand(config.roles))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    ignored = list(effective.ignored)
    if effective.format.native_cast == REFERENCE_FORMAT:
        ignored += [f"roles=[{','.join(roles)}]"] if roles != DEFAULT_ROLES else []
        roles = DEFAULT_ROLES
    if config.model.language is not None and not multilingual:
        ignored.append(f"model.language={config.model.language}")
    return Spec(
        model=model,
        dataset=dataset,
        split=config.dataset.split,
        language=config.dataset.language,
        decoding_language=(config.model.language or config.dataset.language) if multilingual else None,
        limit=config.limit if config.limit == utterances else None,
        format=effective.format,
        granularity=effective.granularity,
        group=effective.group,
        roles=roles,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        resamples=config.resamples,
        normaliser=normaliser,
        ignored=tuple(ignored),
    )
