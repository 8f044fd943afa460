"""How much of a model's linear weights MX scales clip: python recipes/study/clipping.py MODEL

MODEL is a directory, a hub id or wq:nano. For every MX format in blocks of 16, 32 and 64, with the scale
rounded down as OCP has it: the share of blocks whose largest magnitude, over the scale, is beyond the largest
code, and beyond it by more than half a step; and of all values, those beyond it.
"""

import sys

import torch

from wq.catalogue import format_names, load_format
from wq.numerics.formats import Format
from wq.numerics.scales import e8m0_scale
from wq.whisper.checkpoint.files import locate
from wq.whisper.checkpoint.model import load
from wq.whisper.layers.layers import walk

BLOCKS = (16, 32, 64)


def main(path: str) -> None:
    model = load(locate(path)).model
    weights = [layer.weight.data for layer in walk(model) if layer.is_linear]
    print("format       block  blocks beyond  by half a step  values beyond")
    for format in map(load_format, format_names()):
        if format.scale_dtype == "e8m0":
            for block in BLOCKS:
                shares = "".join(f"{share:14.1%}" for share in clipped(weights, format, block))
                print(f"{format.name:11}  {block:5}{shares}")


def clipped(weights: list[torch.Tensor], format: Format, block: int) -> tuple[float, float, float]:
    """The three shares, of weights [N, K] whose K the block divides."""
    half_step = (format.code_book[-1] - format.code_book[-2]) / 2
    beyond = beyond_half = values = blocks = 0
    for weight in weights:
        magnitudes = weight.unflatten(1, (-1, block)).abs()
        magnitudes = magnitudes / e8m0_scale(magnitudes.amax(-1, keepdim=True), format)
        largest = magnitudes.amax(-1)
        beyond += int((largest > format.max).sum())
        beyond_half += int((largest > format.max + half_step).sum())
        values += int((magnitudes > format.max).sum())
        blocks += largest.numel()
    return beyond / blocks, beyond_half / blocks, values / blocks / block


if __name__ == "__main__":
    main(sys.argv[1])
