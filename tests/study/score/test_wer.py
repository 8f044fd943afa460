"""Word error rates worked out by hand, and the same ones from `evaluate`."""

import subprocess
import sys
from importlib.metadata import version

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wq.study.score import wer
from wq.study.score.wer import alignment, ends_in_loop, normalise, score

# reference, hypothesis: substitutions, deletions, insertions, reference words after normalisation
PAIRS = {
    "equal": ("turn on the light", "turn on the light", 0, 0, 0, 4),
    "punctuation and case": ("Turn on the light!", "turn, on THE light.", 0, 0, 0, 4),
    "number words": ("set it to twenty five degrees", "set it to 25 degrees", 0, 0, 0, 5),
    "a wrong number is one error": ("set it to twenty five degrees", "set it to 29 degrees", 1, 0, 0, 5),
    "commas in numbers": ("one thousand people", "1,000 people", 0, 0, 0, 2),
    "years": ("in nineteen eighty four", "In 1984", 0, 0, 0, 2),
    "decimals": ("two and a half hours", "2.5 hours", 0, 0, 0, 2),
    "ordinals": ("the twenty-first of May", "the 21st of May", 0, 0, 0, 4),
    "currency": ("it costs twenty dollars and five cents", "It costs $20.05.", 0, 0, 0, 3),
    "percent": ("ten percent more", "10% more", 0, 0, 0, 2),
    "contractions": ("I can't, she won't", "i can not she will not", 0, 0, 0, 6),
    "half a contraction": ("it's late", "its late", 1, 1, 0, 3),
    "british spelling": ("the colour of the centre", "the color of the center", 0, 0, 0, 5),
    "titles": ("Dr. Smith called", "doctor smith called", 0, 0, 0, 3),
    "fillers": ("um open uh the door", "Open the door, hmm.", 0, 0, 0, 3),
    "brackets": ("open the door", "[noise] open (softly) the door", 0, 0, 0, 3),
    "diacritics": ("the café", "the cafe", 0, 0, 0, 2),
    "a good cause is no because": ("for a good cause", "for a good because", 1, 0, 0, 4),
    "empty hypothesis": ("open the door", "", 0, 3, 0, 3),
    "hypothesis of punctuation": ("open the door", " ?! ", 0, 3, 0, 3),
    "an ellipsis leaves a full stop behind": ("open the door", "open the door...", 0, 0, 1, 3),
    "one of each": ("the cat sat on a mat today", "the dog sat a mat outside today", 1, 1, 1, 7),
    "deletion at the start": ("please open the door", "open the door", 0, 1, 0, 4),
    "repeated word": ("no no go", "no go", 0, 1, 0, 3),
    "rate above 1": ("stop", "stop stop stop stop stop stop", 0, 0, 5, 1),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_by_hand(name):
    reference, hypothesis, *counts = PAIRS[name]
    result = score([name], [reference], [hypothesis])
    assert [result.substitutions, result.deletions, result.insertions, result.reference_words] == counts


def test_corpus_rate_is_pooled():
    references, hypotheses, *counts = zip(*PAIRS.values(), strict=True)
    substitutions, deletions, insertions, words = np.array(counts)
    errors = substitutions + deletions + insertions
    result = score(tuple(PAIRS), references, hypotheses)
    assert result.wer == errors.sum() / words.sum()
    assert result.errors.tolist() == errors.tolist()
    assert result.words.tolist() == words.tolist()
    assert result.ids == tuple(PAIRS)
    assert (result.utterances, result.dropped_references, result.empty_hypotheses) == (len(PAIRS), 0, 2)


def test_evaluate_metric_equals_score():
    references, hypotheses = ["Colour", "twenty", "?", "a b c"], ["color", "30", "x", "a b b c"]
    expected = score(["1", "2", "3", "4"], references, hypotheses)
    result = wer.WER().compute(predictions=hypotheses, references=references)
    assert result is not None
    assert result == {"wer": expected.wer, "cer": expected.cer, **expected.counts}
    assert result["wer"] == 2 / 5
    metric = wer.WER()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        metric.add(prediction=hypothesis, reference=reference)
    assert metric.compute() == result
    german = wer.WER().compute(predictions=["20"], references=["twenty"], language="de")
    assert german is not None
    assert german["wer"] == 1.0


def test_rates_add_up_to_the_word_error_rate():
    references, hypotheses, *_ = zip(*PAIRS.values(), strict=True)
    result = score(tuple(PAIRS), references, hypotheses)
    rates = (result.substitution_rate, result.deletion_rate, result.insertion_rate)
    assert rates == tuple(
        count / result.reference_words
        for count in (result.substitutions, result.deletions, result.insertions)
    )
    assert sum(rates) == pytest.approx(result.wer)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "hallucinated"),
    [
        ("open the door", "open the door", 0),
        ("open the door", "open the door for me", 0),  # two words
        ("open the door", "open the door for me now", 3),
        ("open the door", "thank you for watching open the door", 4),
        ("open the door", "open well let us see the door", 4),
        ("open the door", "well so open now then the door please sir", 0),  # two, two and two
        ("open the door", "so then now open the door thank you very much", 7),  # two runs
        ("stop", "stop stop stop stop stop stop", 5),
        ("open the door", "please subscribe to my channel", 0),  # wrong, but not in excess of one in a row
        ("open the door", "", 0),
        ("fünf", "fünf und dann noch eins", 4),
    ],
)
def test_hallucinated_words_by_hand(reference, hypothesis, hallucinated):
    result = score(["1"], [reference], [hypothesis])
    assert result.hallucinated_words == hallucinated
    assert result.hallucinated_words <= result.insertions


