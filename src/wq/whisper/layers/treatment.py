"""A point as a treatment of a model: an ordered list of methods over a plan of formats. Needs no torch.

What a method does is in the file of `wq.whisper.methods` that is called like it; here is what it can be told.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from wq.numerics.effective import Quantizer
from wq.whisper.layers.roles import is_decoders
from wq.whisper.layers.schemes import Activation, Assignment, KVCache, Q, Smoothing, by_role, group_roles


@dataclass(frozen=True)
class Nearest:
    """Every weight of the plan rounded to the nearest value that its format holds.

    share_tensor_scale   layers that engines multiply by one matrix have one tensor scale, where their format
                         has one
    """

    keeps_function: ClassVar[bool] = False

    share_tensor_scale: bool = False


@dataclass(frozen=True)
class Gptq:
    """Every weight of the plan rounded column by column, the columns to come making up for what each rounding
    does to the outputs on calibration speech (Frantar et al. 2022).

    damping              of the second moment's diagonal, as a share of its mean
    activation_order     columns that read the most come first, instead of as they stand
    share_tensor_scale   as of `Nearest`
    """

    keeps_function: ClassVar[bool] = False

    damping: float = 0.01
    activation_order: bool = True
    share_tensor_scale: bool = False


Method = Smoothing | Nearest | Gptq


@dataclass(frozen=True)
class Treatment:
    """What is done to a model. The empty treatment is the fp32 reference.

    plan         which formats, for the weights of which roles; empty where no weight is rounded
    methods      in their order: those that keep the function of the model come before those that round
    activations  how linear layers' inputs are rounded at run time
    kv_cache     how keys and values are rounded as they are stored
    """

    plan: tuple[Assignment[Quantizer], ...] = ()
    methods: tuple[Method, ...] = ()
    activations: tuple[Assignment[Activation], ...] = ()
    kv_cache: KVCache | None = None

    @property
    def is_empty(self) -> bool:
        return self == Treatment()

    @property
    def preparations(self) -> tuple[Method, ...]:
        """The methods that change no output of the model."""
        return tuple(method for method in self.methods if method.keeps_function)

    @property
    def roundings(self) -> tuple[Method, ...]:
        return tuple(method for method in self.methods if not method.keeps_function)

    @property
    def smoothing(self) -> Smoothing | None:
        return next((method for method in self.methods if isinstance(method, Smoothing)), None)

    @property
    def share_tensor_scale(self) -> bool:
        return any(method.share_tensor_scale for method in self.methods if not isinstance(method, Smoothing))

    @property
    def gptq(self) -> Gptq | None:
        return next((method for method in self.methods if isinstance(method, Gptq)), None)

    @property
    def is_searched(self) -> bool:
        """Whether what a method does follows from how everything will be rounded."""
        return self.smoothing is not None and self.smoothing.method == "search"

    @property
    def has_static_ranges(self) -> bool:
        cache = self.kv_cache
        return any(each.quantizer.is_static for each in self.activations) or bool(cache and cache.is_static)

    @property
    def needs_calibration(self) -> bool:
        """Whether any of it must be taken from what the model reads on calibration speech."""
        return self.has_static_ranges or self.smoothing is not None or self.gptq is not None

    def of_encoder(self) -> "Treatment":
        """What of it the encoder's states depend on.

        Whatever is not left out here counts, so that a new setting is safe before it is looked at.
        """
        alone = replace(self, kv_cache=None)
        if self.is_searched:  # the alphas follow from all layers, and from what the decoder has read
            return alone
        plan, activations = _encoders(self.plan), _encoders(self.activations)
        return replace(alone, plan=plan, activations=activations, methods=_of_encoder(self.methods, plan))


def _encoders(assigned: tuple[Assignment[Q], ...]) -> tuple[Assignment[Q], ...]:
    return group_roles({role: each for role, each in by_role(assigned).items() if not is_decoders(role)})


def _of_encoder(methods: tuple[Method, ...], plan: tuple[Assignment[Quantizer], ...]) -> tuple[Method, ...]:
    """The methods as far as the encoder's weights tell; a rounding of nothing is none."""
    shares = has_tensor_scale(plan)
    kept: list[Method] = []
    for method in methods:
        if isinstance(method, Smoothing):  # its factors for cross-attention divide the encoder's last norm
            kept.append(replace(method, decoder=None))
        elif plan:
            kept.append(replace(method, share_tensor_scale=method.share_tensor_scale and shares))
    return tuple(kept)


def has_tensor_scale(plan: tuple[Assignment[Quantizer], ...]) -> bool:
    """Whether any weight of the plan has a second level of scales, which layers could share."""
    return any(each.quantizer.format.has_tensor_scale for each in plan)
