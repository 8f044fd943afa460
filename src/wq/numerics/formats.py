"""The description of a number format: what its elements are and how they are scaled.

A `Format` is complete: limits, code book, rounding, packing width and size all derive from it. This module is
plain Python without torch, so that a wrong configuration is refused in milliseconds.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

# The information-theoretic 4-bit levels of QLoRA (Dettmers et al. 2023, appendix E): quantiles of a normal
# distribution, 7 below zero, zero, and 8 above, scaled to [-1, 1].
NORMAL_FLOAT_4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)

LEVELS: dict[str, tuple[float, ...]] = {"nf4": NORMAL_FLOAT_4}

ELEMENTS = ("int", "float", "levels", "cast")
SPECIALS = ("none", "nan", "ieee")
INT_RANGES = ("symmetric", "full", "asymmetric")
SCALE_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "e8m0": 8, "e4m3": 8, "none": 0}
SCALE_RULES = ("floor", "even", "rceil", "ceil")
SCALE_SEARCHES = ("none", "mse")

# exponent bits, mantissa bits of the casts that reach float32's own exponent range, and of fp16
NATIVE_CASTS = {(8, 23): "fp32", (8, 7): "bf16", (5, 10): "fp16"}


@dataclass(frozen=True)
class Format:
    """One number format. Settings without effect for it are allowed and ignored (see `effective.resolve`).

    element        int | float | levels | cast (a float without a scale)
    integer_bits   width of an int element, 2 to 16
    exponent_bits, mantissa_bits   of a float or cast element; its width is their sum + 1
    special        what a float's top codes mean: none (all are finite, as E2M1), nan (only the code of all
                   ones, as E4M3FN), ieee (the whole top exponent is Inf and NaN, as E5M2)
    levels         the table of a levels element, by name
    int_range      symmetric: codes in [-(2^(b-1)-1), 2^(b-1)-1], scale = amax / (2^(b-1)-1)
                   full: codes in [-2^(b-1), 2^(b-1)-1], scale = amax / ((2^b-1)/2), the convention of torchao
                   and compressed-tensors; the largest positive value clips by half a step
                   asymmetric: the full codes and an integer zero point, scale = (max - min) / (2^b-1)
    scale_dtype    the precision in which a scale is stored: fp32 | fp16 | bf16 | e8m0 | e4m3; none for a cast
    scale_rule     how the exponent of an e8m0 scale is chosen: floor | even | rceil | ceil
    tensor_scale   a second, float32 scale for the whole tensor above e4m3 scales, as in NVFP4
    group          how many consecutive elements share a scale when the job does not say
    scale_search   none: the scale follows from the largest magnitude; mse: of a few candidates, the one with
                   the least squared error
    four_over_six  NVFP4 blocks may map their largest magnitude to 4 instead of 6, whichever errs less
    """

    name: str
    element: str
    integer_bits: int | None = None
    exponent_bits: int | None = None
    mantissa_bits: int | None = None
    special: str = "none"
    levels: str = "none"
    int_range: str = "symmetric"
    scale_dtype: str = "fp16"
    scale_rule: str = "floor"
    tensor_scale: bool = False
    group: int | None = 128
    scale_search: str = "none"
    four_over_six: bool = False

    def __post_init__(self):
        self._check_choice("element", self.element, ELEMENTS)
        self._check_choice("special", self.special, SPECIALS)
        self._check_choice("int_range", self.int_range, INT_RANGES)
        self._check_choice("scale_dtype", self.scale_dtype, tuple(SCALE_BITS))
        self._check_choice("scale_rule", self.scale_rule, SCALE_RULES)
        self._check_choice("scale_search", self.scale_search, SCALE_SEARCHES)
        if self.group is not None and self.group < 1:
            raise self._error(f"group={self.group} must be at least 1", "give a positive group size")
        if self.element == "int":
            self._check_int()
        elif self.element == "levels":
            self._check_choice("levels", self.levels, tuple(LEVELS))
        else:
            self._check_float()
        if (self.element == "cast") != (self.scale_dtype == "none"):
            raise self._error(
                f"element={self.element} with scale_dtype={self.scale_dtype}: a cast has no scale, "
                "everything else has one",
                "use element=cast with scale_dtype=none, or another scale_dtype",
            )
        if self.four_over_six and not (self._is_e2m1 and self.has_tensor_scale):
            raise self._error(
                "four_over_six=true needs E2M1 elements with e4m3 scales and a tensor scale",
                "use format=nvfp4, or four_over_six=false",
            )

    def _error(self, rule: str, remedy: str) -> ValueError:
        return ValueError(f"format {self.name}: {rule}; {remedy}")

    def _check_choice(self, field: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise self._error(f"{field}={value} is unknown", f"choose one of {', '.join(choices)}")

    def _check_range(self, field: str, value: int | None, low: int, high: int) -> None:
        if value is None or not low <= value <= high:
            rule = f"{field}={'missing' if value is None else value} must be from {low} to {high}"
            raise self._error(f"{rule} for element={self.element}", f"set {field}")

    def _check_int(self) -> None:
        self._check_range("integer_bits", self.integer_bits, 2, 16)
        if self.is_asymmetric and self.scale_dtype in ("e8m0", "e4m3"):
            raise self._error(
                f"int_range=asymmetric with scale_dtype={self.scale_dtype} is not defined",
                "use scale_dtype fp32, fp16 or bf16, or another int_range",
            )

    def _check_float(self) -> None:
        if (self.exponent_bits, self.mantissa_bits) in NATIVE_CASTS and self.special == "ieee":
            if self.element == "float" and self.exponent_bits == 8:
                raise self._error(
                    "an element as wide as float32's exponent needs no scale", "use element=cast"
                )
            return
        # Up to 7 exponent and 10 mantissa bits, all intermediate values of rounding are float32.
        self._check_range("exponent_bits", self.exponent_bits, 1, 7)
        self._check_range("mantissa_bits", self.mantissa_bits, 0, 10)
        lost_codes = {"none": 0, "nan": 1, "ieee": 2 ** (self.mantissa_bits or 0)}[self.special]
        if 2 ** (self.bits - 1) - lost_codes < 2 or (self.special == "ieee" and self.exponent_bits == 1):
            raise self._error(f"special={self.special} leaves no finite value but zero", "use special=none")

    # --- elements ---------------------------------------------------------------------------------

    @property
    def bits(self) -> int:
        """Width of one stored element."""
        if self.element == "int":
            return self.integer_bits or 0
        if self.element == "levels":
            return math.ceil(math.log2(len(LEVELS[self.levels])))
        return 1 + (self.exponent_bits or 0) + (self.mantissa_bits or 0)

    @property
    def is_float(self) -> bool:
        return self.element in ("float", "cast")

    @property
    def is_cast(self) -> bool:
        return self.element == "cast"

    @property
    def is_asymmetric(self) -> bool:
        return self.element == "int" and self.int_range == "asymmetric"

    @property
    def _is_e2m1(self) -> bool:
        return self.element == "float" and (self.exponent_bits, self.mantissa_bits, self.special) == (
            2,
            1,
            "none",
        )

    @property
    def native_cast(self) -> str | None:
        """Name of the torch cast (fp32, bf16, fp16) that rounds exactly to this element, or None."""
        if self.is_float and self.special == "ieee":
            return NATIVE_CASTS.get((self.exponent_bits or 0, self.mantissa_bits or 0))
        return None

    @property
    def min_code(self) -> int:
        """Smallest integer code of an int element."""
        return -self.max_code - (self.int_range != "symmetric")

    @property
    def max_code(self) -> int:
        """Largest integer code of an int element."""
        return 2 ** (self.bits - 1) - 1

    @property
    def unit(self) -> float:
        """Value of an int element's code 1: under E8M0 fixed point with one integer bit, as OCP's MXINT8."""
        return 2.0 ** (2 - self.bits) if self.element == "int" and self.scale_dtype == "e8m0" else 1.0

    @property
    def min_exponent(self) -> int:
        """Exponent of a float element's smallest normal value, 1 - bias."""
        return 2 - 2 ** ((self.exponent_bits or 1) - 1)

    @cached_property
    def max(self) -> float:
        """Largest element value."""
        if self.element == "int":
            return self.max_code * self.unit
        if self.element == "levels":
            return max(LEVELS[self.levels])
        exponent_bits, mantissa_bits = self.exponent_bits or 0, self.mantissa_bits or 0
        top_code = 2 ** (exponent_bits + mantissa_bits) - 1
        top_code -= {"none": 0, "nan": 1, "ieee": 2**mantissa_bits}[self.special]
        return self.magnitude(top_code)

    def magnitude(self, code: int) -> float:
        """Value of a float element's code without its sign bit (OCP MX v1.0 section 5.3, IEEE 754 3.4)."""
        mantissa_bits = self.mantissa_bits or 0
        field, fraction = divmod(code, 2**mantissa_bits)
        significand = fraction + (2**mantissa_bits if field else 0)
        return math.ldexp(significand, max(field, 1) - 1 + self.min_exponent - mantissa_bits)

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """The finite values of a float element from zero up, in the order of their codes."""
        if self.bits > 16:
            raise self._error(
                f"a code book of {self.bits} bits is too long to list", "ask for 16 bits or fewer"
            )
        values = (self.magnitude(code) for code in range(2 ** (self.bits - 1)))
        return tuple(value for value in values if value <= self.max)

    @cached_property
    def code_book(self) -> tuple[float, ...]:
        """Every value an element can hold, ascending, zero once."""
        if self.element == "int":
            return tuple(code * self.unit for code in range(self.min_code, self.max_code + 1))
        if self.element == "levels":
            return LEVELS[self.levels]
        return (*(-value for value in reversed(self.magnitudes[1:])), *self.magnitudes)

    @property
    def min_positive(self) -> float:
        """Smallest element value above zero."""
        if self.is_float:
            return self.magnitude(1)
        return min(value for value in self.code_book if value > 0)

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)): emax in OCP MX v1.0 section 5."""
        return math.frexp(self.max)[1] - 1

    @property
    def max_mantissa_bits(self) -> int:
        """Bits after the leading one in the top binade, where scale_rule=even rounds."""
        if self.element == "int":
            return self.bits - 2
        return (self.mantissa_bits or 0) if self.is_float else 0

    # --- scales -----------------------------------------------------------------------------------

    @property
    def scale_divisor(self) -> float:
        """The scale is amax over this (asymmetric: (max - min) over this): max, but for int ranges that are
        not symmetric half or all of the distance between the extreme codes."""
        if self.element == "int" and self.int_range != "symmetric":
            return (2**self.bits - 1) * self.unit / (1 if self.is_asymmetric else 2)
        return self.max

    @property
    def has_tensor_scale(self) -> bool:
        """Other scale types reach far enough alone."""
        return self.tensor_scale and self.scale_dtype == "e4m3"

    @property
    def scale_bits(self) -> int:
        return SCALE_BITS[self.scale_dtype]

    @property
    def zero_point_bits(self) -> int:
        return self.bits if self.is_asymmetric else 0


@lru_cache(maxsize=1024)
def with_options(
    format: Format,
    scale_dtype: str | None = None,
    scale_rule: str | None = None,
    int_range: str | None = None,
) -> Format:
    """The format with those of its options replaced that are not None."""
    options = {"scale_dtype": scale_dtype, "scale_rule": scale_rule, "int_range": int_range}
    return replace(format, **{name: value for name, value in options.items() if value is not None})
