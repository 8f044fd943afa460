"""The columns of a row: the rates add up, and the comparison is the one that `wq compare` makes."""

import pytest
import torch

from wq.study.compare.comparison import Side, difference
from wq.study.job.rows import (
    Outcome,
    difference_columns,
    score_columns,
    spec_columns,
    utterance_rows,
    versions,
)
from wq.study.score import wer
from wq.study.spec.spec import Content, Spec
from wq.study.speech.audio import Entry
from wq.study.speech.datasets import Speech, Utterance
from wq.study.store.columns import METRIC, columns_of
from wq.study.store.recording import parameters
from wq.whisper.decoding.decode import Transcript
from wq.whisper.layers.treatment import Treatment

TEXTS = ["Turn on the light.", "open the door please", "[noise]", "play music in the kitchen", "stop"]
FP32 = ["turn on the light", "open a door please", "", "play music in a kitchen", "Stop!"]
INT4 = ["turn on a light", "open the door please", "x", "play music the kitchen and so on", "stop it"]

SPEC = Spec(
    model=Content("nano", "1"),
    dataset=Content("commands", "2"),
    split="clean",
    language="en",
    decoding_language=None,
    limit=None,
    treatment=Treatment(),
    calibration=None,
    max_new_tokens=None,
    seed=3,
    resamples=300,
    normaliser=wer.NORMALISER,
)


def outcome(heard: list[str]) -> Outcome:
    """What a run with these transcripts leaves, but for sizes and times."""
    entries = [Entry(f"u{n}", text, "here", f"{n}.wav", bytes) for n, text in enumerate(TEXTS)]
    speech = Speech("commands", "clean", "en", [Utterance(entry, 1.0, "") for entry in entries])
    transcripts = [Transcript(text, (), False, 1.0, 0.0) for text in heard]
    score = wer.score([utterance.id for utterance in speech.utterances], TEXTS, heard)
    row = {"fingerprint": "abc", **spec_columns(SPEC), **score_columns(score, SPEC)}
    return Outcome(row, utterance_rows(speech, transcripts, score), reused=False)


def test_rates_add_up_and_errors_are_kept_per_utterance():
    row = outcome(INT4).row
    rates = row["substitution_rate"] + row["deletion_rate"] + row["insertion_rate"]
    assert rates == pytest.approx(row["wer"])
    assert row["utterance_errors"] == [1, 0, 4, 1]
    assert row["utterance_words"] == [4, 4, 5, 1]
    assert sum(row["utterance_errors"]) / sum(row["utterance_words"]) == row["wer"] == 6 / 14
    assert (row["utterances"], row["dropped_references"], row["hallucinated_words"]) == (4, 1, 3)


def test_transcripts_tell_the_same_errors_as_the_row():
    found = outcome(INT4)
    scored = [row for row in found.transcripts if row["words"] is not None]
    assert [row["errors"] for row in scored] == found.row["utterance_errors"]
    assert [row["id"] for row in scored] == ["u0", "u1", "u3", "u4"]


def test_the_difference_is_that_of_wq_compare():
    reference, point = outcome(FP32), outcome(INT4)
    columns = difference_columns(point.transcripts, reference, SPEC)
    found = difference(*(Side(each.row, each.transcripts, "") for each in (reference, point)))
    comparison = found.comparison
    assert columns == {
        "wer_delta": comparison.delta,
        "wer_delta_ci_low": comparison.low,
        "wer_delta_ci_high": comparison.high,
        "wer_delta_p": comparison.p,
        "wer_delta_mapsswe_p": found.matched.p,
        "no_worse": comparison.no_worse,
        "unchanged": comparison.unchanged,
        "reference": "abc",
    }
    assert columns["wer_delta"] == pytest.approx(4 / 14)
    assert columns["unchanged"] == 0  # to the letter; in the same words one is


def test_lists_are_neither_metrics_nor_parameters():
    row = outcome(INT4).row
    lists = {name for name, value in row.items() if isinstance(value, list)}
    assert lists == {"utterance_errors", "utterance_words"}
    assert not lists & set(columns_of(METRIC))
    assert not lists & set(parameters(SPEC, spec_columns(SPEC), row))


def test_a_row_says_on_what_kind_of_processor_it_was_computed():
    row = versions()
    assert row["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert row["encoder_library"] in ("torch", "onednn")
    assert parameters(SPEC, {}, row).items() >= row.items()
