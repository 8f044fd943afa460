"""Log-mel features of a batch, as Whisper's feature extractor defines them.

Equal to transformers' extractor but for float32 rounding, and faster: the spectrum is computed only where
there is sound. Frames of the padding are known beforehand; in a window of 5 s that holds 2 s of speech they
are more than half.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

POWER_FLOOR = 1e-10


def log_mel(extractor: WhisperFeatureExtractor, audios: Sequence[np.ndarray]) -> Tensor:
    """Features [rows, mels, frames] of audios at the extractor's sampling rate, none longer than its window.

    Each audio is padded with silence to the window.
    """
    hop, size, window = extractor.hop_length, extractor.n_fft, extractor.n_samples
    longest = max(map(len, audios))
    # As many whole hops as hold the longest audio, and as much silence behind it as a frame can look ahead
    length = min(-(-(longest + size // 2) // hop) * hop, window)
    samples = torch.zeros(len(audios), length)
    for row, audio in zip(samples, audios, strict=True):
        row[: len(audio)] = torch.from_numpy(audio)
    spectrum = torch.stft(samples, size, hop, window=torch.hann_window(size), return_complex=True)[..., :-1]
    power = spectrum.real.square() + spectrum.imag.square()
    filters = torch.from_numpy(extractor.mel_filters).to(power.dtype)
    logs = (filters.T @ power).clamp_(min=POWER_FLOOR).log10_()
    logs = F.pad(logs, (0, window // hop - logs.shape[-1]), value=float(np.log10(POWER_FLOOR)))
    # A range of 80 dB below the loudest point of each utterance, scaled to about -1 .. 1
    loudest = logs.amax(dim=(1, 2), keepdim=True)
    return torch.maximum(logs, loudest - 8.0).add_(4.0).div_(4.0)


def without_silence(features: Tensor) -> Tensor:
    """Features [mels, frames] without the silence at their end, but for one frame of it: all frames of the
    padding are alike."""
    changes = (features[:, 1:] != features[:, :-1]).any(0).nonzero()
    return features[:, : int(changes[-1]) + 2 if len(changes) else 1]


def with_silence(features: Tensor, frames: int) -> Tensor:
    """Features [mels, frames] as they were before `without_silence`."""
    return F.pad(features, (0, frames - features.shape[1]), mode="replicate")
