"""What a point would cost on a device: a roofline estimate (Williams, Waterman, Patterson 2009) from shapes.

An estimate, never a measurement: every product takes the longer of computing at the device's peak and moving
its bytes at the full bandwidth, one product after the other, and nothing else takes time. One utterance,
decoded greedily.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from wq.numerics.formats import Format
from wq.study.resources.footprint import Workload, cache_bytes, footprint, workload
from wq.study.resources.hardware import Hardware, operand_kind, product_kind
from wq.study.resources.size import Size, plain_bits
from wq.study.spec.spec import Spec
from wq.whisper.checkpoint.geometry import KERNEL, Geometry
from wq.whisper.layers.roles import LINEAR_ROLES
from wq.whisper.layers.schemes import by_role

# Multiplied once for an utterance, to fill the cache that cross-attention reads
CROSS_CACHE_ROLES = ("decoder.cross_attn.k", "decoder.cross_attn.v")
# What every decoding step reads beside the output head; of the tables of positions it takes a row
STEP_ROLES = (
    *(role for role in LINEAR_ROLES if role.startswith("decoder.") and role not in CROSS_CACHE_ROLES),
    "decoder.rest",
)


class Product(NamedTuple):
    """The matrix products of one role for an utterance: multiply-adds, bytes that come from memory or go
    there, and bit operations: multiply-adds times the bits of both operands, scales left out, as an array of
    one-bit multipliers would do them (BOPs, Baskin et al. 2018, arXiv:1804.10969)."""

    role: str
    kind: str
    macs: int
    bytes: int
    bit_operations: int


@dataclass(frozen=True)
class Phase:
    """Seconds of the encoder or of the decoder: as the roofline has them, and the parts that are sums of only
    one side of it."""

    seconds: float
    computing: float
    moving: float

    @property
    def bound(self) -> str:
        return "compute" if self.computing > self.moving else "memory"


@dataclass(frozen=True)
class Estimate:
    """What one utterance costs; `encoder` includes the keys and values that cross-attention reads."""

    encoder: Phase
    decoder: Phase
    tokens: int
    moved_bytes: int
    bit_operations: int

    @property
    def token_seconds(self) -> float:
        """The mean of all steps; their caches grow."""
        return self.decoder.seconds / self.tokens

    @property
    def seconds(self) -> float:
        return self.encoder.seconds + self.decoder.seconds


@dataclass(frozen=True)
class Demand:
    """The matrix products of one utterance under a spec.

    on_chip   bytes beside the units: a product's input and output stay there if they fit, and so does all
              that a decoding step reads. None counts no activations, and what each step reads every time
    """

    geometry: Geometry
    size: Size
    spec: Spec
    work: Workload
    on_chip: float | None = None

    @cached_property
    def plain_bits(self) -> int:
        return plain_bits(self.spec)

    @cached_property
    def plain(self) -> str:
        """The kind of what nothing rounds; attention multiplies queries and weights that are."""
        return operand_kind(None, self.plain_bits)

    @cached_property
    def positions_fed(self) -> int:
        """To the decoder: the prompt and all tokens but the last."""
        return self.geometry.prompt_length + self.work.tokens - 1

    @cached_property
    def encoder(self) -> list[Product]:
        geometry, positions = self.geometry, self.work.positions
        d_model, layers = geometry.d_model, geometry.encoder_layers
        linears = [role for role in LINEAR_ROLES if role.startswith("encoder.")]
        spilled = self._spilled(4 * positions * d_model * self.plain_bits // 8)
        rest = self._stored("encoder.positions") + self._stored("encoder.rest")
        return [
            self._encode("conv.conv1", 1, 2 * positions, KERNEL * geometry.num_mel_bins, d_model),
            self._encode("conv.conv2", 1, positions, KERNEL * d_model, d_model),
            *(self._encode(role, layers, positions, *self._shape(role)) for role in linears),
            self._attend("encoder.attention", 2 * layers * positions**2 * d_model, layers * spilled),
            *(
                self._encode(role, geometry.decoder_layers, positions, d_model, d_model)
                for role in CROSS_CACHE_ROLES
            ),
            Product("encoder.rest", self.plain, 0, rest + self._cache("cross", positions), 0),
        ]

    @cached_property
    def decoder(self) -> list[Product]:
        """Of all steps: the first reads the prompt, each of the others one token."""
        geometry, tokens, fed = self.geometry, self.work.tokens, self.positions_fed
        d_model, layers = geometry.d_model, geometry.decoder_layers
        own, audio = self._cache("self", fed), self._cache("cross", self.work.positions)
        head = "embedding" if geometry.tie_word_embeddings else "decoder.head"
        kept = sum(map(self._stored, (*STEP_ROLES, head)))
        stays = self.on_chip is not None and own + audio + kept <= self.on_chip
        reads = 1 if stays else tokens
        multiplied = dict.fromkeys(STEP_ROLES, 0) | {head: tokens * geometry.vocab_size * d_model}
        for role in STEP_ROLES:
            if role in LINEAR_ROLES:
                inputs, outputs = self._shape(role)
                multiplied[role] = layers * fed * inputs * outputs
        own_reads = own if stays else sum(self._cache("self", fed - step) for step in range(tokens))
        return [
            *(self._linear(role, macs, reads * self._stored(role)) for role, macs in multiplied.items()),
            self._attend("decoder.self_attention", layers * d_model * fed * (fed + 1), own + own_reads),
            self._attend(
                "decoder.cross_attention", 2 * layers * d_model * fed * self.work.positions, reads * audio
            ),
        ]

    def _linear(self, role: str, macs: int, moved: int) -> Product:
        weights, inputs = self._bits(role)
        return Product(role, self._kind(role), macs, moved, macs * weights * inputs)

    def _attend(self, role: str, macs: int, moved: int) -> Product:
        """Queries with keys and weights with values: as many multiply-adds of each. Keys and values have the
        bits that they are kept in."""
        cache = self.spec.treatment.kv_cache
        is_kept = cache is not None and role in (f"decoder.{each}_attention" for each in cache.attention)
        kept = [cache.keys.format.bits, cache.values.format.bits] if is_kept and cache else []
        each = sum(kept or [2 * self.plain_bits])
        return Product(role, self.plain, macs, moved, macs // 2 * self.plain_bits * each)

    @property
    def bit_operations(self) -> int:
        return sum(product.bit_operations for product in (*self.encoder, *self.decoder))

    @property
    def moved_bytes(self) -> int:
        return sum(product.bytes for product in (*self.encoder, *self.decoder))

    def _encode(self, role: str, layers: int, positions: int, inputs: int, outputs: int) -> Product:
        """Weights that are read once for an utterance."""
        activations = positions * inputs * self._bits(role)[1] // 8
        activations += positions * outputs * self.plain_bits // 8
        moved = self._stored(role) + layers * self._spilled(activations)
        return self._linear(role, layers * positions * inputs * outputs, moved)

    def _shape(self, role: str) -> tuple[int, int]:
        """Inputs and outputs of a linear layer."""
        geometry = self.geometry
        wide = geometry.encoder_ffn_dim if role.startswith("encoder.") else geometry.decoder_ffn_dim
        shapes = {"fc1": (geometry.d_model, wide), "fc2": (wide, geometry.d_model)}
        return shapes.get(role.rpartition(".")[2], (geometry.d_model, geometry.d_model))

    @cached_property
    def _weights(self) -> Mapping[str, Format]:
        return {role: each.format for role, each in by_role(self.spec.treatment.plan).items()}

    @cached_property
    def _inputs(self) -> Mapping[str, Format]:
        activations = by_role(self.spec.treatment.activations)
        return {role: each.quantizer.format for role, each in activations.items()}

    def _bits(self, role: str) -> tuple[int, int]:
        """Of an element of a role's weights, and of one of its inputs."""
        weights, inputs = (formats.get(role) for formats in (self._weights, self._inputs))
        return (
            weights.bits if weights else self.plain_bits,
            inputs.bits if inputs else self.plain_bits,
        )

    def _kind(self, role: str) -> str:
        kinds = (
            operand_kind(formats.get(role), self.plain_bits) for formats in (self._weights, self._inputs)
        )
        return product_kind(*kinds)

    def _stored(self, role: str) -> int:
        return self.size.by_role[role].bytes

    def _spilled(self, activations: int) -> int:
        return activations if self.on_chip is not None and activations > self.on_chip else 0

    def _cache(self, attention: str, positions: int) -> int:
        cache = self.spec.treatment.kv_cache
        return cache_bytes(self.geometry, cache, attention, 1, positions, self.plain_bits)


