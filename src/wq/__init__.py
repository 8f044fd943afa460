"""wq: what quantization does to Whisper speech recognition."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wq.catalogue import fake_quantize, storage_bits

__all__ = ["fake_quantize", "storage_bits"]


def __getattr__(name: str):
    """The public functions, imported on first use: `import wq` stays instant and free of torch."""
    if name in __all__:
        from wq import catalogue

        return getattr(catalogue, name)
    raise AttributeError(f"module wq has no attribute {name}")
