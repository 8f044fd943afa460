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
    """The roles that any of the patterns names, in the model's order. ValueError for one that names none.

    A pattern of linear layers may end in the number of a block, counted from 0, and is then of that block
    alone: `encoder.mlp:2` gives `encoder.mlp.fc1:2` and `encoder.mlp.fc2:2`.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        beginning, colon, block = pattern.partition(":")
        named = [role for role in ROLES if matches(role, beginning)]
        if colon:
            is_number = block.isascii() and block.isdigit()
            named = [f"{role}:{int(block)}" for role in named if is_number and role in LINEAR_ROLES]
        if not named:
            raise ValueError(
                f"role {pattern} matches no layer; choose among {', '.join(ROLES)}, or the beginning of one, "
                "with :N after it for the layers of block N alone"
            )
        chosen.update(named)
    whole = [role for role in chosen if any_block(role) == role or any_block(role) not in chosen]
    return tuple(sorted(whole, key=place))


def any_block(role: str) -> str:
    """The role without the number of a block."""
    return role.partition(":")[0]


def place(role: str) -> tuple[int, int]:
    """Where a role stands in the model's order, those of single blocks after the role itself."""
    return ROLES.index(any_block(role)), int(role.partition(":")[2] or -1)


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