def estimate(geometry: Geometry, size: Size, spec: Spec, work: Workload, hardware: Hardware) -> Estimate:
    """The roofline estimate of one utterance. Raises ValueError where the hardware cannot multiply so."""
    demand = Demand(geometry, size, spec, work, hardware.on_chip * 1e6)
    encoder, decoder = (_phase(products, hardware) for products in (demand.encoder, demand.decoder))
    return Estimate(encoder, decoder, work.tokens, demand.moved_bytes, demand.bit_operations)


def _phase(products: list[Product], hardware: Hardware) -> Phase:
    times = list(_times(products, hardware))
    return Phase(
        seconds=sum(max(computing, moving) for computing, moving in times),
        computing=sum(computing for computing, _ in times),
        moving=sum(moving for _, moving in times),
    )


def _times(products: list[Product], hardware: Hardware) -> Iterator[tuple[float, float]]:
    for product in products:
        rate = hardware.rates[hardware.unit(product.kind)]
        yield 2 * product.macs / (rate * 1e12), product.bytes / (hardware.bandwidth * 1e9)


def columns(geometry: Geometry, size: Size, spec: Spec) -> dict[str, int]:
    """The columns of an evaluated point's row: one utterance of a whole window, or of the one that the spec
    shortens it to, decoded greedily up to the token limit."""
    work = workload(geometry, tokens=spec.max_new_tokens, seconds=spec.window)
    needed = footprint(geometry, size.model_bytes, spec.treatment, work, plain_bits(spec))
    demand = Demand(geometry, size, spec, work)
    return {
        "kv_cache_bytes": needed.kv_cache,
        "memory_bytes": needed.total,
        "moved_bytes": demand.moved_bytes,
        "bit_operations": demand.bit_operations,
    }
