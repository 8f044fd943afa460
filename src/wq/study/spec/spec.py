"""What a job is, exactly: the effective spec, its name and its fingerprint.

The effective spec holds the settings that can change a number: defaults filled in, settings without effect
dropped. Two jobs with the same fingerprint are the same point, and only the first of them runs. Device,
paths, batch size and tracking are no part of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from wq.numerics.effective import Quantizer
from wq.study.spec.config import CalibrationConfig
from wq.study.spec.names import activation_name, assigned, kv_cache_name, smoothing_name, weight_name, widths
from wq.whisper.layers.schemes import Activation, Assignment, KVCache, Smoothing

# Raise these when the code gives other numbers for the same settings: stored results are then not taken for
# new ones.
NUMERICS_VERSION = 1
DECODING_VERSION = 1

REFERENCE_FORMAT = "fp32"


@dataclass(frozen=True)
class Content:
    """A model or a test set: its readable name, and the hash of its content that identifies it."""

    name: str
    content_hash: str


@dataclass(frozen=True)
class Calibration:
    """What static scales and smoothing are taken from: so many utterances of a split of the dataset."""

    split: str
    utterances: int
    content_hash: str


@dataclass(frozen=True)
class Spec:
    """The effective settings of one job. `ignored` names the settings that were given but have no effect.

    weights, activations   which quantizers, for which roles; empty where nothing is quantized
    """

    model: Content
    dataset: Content
    split: str
    language: str
    decoding_language: str | None
    limit: int | None
    weights: tuple[Assignment[Quantizer], ...]
    share_tensor_scale: bool
    activations: tuple[Assignment[Activation], ...]
    smoothquant: Smoothing | None
    kv_cache: KVCache | None
    calibration: Calibration | None
    max_new_tokens: int | None
    seed: int
    resamples: int
    normaliser: str
    long_audio: str = "cut"
    ignored: tuple[str, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether it is the fp32 job that all others of its model and test set are compared with."""
        return not (self.weights or self.activations or self.kv_cache or self.smoothquant)

    @property
    def point(self) -> str:
        """The readable name, such as int4-g32, nvfp4-channel, W4A8KV8 int4-g128 / int8-token / int8; unique
        among the points of a model and test set."""
        names = self.weights_name
        if self.activations or self.kv_cache:
            names = f"{self.precisions} {names} / {self.activation_name}"
            names += f" / {self.kv_cache_name}" if self.kv_cache else ""
        names += f" + smoothquant-{self.smoothquant_name}" if self.smoothquant else ""
        calibration = self.calibration
        if calibration is None or calibration.utterances == CalibrationConfig().limit:
            return names
        return f"{names} + calibrated on {calibration.utterances}"

    @property
    def precisions(self) -> str:
        """The bits of weights, activations, keys and values, as in W4A8KV8; 16 where nothing rounds them."""
        weights = widths([each.quantizer.format for each in self.weights], 32)
        activations = widths([each.quantizer.quantizer.format for each in self.activations])
        cache = self.kv_cache
        stored = widths([cache.keys.format, cache.values.format]) if cache else ""
        return f"W{weights}A{activations}" + (f"KV{stored}" if cache else "")

    @property
    def weights_name(self) -> str:
        if not self.weights:
            return REFERENCE_FORMAT
        return assigned(self.weights, weight_name) + ("-fused" if self.share_tensor_scale else "")

    @property
    def activation_name(self) -> str:
        return assigned(self.activations, activation_name) if self.activations else "none"

    @property
    def kv_cache_name(self) -> str:
        return kv_cache_name(self.kv_cache) if self.kv_cache else "none"

    @property
    def smoothquant_name(self) -> str:
        return smoothing_name(self.smoothquant) if self.smoothquant else "none"

    @property
    def fingerprint(self) -> str:
        settings = asdict(self)
        for name in ("model", "dataset"):
            settings[name] = settings[name]["content_hash"]
        # The content hash tells which utterances were chosen.
        del settings["ignored"], settings["limit"]
        if self.long_audio == "cut":  # as it always was, before there was a choice
            del settings["long_audio"]
        if self.calibration:
            settings["calibration"] = self.calibration.content_hash
        settings["versions"] = [NUMERICS_VERSION, DECODING_VERSION]
        anonymous = _without_format_names(settings)
        return hashlib.sha256(json.dumps(anonymous, sort_keys=True).encode()).hexdigest()[:16]

    def reference(self) -> "Spec":
        """The fp32 job of the same model and test set, with which this one is compared."""
        return replace(
            self,
            weights=(),
            share_tensor_scale=False,
            activations=(),
            smoothquant=None,
            kv_cache=None,
            calibration=None,
            ignored=(),
        )


def _without_format_names(settings: object) -> object:
    """The settings without what changes no number: what a format is called, and its own group, beside which
    the effective group says which scales there are."""
    if isinstance(settings, dict):
        is_format = "element" in settings
        return {
            key: _without_format_names(value)
            for key, value in settings.items()
            if not (is_format and key in ("name", "group"))
        }
    return [*map(_without_format_names, settings)] if isinstance(settings, list | tuple) else settings
