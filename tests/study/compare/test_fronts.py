"""The front by each of its measures: what every utterance says of the points, in rows that are made up."""

import json

import numpy as np
import pytest

from tests.study.report.test_report import row
from wq.study.compare.scenes import Criteria, scenes
from wq.study.compare.standing import read_sums

UTTERANCES = 200
WORDS = [10] * UTTERANCES
PLACES = np.arange(UTTERANCES)


def point(
    name: str, megabytes: float, errors: int, kl: float | None = None, loop: int = 0, **columns
) -> dict:
    """With one error in each of the first so many utterances, and as many more in the last as its loop has;
    and so many nats of kl in every utterance, half as many more in every other one."""
    counts = (errors > PLACES).astype(int)
    counts[-1] += loop
    wer = counts.sum() / sum(WORDS)
    tokens = {}
    if kl is not None:
        tokens = {
            "kl": kl,
            "utterance_kl": (kl * (1 + PLACES % 2 / 2)).tolist(),
            "utterance_kl_tokens": WORDS,
        }
    change = {"wer_delta": wer - 0.025, "wer_delta_p": 0.5, "resamples": 500, "seed": 0}
    change |= {"fingerprint": name, "reference": "fp32"}
    return row(name, megabytes, wer, utterance_errors=counts.tolist(), **tokens, **(change | columns))


def standing(rows: list[dict], directory, measure: str | None) -> tuple[str, dict[str, str]]:
    transcripts = {}
    for each in rows:
        path = directory / f"{each['point']}.jsonl"
        path.write_text("\n".join(json.dumps({"words": words}) for words in WORDS))
        transcripts[each["fingerprint"]] = path
    [scene] = scenes(rows, transcripts, Criteria(measure=measure))
    return scene.measure, {
        each["point"]: found for each, found in zip(scene.rows, scene.standing, strict=True)
    }


def test_a_loop_counts_as_one_lost_utterance(tmp_path):
    """One endless transcript of the larger point does not hide that the smaller is worse in a hundred."""
    plain = [point("int4", 1, 150), point("int8", 2, 50)]
    looped = [plain[0], point("int8", 2, 50, loop=200)]
    assert looped[1]["wer"] > looped[0]["wer"]
    for rows in (plain, looped):
        assert standing(rows, tmp_path, None) == ("wer_capped", {"int4": "undecided", "int8": "on"})
    assert standing(looped, tmp_path, "wer") == ("wer", {"int4": "undecided", "int8": "undecided"})


def test_tokens_tell_apart_what_words_do_not(tmp_path):
    rows = [
        point("int3", 1, 51, 0.9),
        point("int4", 2, 50, 0.1),
        point("mxfp4", 3, 49, 0.3),  # more bytes, further from the reference
        point("int8", 4, 50, 0.001),
        point("fp32", 16, 50, 0.0),
    ]
    by_words = dict.fromkeys(("int3", "int4", "mxfp4", "int8"), "undecided")
    assert standing(rows, tmp_path, "wer_capped")[1] == by_words | {
        "fp32": "on"
    }  # good, and nothing else is known to be
    decided = {"int3": "undecided", "int4": "on", "mxfp4": "off", "int8": "on", "fp32": "on"}
    assert standing(rows, tmp_path, None) == standing(rows, tmp_path, "kl") == ("kl", decided)


def test_what_is_surely_worse_in_words_is_off_where_nothing_smaller_is_there(tmp_path):
    lost = point("int3", 1, 150, 0.9, wer_delta_p=0.0002)
    _, found = standing([lost, point("int8", 4, 50, 0.001), point("fp32", 16, 50, 0.0)], tmp_path, None)
    assert found == {"int3": "off", "int8": "on", "fp32": "on"}


@pytest.mark.parametrize(
    "other",
    [
        point("int8", 2, 50),  # of a version that did not measure it
        point("int8", 2, 50, 0.001) | {"utterance_kl_tokens": WORDS[1:]},
        point("int8", 2, 50, 0.001) | {"utterance_kl_tokens": [*WORDS[1:], 9]},
        point("int8", 2, 50, 0.001) | {"utterance_kl": None},
    ],
)
def test_without_the_tokens_of_all_points_words_decide(tmp_path, other):
    assert standing([point("int4", 1, 150, 0.1), other], tmp_path, "kl")[0] == "wer_capped"


def test_utterances_that_were_not_read_do_not_count():
    rows = [point("int4", 1, 150, 0.1), point("int8", 2, 50, 0.2)]
    for each in rows:
        each["utterance_kl_tokens"] = [0, *WORDS[1:]]
    found = read_sums(rows, "kl", [False, False])
    assert found is not None
    assert len(found.words) == len(found.of[0]) == UTTERANCES - 1
    assert read_sums(rows, "kl", [True, True]) is None


def test_a_measure_that_is_none_is_refused():
    with pytest.raises(ValueError, match="front=cer is no measure; choose one of kl, nll, wer_capped, wer"):
        Criteria(measure="cer")
