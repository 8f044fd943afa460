"""Word error rates and matched pairs by NIST's own scorer, from transcripts of the shipped model alone."""

import re
import shutil
import subprocess

import pytest

from tests.conftest import plan
from wq.study.score import wer
from wq.study.score.mapsswe import mapsswe
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.decoding.decode import SAMPLING_RATE, transcribe
from wq.whisper.layers.layers import walk
from wq.whisper.methods.nearest import quantized_weights

BIN = "/usr/lib/sctk/bin"  # where Debian has it
SCLITE, SC_STATS = (shutil.which(name, path=BIN) or shutil.which(name) for name in ("sclite", "sc_stats"))
COUNT = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        SCLITE is None or SC_STATS is None, reason="needs NIST's scorer: apt-get install sctk"
    ),
]


@pytest.fixture(scope="module")
def references():
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split="other"), limit=COUNT)
    return speech, [utterance.text for utterance in speech.utterances]


@pytest.fixture(scope="module")
def systems(nano, references):
    """What the model writes at full precision, and with three-bit weights."""
    speech, _ = references

    def heard() -> list[str]:
        read = lambda index: speech.read(index, SAMPLING_RATE)  # noqa: E731
        transcripts = transcribe(nano, read, range(COUNT), batch_size=20).transcripts
        return [transcript.text for transcript in transcripts]

    whole = heard()
    with quantized_weights(plan([layer for layer in walk(nano.model) if layer.is_linear], "int3")):
        return {"fp32": whole, "int3": heard()}


@pytest.fixture(scope="module")
def directory(references, systems, tmp_path_factory):
    """Where reference and systems lie as sclite reads them, and what it writes of them."""
    place = tmp_path_factory.mktemp("sctk")
    for name, texts in {"ref": references[1], **systems}.items():
        lines = [f"{wer.normalise(text)} (speaker_{index})\n" for index, text in enumerate(texts)]
        (place / f"{name}.trn").write_text("".join(lines))
    for name in systems:
        files = ["-r", "ref.trn", "trn", "-h", f"{name}.trn", "trn", name, "-i", "rm"]
        subprocess.run(
            [str(SCLITE), *files, "-o", "rsum", "sgml"], cwd=place, check=True, capture_output=True
        )
    return place


@pytest.mark.parametrize("name", ["fp32", "int3"])
def test_the_errors_are_sclites(name, references, systems, directory):
    """sclite weighs a substitution 4, a deletion and an insertion 3 each: it may take two of these for two
    substitutions, with the same sum and a word more that is right."""
    score = wer.score([str(index) for index in range(COUNT)], references[1], systems[name])
    told = (directory / f"{name}.trn.raw").read_text()
    (sums,) = re.findall(r"\| Sum.*", told)
    sentences, words, *counts = map(int, re.findall(r"\d+", sums))
    hits, substitutions, deletions, insertions, errors, wrong_sentences = counts
    assert (sentences, words) == (score.utterances, score.reference_words)
    assert errors == score.substitutions + score.deletions + score.insertions > 0
    assert errors / words == score.wer
    assert wrong_sentences == int((score.errors > 0).sum())
    assert substitutions <= score.substitutions
    assert deletions - insertions == score.deletions - score.insertions
    assert hits + substitutions + deletions == words


def test_the_matched_pairs_are_sc_statss(references, systems, directory):
    aligned = [
        [wer.alignment(text, heard) for text, heard in zip(references[1], each, strict=True)]
        for each in systems.values()
    ]
    ours = mapsswe(zip(*aligned, strict=True))
    told = subprocess.run(
        [str(SC_STATS), "-p", "-r", "-v", "-t", "mapsswe", "-n", "-"],
        input=b"".join((directory / f"{name}.trn.sgml").read_bytes() for name in systems),
        cwd=directory,
        capture_output=True,
        check=True,
    ).stdout.decode(errors="replace")
    ((segments, z),) = re.findall(r"# segs: (\d+)\).*Z Stat: (\S+)\)", told)
    assert int(segments) == ours.segments
    assert float(z) == pytest.approx(ours.z, abs=0.00051)
