"""What a job is, exactly: the effective spec, its name and its fingerprint.

The effective spec holds the settings that can change a number: defaults filled in, settings without effect
dropped. Two jobs with the same fingerprint are the same point, and only the first of them runs. Device,
paths, batch size and tracking are no part of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from wq.study.spec.config import CalibrationConfig
from wq.study.spec.names import (
    activation_name,
    algorithm_name,
    assigned,
    kv_cache_name,
    smoothing_name,
    weight_name,
    widths,
)
from wq.whisper.layers.treatment import Treatment

# Raise these when the code gives other numbers for the same settings: stored results are then not taken for
# new ones.
NUMERICS_VERSION = 1
DECODING_VERSION = 1
# The same for settings that few points have: what calibration counts and draws, beside the extremes; and the
# scales that scale_search=mse tries for asymmetric integers
COUNTS_VERSION = 2
ASYMMETRIC_SEARCH_VERSION = 2

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

    treatment     what is done to the model; empty for the reference
    calibration   where the treatment needs any
    window        seconds that the encoder hears; None is the model's own window
    """

    model: Content
    dataset: Content
    split: str
    language: str
    decoding_language: str | None
    limit: int | None
    treatment: Treatment
    calibration: Calibration | None
    max_new_tokens: int | None
    seed: int
    resamples: int
    normaliser: str
    long_audio: str = "cut"
    window: int | None = None
    ignored: tuple[str, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether it is the fp32 job that all others of its model and test set are compared with."""
        return self.treatment.is_empty

    @property
    def point(self) -> str:
        """The readable name, such as int4-g32, nvfp4-channel, W4A8KV8 int4-g128 / int8-token / int8; unique
        among the points of a model and test set."""
        names, treatment = self.weights_name, self.treatment
        if treatment.activations or treatment.kv_cache:
            names = f"{self.precisions} {names} / {self.activation_name}"
            names += f" / {self.kv_cache_name}" if treatment.kv_cache else ""
        names += f" + smoothquant-{self.smoothquant_name}" if treatment.smoothing else ""
        calibration = self.calibration
        if calibration is None or calibration.utterances == CalibrationConfig().limit:
            return names
        return f"{names} + calibrated on {calibration.utterances}"

    @property
    def precisions(self) -> str:
        """The bits of weights, activations, keys and values, as in W4A8KV8; 16 where nothing rounds them."""
        weights = widths([each.quantizer.format for each in self.treatment.plan], 32)
        activations = widths([each.quantizer.quantizer.format for each in self.treatment.activations])
        cache = self.treatment.kv_cache
        stored = widths([cache.keys.format, cache.values.format]) if cache else ""
        return f"W{weights}A{activations}" + (f"KV{stored}" if cache else "")

    @property
    def weights_name(self) -> str:
        if not self.treatment.plan:
            return REFERENCE_FORMAT
        fused = "-fused" if self.treatment.share_tensor_scale else ""
        algorithm = f"-{self.algorithm_name}" if self.treatment.gptq else ""
        return assigned(self.treatment.plan, weight_name) + fused + algorithm

    @property
    def algorithm_name(self) -> str:
        gptq = self.treatment.gptq
        return algorithm_name(gptq) if gptq else "rtn"

    @property
    def activation_name(self) -> str:
        activations = self.treatment.activations
        return assigned(activations, activation_name) if activations else "none"

    @property
    def kv_cache_name(self) -> str:
        cache = self.treatment.kv_cache
        return kv_cache_name(cache) if cache else "none"

    @property
    def smoothquant_name(self) -> str:
        smoothing = self.treatment.smoothing
        return smoothing_name(smoothing) if smoothing else "none"

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as nested dictionaries; the treatment's parts under the names of their settings."""
        settings, treatment = asdict(self), self.treatment
        parts = settings.pop("treatment")
        smoothing, gptq = treatment.smoothing, treatment.gptq
        if gptq:
            own = {"damping": gptq.damping, "activation_order": gptq.activation_order}
            settings["algorithm"] = {"name": "gptq", **own}
        return settings | {
            "weights": parts["plan"],
            "share_tensor_scale": treatment.share_tensor_scale,
            "activations": parts["activations"],
            "smoothquant": asdict(smoothing) if smoothing else None,
            "kv_cache": parts["kv_cache"],
        }

    @property
    def fingerprint(self) -> str:
        settings = self.settings
        for name in ("model", "dataset"):
            settings[name] = settings[name]["content_hash"]
        # The content hash tells which utterances were chosen.
        del settings["ignored"], settings["limit"]
        if self.long_audio == "cut":  # as it always was, before there was a choice
            del settings["long_audio"]
        if self.window is None:
            del settings["window"]
        if self.calibration:
            settings["calibration"] = self.calibration.content_hash
        settings["versions"] = self.versions
        anonymous = _without_format_names(settings)
        return hashlib.sha256(json.dumps(anonymous, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def versions(self) -> list[int | str]:
        """Of the code that gives this point its numbers."""
        versions: list[int | str] = [NUMERICS_VERSION, DECODING_VERSION]
        treatment, cache = self.treatment, self.treatment.kv_cache
        calibrators = {each.quantizer.calibrator for each in treatment.activations}
        if treatment.is_searched or calibrators - {None, "max"}:
            versions.append(f"counts {COUNTS_VERSION}")
        formats = [each.quantizer.format for each in treatment.plan]
        formats += [each.quantizer.quantizer.format for each in treatment.activations]
        formats += [cache.keys.format, cache.values.format] if cache else []
        if any(format.is_asymmetric and format.scale_search == "mse" for format in formats):
            versions.append(f"asymmetric search {ASYMMETRIC_SEARCH_VERSION}")
        return versions

    def treated(self, treatment: Treatment) -> "Spec":
        """The same model and test set under another treatment."""
        calibration = self.calibration if treatment.needs_calibration else None
        return replace(self, treatment=treatment, calibration=calibration)

    def reference(self) -> "Spec":
        """The fp32 job of the same model and test set, with which this one is compared."""
        return replace(self.treated(Treatment()), ignored=())


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
