"""What of a model is quantized, and how: descriptions that need no torch.

Weights are `Assignment`s of quantizers to roles; beside them stand the activations of linear layers, the
keys and values that attention keeps, and the smoothing before all of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, TypeVar

from wq.numerics.effective import Quantizer
from wq.whisper.layers.roles import LINEAR_ROLES, expand, place, shorten

Q = TypeVar("Q")

ACTIVATION_GRANULARITIES = ("tensor", "token", "group")
CALIBRATORS = ("max", "percentile", "mse", "entropy")
KEY_GRANULARITIES = ("token", "channel", "group")
VALUE_GRANULARITIES = ("token", "group")
ATTENTIONS = ("self", "cross")
SMOOTHINGS = ("none", "fixed", "search")
SEARCH_SCOPES = ("submodule", "layer")
SELF_ATTENTION_BLOCK = 32  # tokens that share the scales of keys per channel, where a KVCache does not say

DEFAULT_ROLES = shorten(LINEAR_ROLES)


class Assignment(NamedTuple, Generic[Q]):
    """One quantizer for the layers of these roles."""

    quantizer: Q
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Activation:
    """How the input [rows, positions, K] of a linear layer is rounded at run time.

    quantizer    with granularity tensor the scale is static, from calibration; with token and group it is
                 dynamic, and only the tensor scale of a two-level format is static
    calibrator   how a static range follows from the statistics: max, percentile, mse or entropy; None where
                 nothing is static
    percentile   of the magnitudes, for calibrator=percentile; None for others
    """

    quantizer: Quantizer
    calibrator: str | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        format, granularity = self.quantizer.format, self.quantizer.granularity
        if self.calibrator == "entropy" and (granularity != "tensor" or format.is_asymmetric):
            raise ValueError(
                f"activation.calibrator=entropy is for one symmetric scale of a layer's input, which "
                f"{format.name} with granularity={granularity} has not; choose max, percentile or mse"
            )

    @property
    def is_static(self) -> bool:
        return has_static_range(self.quantizer)


@dataclass(frozen=True)
class KVCache:
    """How the keys and values [rows, heads, positions, head size] that attention keeps are rounded as they
    are stored.

    A vector of head size is what `token` gives a scale of its own: one for every token and head. `group`
    cuts it into groups. Keys may have their scales per `channel` instead: cross-attention keys one for every
    channel of a head over `block` frames (all frames where None), self-attention keys one for every channel
    over `block` tokens; the tokens of a block that is not full yet are kept as they are (KIVI, Liu et al.
    2024), so that a scale never depends on what comes later.
    """

    keys: Quantizer
    values: Quantizer
    attention: tuple[str, ...] = ATTENTIONS
    block: int | None = None

    @property
    def is_static(self) -> bool:
        return has_static_range(self.keys) or has_static_range(self.values)


@dataclass(frozen=True)
class Smoothing:
    """SmoothQuant (Xiao et al. 2023): s = amax_x^alpha / amax_w^(1 - alpha), per input channel.

    encoder, decoder, cross   alpha of the encoder's layers, of the decoder's, and of the keys and values of
                              cross-attention, which all read the encoder's output; None where searched
    fc2      smooth fc2 as well, by an explicit multiplication at run time: no fold exists across GELU
    scope    what a searched alpha is shared by: a submodule (one of the three), or a layer's one input
    """

    keeps_function: ClassVar[bool] = True  # in exact arithmetic

    method: str
    encoder: float | None
    decoder: float | None
    cross: float | None
    fc2: bool = False
    scope: str | None = None

    @property
    def alphas(self) -> dict[str, float | None]:
        return {"encoder": self.encoder, "decoder": self.decoder, "cross": self.cross}


def has_static_range(quantizer: Quantizer) -> bool:
    """Whether an activation's scale, or the second level above it, must come from calibration: one scale for
    a tensor would make an utterance's transcript depend on its batch."""
    return quantizer.format.has_tensor_scale or (
        quantizer.granularity == "tensor" and not quantizer.format.is_cast
    )


def group_roles(quantizers: Mapping[str, Q | None]) -> tuple[Assignment[Q], ...]:
    """The quantizers of roles, written in one way only, so that equal assignments compare equal; a role with
    None is left alone."""
    families: dict[Q, list[str]] = {}
    for role in sorted(quantizers, key=place):
        quantizer = quantizers[role]
        if quantizer is not None:
            families.setdefault(quantizer, []).append(role)
    return tuple(Assignment(quantizer, shorten(roles)) for quantizer, roles in families.items())


def by_role(assignments: Sequence[Assignment[Q]]) -> dict[str, Q]:
    """The quantizer of every role that has one."""
    return {role: each.quantizer for each in assignments for role in expand(each.roles)}
