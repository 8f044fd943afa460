"""Measured memory: the peak of this process, or of its CUDA device."""

import resource
import sys
from pathlib import Path

_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak(device: str) -> None:
    """Start measuring anew: a job must not report the peak of the job before it in the same process."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _REFS.write_text("5")  # proc(5): resets the peak resident set size
        except OSError:
            return


def peak_bytes(device: str) -> int:
    """CUDA: the largest sum of tensors since `reset_peak`. CPU: the largest resident set, of the whole
    process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