def test_references_without_words_are_dropped_and_counted():
    result = score(["a", "b", "c"], ["", "[noise]", "go"], ["hello there", "x", "go"])
    assert (result.wer, result.utterances, result.dropped_references, result.ids) == (0.0, 1, 2, ("c",))
    assert result.insertions == 0


@pytest.mark.parametrize(
    ("ids", "references", "hypotheses", "message"),
    [
        (["1"], ["?!"], ["x"], "none of the 1 references has a word in it; check"),
        ([], [], [], "none of the 0 references"),
        (["1", "1"], ["a", "b"], ["a", "b"], "id 1 occurs twice"),
        (["1", "2"], ["a"], ["a"], "2 ids, 1 references, 1 hypotheses"),
    ],
)
def test_what_cannot_be_scored(ids, references, hypotheses, message):
    with pytest.raises(ValueError, match=message):
        score(ids, references, hypotheses)


def test_character_errors_by_hand():
    result = score(["1", "2"], ["open the door", "stop"], ["open a door", "stops"])
    # "the" -> "a": two deletions and a substitution; one insertion; 13 + 4 characters, spaces included
    assert (result.character_errors, result.reference_characters, result.cer) == (4, 17, 4 / 17)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "errors", "characters"),
    [
        ("你好", "你坏", "zh", 1, 2),
        ("你好", "你 好", "zh-CN", 0, 2),
        ("你好，世界！", "你好世", "yue", 1, 4),
        ("こんにちは", "こんばんは", "ja", 2, 5),
        ("日本 ABC", "日本ABD", "ja", 1, 5),
        ("กขค", "กขงจ", "th", 2, 3),
        ("ກຂ", "ກ", "lo", 1, 2),
        ("ကခ", "ကခဂ", "my", 1, 2),
        ("안녕 하세요", "안녕하세요", "ko", 1, 6),
        ("guten tag", "gutentag", "de", 1, 9),
    ],
)
def test_spaces_are_characters_where_words_have_them_between(
    reference, hypothesis, language, errors, characters
):
    result = score(["1"], [reference], [hypothesis], language)
    assert (result.character_errors, result.reference_characters) == (errors, characters)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Schöne Grüße, Welt!", "de", "schöne grüße welt"),
        ("Zwanzig (lacht) Euro", "de", "zwanzig euro"),
        ("L'été, c'est fini.", "fr", "l été c est fini"),
        ("你好，世界", "zh", "你 好 世 界"),
        ("你好，世界", "zh_cn", "你 好 世 界"),
        ("The Colour", "en", "the color"),
        ("The Colour", "en-GB", "the color"),
        ("The Colour", "en_us", "the color"),
        ("The Colour", "English", "the color"),
        ("The Colour", "de", "the colour"),
        ("I dunno, kinda", "en", "i dunno kinda"),
        ("नमस्ते, दुनिया!", "hi", "नमस्ते दुनिया"),
        ("வணக்கம் உலகம்", "ta", "வணக்கம் உலகம்"),
        ("আমি বাংলায় গান গাই।", "bn", "আমি বাংলায় গান গাই"),
        ("నేను తెలుగు", "telugu", "నేను తెలుగు"),
        ("السَّلَامُ عَلَيْكُمْ", "ar", "السَّلَامُ عَلَيْكُمْ"),
        ("ที่นี่", "th", "ที่ นี่"),
        ("cafe\u0301 ❤\ufe0f", "fr", "café"),  # a mark that composes, and one whose letter is a symbol
        ("", "en", ""),
        (" \n\t ", "fr", ""),
    ],
)
def test_normalise(text, language, expected):
    assert normalise(text, language) == expected


@pytest.mark.parametrize("language", ["zh", "zh-CN", "Chinese", "mandarin", "ja", "japanese", "yue", "ja_JP"])
def test_unspaced_languages_are_scored_by_characters_whatever_they_are_called(language):
    result = score(["a"], ["今天天气"], ["今天天汽"], language)
    assert (result.substitutions, result.reference_words) == (1, 4)
    assert ends_in_loop("好的" * 4, language)


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="language=klingon is no language that Whisper knows"):
        score(["a"], ["a"], ["a"], "klingon")


