"""The roles of a Whisper model's weights, and the patterns that choose among them. Needs no torch."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

PROJECTIONS = ("q", "k", "v", "out")
LINEARS = ("fc1", "fc2")

# Of encoder and decoder: the layers whose size the study reports, and what is quantized by default
LINEAR_ROLES = (
    *(f"encoder.self_attn.{projection}" for projection in PROJECTIONS),
    *(f"encoder.mlp.{linear}" for linear in LINEARS),
    *(f"decoder.self_attn.{projection}" for projection in PROJECTIONS),
    *(f"decoder.cross_attn.{projection}" for projection in PROJECTIONS),
    *(f"decoder.mlp.{linear}" for linear in LINEARS),
)
# embedding: the token embedding and the output head tied to it
ROLES = ("conv.conv1", "conv.conv2", *LINEAR_ROLES, "embedding")


def matches(role: str, pattern: str) -> bool:
    """Whether a pattern names this role: the role itself, a beginning of it at a dot, or a shell pattern."""
    return role == pattern or role.startswith(f"{pattern}.") or fnmatchcase(role, pattern)


def expand(patterns: Sequence[str]) -> tuple[str, ...]:
    """The roles that any of the patterns names, in the model's order. ValueError for one that names none."""
    for pattern in patterns:
        if not any(matches(role, pattern) for role in ROLES):
            raise ValueError(
                f"role {pattern} matches no layer; choose among {', '.join(ROLES)}, or the beginning of one"
            )
    return tuple(role for role in ROLES if any(matches(role, pattern) for pattern in patterns))


def is_decoders(role: str) -> bool:
    """Whether a layer of this role belongs to the decoder, to which the token embedding counts."""
    return role.startswith(("decoder.", "embedding"))


def shorten(roles: Sequence[str]) -> tuple[str, ...]:
    """The shortest names for a set of roles: `encoder.mlp` for both of its layers, `encoder` for all."""
    names: list[str] = []
    for role in roles:
        parts = role.split(".")
        beginnings = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        name = next(start for start in beginnings if all(r in roles for r in ROLES if matches(r, start)))
        if name not in names:
            names.append(name)
    return tuple(names)
