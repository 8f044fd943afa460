"""Memory by formula: weights, keys and values, activations; docs/memory.md derives it.

What a deployment needs that stores what the point says it stores, and computes the rest in float16. `memory`
measures instead what this process takes, whose weights are float32 whatever their format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from wq.numerics.effective import Quantizer
from wq.numerics.storage import storage
from wq.whisper.checkpoint.geometry import POSITIONS_PER_SECOND, Geometry
from wq.whisper.layers.schemes import SELF_ATTENTION_BLOCK, KVCache, by_role
from wq.whisper.layers.treatment import Treatment


@dataclass(frozen=True)
class Workload:
    """What is transcribed at once.

    batch       utterances
    beams       hypotheses of each; 1 is greedy
    tokens      of the longest transcript, the end among them
    positions   of the encoder: the whole window, for every utterance is padded to it
    """

    batch: int
    beams: int
    tokens: int
    positions: int

    @property
    def seconds(self) -> float:
        return self.positions / POSITIONS_PER_SECOND

    @property
    def rows(self) -> int:
        """Hypotheses that are decoded together."""
        return self.batch * self.beams


def workload(
    geometry: Geometry,
    batch: int = 1,
    beams: int = 1,
    tokens: int | None = None,
    seconds: float | None = None,
) -> Workload:
    """A workload that the model can do; by default one utterance of a whole window, decoded greedily up to
    the model's own limit. `seconds` is of audio, for an engine that does not pad to the window.

    Raises ValueError for less than one of anything, more tokens than the decoder has room for, or more audio
    than a window holds.
    """
    tokens = geometry.default_tokens if tokens is None else tokens
    window = geometry.max_source_positions / POSITIONS_PER_SECOND
    seconds = window if seconds is None else seconds
    for name, value in (("batch", batch), ("beams", beams), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1; give a positive number")
    if tokens > geometry.room:
        raise ValueError(
            f"tokens={tokens} does not fit beside the prompt; this decoder has room for {geometry.room}: "
            "give fewer"
        )
    if not 0 < seconds <= window:
        raise ValueError(
            f"seconds={seconds:g} is not within the model's window; give more than 0 and at most {window:g}: "
            "longer audio is transcribed window by window, and takes no more memory"
        )
    positions = max(round(seconds * POSITIONS_PER_SECOND), 1)
    return Workload(batch, beams, tokens, positions)


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they hold; `activations` is the peak of what lives beside the other three."""

    weights: int
    self_attention: int
    cross_attention: int
    activations: int

    @property
    def kv_cache(self) -> int:
        return self.self_attention + self.cross_attention

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations


def footprint(
    geometry: Geometry,
    weight_bytes: int,
    treatment: Treatment,
    work: Workload,
    plain_bits: int = 16,
) -> Footprint:
    """The memory of a model whose checkpoint has so many bytes; plain_bits is the width of what nothing
    rounds.

    Self-attention holds room for the prompt and all tokens of every hypothesis. Cross-attention holds the
    audio of every utterance once: its hypotheses share it.
    """
    held, kv_cache = geometry.prompt_length + work.tokens, treatment.kv_cache
    inputs = {role: each.quantizer.format.bits for role, each in by_role(treatment.activations).items()}
    return Footprint(
        weights=weight_bytes,
        self_attention=cache_bytes(geometry, kv_cache, "self", work.rows, held, plain_bits),
        cross_attention=cache_bytes(geometry, kv_cache, "cross", work.batch, work.positions, plain_bits),
        activations=activation_bits(geometry, work, inputs, plain_bits) // 8,
    )


def cache_bytes(
    geometry: Geometry,
    scheme: KVCache | None,
    attention: str,
    rows: int,
    positions: int,
    plain_bits: int = 16,
) -> int:
    """Of the keys and values [rows, heads, positions, head size] in all decoder layers; attention is self or
    cross."""
    shape = rows, geometry.decoder_attention_heads, positions, geometry.head_size
    if scheme is None or attention not in scheme.attention:
        return geometry.decoder_layers * 2 * _plain_bytes(shape, plain_bits)
    keys, values = scheme.keys, scheme.values
    if keys.granularity != "channel":
        key_bytes = storage(shape, *keys).bytes
    else:
        key_bytes = _channel_bytes(shape, keys, scheme.block, attention, plain_bits)
    return geometry.decoder_layers * (key_bytes + storage(shape, *values).bytes)


def _channel_bytes(
    shape: tuple[int, int, int, int], keys: Quantizer, block: int | None, attention: str, plain_bits: int
) -> int:
    """Keys whose scales are per channel, over blocks of positions; in self-attention the newest block is kept
    as it is until it is full."""
    rows, heads, positions, head_size = shape
    block = block or (SELF_ATTENTION_BLOCK if attention == "self" else positions)
    rest = positions % block if attention == "self" else 0
    whole = storage((rows, heads, head_size, positions - rest), keys.format, "group", block).bytes
    return whole + _plain_bytes((rows, heads, rest, head_size), plain_bits)


def _plain_bytes(shape: tuple[int, int, int, int], bits: int) -> int:
    rows, heads, positions, head_size = shape
    return rows * heads * positions * head_size * bits // 8


def activation_bits(
    geometry: Geometry, work: Workload, inputs: Mapping[str, int] | None = None, plain_bits: int = 16
) -> int:
    """Most bits that are alive at once beside weights, keys and values.

    Of an engine as PyTorch is one: attention without its matrix of scores, a new output for every operation.
    The features, and the largest of an encoder layer's steps, of the convolutions, of the decoder's first
    step over the prompt, and of the logits. What a linear layer reads is held as it is rounded: `inputs` are
    the bits of an element by role, without their scales.
    """
    features = work.batch * 2 * work.positions * geometry.num_mel_bins
    convolution = (
        2 * 2 * geometry.d_model
    )  # two positions of the first one's output for each of the encoder's
    width = partial(_layer_bits, geometry.d_model, inputs or {}, plain_bits)
    encoder = max(convolution * plain_bits, width("encoder", geometry.encoder_ffn_dim))
    prompt = geometry.prompt_length * width("decoder", geometry.decoder_ffn_dim)
    logits = (geometry.d_model + geometry.vocab_size) * plain_bits
    decoder = work.rows * max(prompt, logits)
    return features * plain_bits + max(work.batch * work.positions * encoder, decoder)


def _layer_bits(d_model: int, inputs: Mapping[str, int], plain: int, part: str, feed_forward: int) -> int:
    """Most bits alive for one position of a layer: the residual stream and its normalised copy, and beside
    them q, k, v, what they give, and its projection; or fc1's output before and after GELU."""

    def read(role: str) -> int:
        return inputs.get(f"{part}.{role}", plain)

    attention = d_model * (read("self_attn.q") + 3 * plain + read("self_attn.out") + plain)
    mlp = d_model * read("mlp.fc1") + feed_forward * (plain + read("mlp.fc2"))
    return d_model * plain + max(attention, mlp)
