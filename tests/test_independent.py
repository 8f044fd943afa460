"""The whole path from audio to text on OpenAI's own tiny.en, beside others' code on the same weights."""

from functools import partial

import pytest

from benchmarks.cases import checkpoint
from benchmarks.rivals import agreeing, transcribers
from tests.conftest import REAL

COUNT, BATCH = 40, 8


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL / "tiny_en").is_dir(), reason="../shared/real with tiny_en and speech is not there"
)
def test_transcripts_are_those_of_generate_and_of_faster_whisper():
    """Token for token, but for near-ties: a token whose logit leads by less than float32 sums differ."""
    make = partial(checkpoint, REAL / "tiny_en", str(REAL / "speech"), "fluent", COUNT)
    case = make()
    batches = [case.audios[first : first + BATCH] for first in range(0, COUNT, BATCH)]
    with transcribers(make, BATCH, 1, "cpu") as (ways, missing):
        found = {name: ways[name](batches) for name in ways if name != "pipeline"}
    ours = found.pop("wq")
    assert "generate" in found
    agreed = {name: agreeing(case, rows, ours) for name, rows in found.items()}
    assert agreed["generate"] == COUNT
    if "faster-whisper" in missing:
        pytest.skip(f"generate agrees; faster-whisper: {missing['faster-whisper']}")
    assert agreed["faster-whisper"] >= COUNT - 1, agreed
