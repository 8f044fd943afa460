"""The columns of a row: the rates add up, and the comparison is the one that `wq compare` makes."""

import pytest
import torch

from wq.study.compare.comparison import Side, difference
from wq.study.job.reading import reading_columns
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
    capped = {name: columns.pop(name) for name in list(columns) if name.startswith("wer_capped")}
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
    assert capped["wer_capped_delta"] == pytest.approx(4 / 14)  # no utterance has more errors than words
    assert (
        capped["wer_capped_delta_ci_low"] <= capped["wer_capped_delta"] <= capped["wer_capped_delta_ci_high"]
    )


LOOP = [*INT4[:4], "stop " * 100]  # 99 errors in an utterance of one word


def test_a_loop_counts_as_one_lost_utterance_where_errors_are_capped():
    reference, point = outcome(FP32), outcome(LOOP)
    assert point.row["wer"] == pytest.approx((5 + 99) / 14)
    assert point.row["wer_capped"] == pytest.approx((5 + 1) / 14)
    assert point.row["wer_capped_ci_high"] <= 1
    assert (point.row["repetition_loops"], point.row["loop_share"]) == (1, 1 / 4)
    columns = difference_columns(point.transcripts, reference, SPEC)
    assert columns["wer_capped_delta"] == pytest.approx((6 - 2) / 14)


def read(found: Outcome, **sums: list[float]) -> list[dict]:
    """Its utterances with so many nats each, over four tokens, or none where they are zero."""
    rows = [dict(row) for row in found.transcripts]
    for name, values in sums.items():
        for row, value in zip(rows, values, strict=True):
            row |= {name: value, f"{name}_tokens": 4 if value else 0, "agreed": 3 if value else 0}
    return rows


def test_tokens_are_pooled_over_what_is_scored_and_was_read():
    rows = read(outcome(INT4), nll=[4.0, 8.0, 99.0, 0.0, 12.0], kl=[0.4, 0.8, 9.9, 0.0, 1.2])
    others = read(outcome(FP32), nll=[2.0, 8.0, 99.0, 0.0, 2.0])
    columns = reading_columns(rows, others, resamples=300, seed=3)
    assert columns["kl"] == pytest.approx(2.4 / 12)
    assert (columns["kl_tokens"], columns["top1_agreement"]) == (12, 9 / 12)
    assert columns["utterance_kl"] == [0.4, 0.8, 0.0, 1.2]
    assert columns["utterance_kl_tokens"] == [4, 4, 0, 4]
    assert columns["nll"] == pytest.approx(2.0)
    assert columns["nll_delta"] == pytest.approx(1.0)
    for name in ("kl", "nll", "nll_delta"):
        assert columns[f"{name}_ci_low"] <= columns[name] <= columns[f"{name}_ci_high"]
    alone = reading_columns(rows, None, resamples=300, seed=3)
    assert {name for name in columns if name not in alone} == {name for name in columns if "delta" in name}
    assert reading_columns(outcome(INT4).transcripts, None, resamples=300, seed=3) == {}  # nothing was read


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
