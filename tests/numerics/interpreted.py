"""Runs the fused kernel in Triton's interpreter, which has to be chosen before triton is imported.

    TRITON_INTERPRET=1 python -m tests.numerics.interpreted CASES RESULTS

CASES holds (x, format, granularity, group, amax) in torch.save's form; RESULTS gets (finite, output) of each.
"""

import sys

import torch

from wq.numerics import fused
from wq.numerics.effective import resolve
from wq.numerics.fake_quant import _block
from wq.numerics.shared_scales import shared_scales


def main(cases: str, results: str) -> None:
    found = []
    for x, format, granularity, group, amax in torch.load(cases, weights_only=False):
        effective = resolve(format, granularity, group)
        shared = shared_scales(x, effective, None, amax)
        run = fused.fake_quantizer(effective.format, shared.tensor_scale, shared.scale)
        out = torch.empty_like(x)
        found.append((run(x, out, _block(x, effective)), out))
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