@pytest.mark.parametrize(
    ("texts", "language", "own"),
    [
        (["The café"], "en", "1"),
        (["नमस्ते"], "en", "1"),  # the English rules drop marks
        (["Grüße", "Cafe\u0301"], "de", "1"),  # composed, there are none
        (["你好"], "zh", "1"),
        (["hallo", "नमस्ते"], "hi", "2"),
        (["ที่นี่"], "th", "2"),
    ],
)
def test_the_record_tells_where_marks_are_kept(texts, language, own):
    assert wer.normaliser_of(texts, language).split("+")[0] == own


WORDS = """one two twenty hundred thousand million point oh half and a double third 's n't can't I'm mr. Dr $5
£3.20 ¢9 10% 1,000 3.5 ½ x1 dollars cents percent minus colour grey theatre café um (uh) [x] , . ... cause
dunno kinda gonna the cat"""


@given(st.lists(st.sampled_from(WORDS.split()), max_size=8).map(" ".join))
def test_normaliser_is_that_of_transformers(text):
    assert normalise(text) == TRANSFORMERS(text).strip()


def _transformers_normaliser():
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    return EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)


TRANSFORMERS = _transformers_normaliser()


@given(st.text(max_size=60))
def test_any_text_can_be_normalised(text):
    for language in ("en", "fr", "zh"):
        normal = normalise(text, language)
        assert normal == normal.strip()
        assert "  " not in normal


@given(st.lists(st.tuples(st.text("ab ", min_size=1, max_size=12), st.text("ab ", max_size=12)), min_size=1))
def test_counts_add_up_and_equal_jiwer_on_plain_words(pairs):
    kept = [(reference, hypothesis) for reference, hypothesis in pairs if reference.strip()]
    if not kept:
        return
    references, hypotheses = (list(texts) for texts in zip(*pairs, strict=True))
    result = score([str(n) for n in range(len(pairs))], references, hypotheses, language="fr")
    assert result.wer == pytest.approx(jiwer.wer([r for r, _ in kept], [h for _, h in kept]))
    assert result.errors.sum() == result.substitutions + result.deletions + result.insertions
    assert (
        result.words.sum() == result.reference_words == result.hits + result.substitutions + result.deletions
    )
    assert len(result.errors) == len(result.words) == len(result.ids) == result.utterances == len(kept)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "expected"),
    [
        ("Turn it off!", "turn it off", "en", "turn it off"),
        ("turn the light on", "turn a light on now", "en", "turn the>a light on +now"),
        ("the colour is twenty five", "color is 26", "en", "-the color is 25>26"),
        ("open it", "?!", "en", "-open -it"),
        ("[noise]", "thank you", "en", "+thank +you"),
        ("", "", "en", ""),
        ("你好", "你们好", "zh", "你 +们 好"),
    ],
)
def test_alignments_by_hand(reference, hypothesis, language, expected):
    marks = {"equal": "{0}", "substitute": "{0}>{1}", "delete": "-{0}", "insert": "+{1}"}
    words = alignment(reference, hypothesis, language)
    assert " ".join(marks[operation].format(*pair) for operation, *pair in words) == expected


@given(st.text("ab ", max_size=15), st.text("ab ", max_size=15))
def test_an_alignment_has_every_word_once_and_the_errors_that_are_counted(reference, hypothesis):
    words = alignment(reference, hypothesis, "fr")
    assert [expected for _, expected, _ in words if expected is not None] == reference.split()
    assert [heard for _, _, heard in words if heard is not None] == hypothesis.split()
    for operation, expected, heard in words:
        assert (operation == "equal") == (expected == heard)
        assert (operation == "delete") == (heard is None)
        assert (operation == "insert") == (expected is None)
    if reference.strip():
        errors = sum(operation != "equal" for operation, _, _ in words)
        assert errors == score(["1"], [reference], [hypothesis], "fr").errors[0]


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("thank you thank you thank you thank you", True),
        ("so I went thank you thank you thank you thank you thank", True),  # the cap cuts the last round
        ("Yes. Yes! Yes, yes?", True),
        ("nine nine nine nine", True),
        ("a b c d e a b c d e a b c d e a b c d e", True),
        ("yes yes yes", False),
        ("thank you thank you thank you thank", False),
        ("yes yes yes yes and then he left", False),  # it got out again
        ("turn on the light", False),
        ("", False),
    ],
)
def test_loops(text, loops):
    assert ends_in_loop(text) == loops


def test_a_loop_that_was_spoken_is_none():
    spoken = "no no no no"
    assert score(["1", "2"], [spoken, "stop"], [spoken, spoken]).repetition_loops == 1


def test_loops_without_spaces_between_words():
    assert ends_in_loop("谢谢谢谢", "zh")
    assert ends_in_loop("谢谢谢谢", "zh-CN")
    assert not ends_in_loop("谢谢你", "zh")


def test_import_is_free_of_what_is_slow():
    slow = "{'jiwer', 'evaluate', 'datasets', 'whisper_normalizer', 'torch', 'transformers'}"
    code = f"import sys, wq.study.score.wer; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_normaliser_is_named_with_its_version():
    assert wer.NORMALISER.endswith(f"whisper_normalizer-{version('whisper_normalizer')}")
