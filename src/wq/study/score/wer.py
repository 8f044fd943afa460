"""Word error rate: Whisper's text normalisation, jiwer's alignment, counts first and rates derived from them.

    WER = (substitutions + deletions + insertions) / reference words

pooled over the corpus, never a mean of per-utterance rates. jiwer, evaluate and the normaliser are imported
on first use, so that this module costs nothing to import.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from wq.whisper.checkpoint.languages import language_code

if TYPE_CHECKING:
    import numpy as np

# For the record: only rates under the same normaliser compare. The number in front counts our own changes.
NORMALISER = f"1+whisper_normalizer-{version('whisper_normalizer')}"
# The same where texts have combining marks, which once were spaces that split the words of Hindi or Tamil
NORMALISER_WITH_MARKS = NORMALISER.replace("1", "2", 1)

# Written without spaces between words: each character counts as a word (Radford et al. 2022, appendix D.2.2).
UNSPACED = ("zh", "yue", "ja", "th", "lo", "my")

# What whisper_normalizer adds to Whisper's own rules; the last turns "a good cause" into "a good because".
FOREIGN_RULES = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")

LOOP_ROUNDS = 4
MADE_UP = 3  # words inserted in a row; one or two are more often a slip than something nobody said


@dataclass(frozen=True)
class Score:
    """How a set of transcripts differs from its references.

    utterances          those scored; `ids`, `errors` and `words` have one entry for each, in the order given
    dropped_references  utterances left out, because their reference normalises to nothing
    empty_hypotheses    scored utterances whose hypothesis normalises to nothing: all deletions
    repetition_loops    scored utterances whose hypothesis ends in a loop (see `ends_in_loop`) and whose
                        reference does not
    hallucinated_words  those inserted in runs: at least `MADE_UP` in a row, with no word of the reference
                        between them; part of the insertions
    errors, words       int64 [utterances]: word errors, and reference words (each at least 1)
    """

    substitutions: int
    deletions: int
    insertions: int
    hits: int
    reference_words: int
    character_errors: int
    reference_characters: int
    utterances: int
    dropped_references: int
    empty_hypotheses: int
    repetition_loops: int
    hallucinated_words: int
    ids: tuple[str, ...] = field(repr=False)
    errors: "np.ndarray" = field(repr=False, compare=False)
    words: "np.ndarray" = field(repr=False, compare=False)

    @property
    def wer(self) -> float:
        """Above 1 where insertions abound; the sum of the three rates below."""
        return (self.substitutions + self.deletions + self.insertions) / self.reference_words

    @property
    def substitution_rate(self) -> float:
        return self.substitutions / self.reference_words

    @property
    def deletion_rate(self) -> float:
        return self.deletions / self.reference_words

    @property
    def insertion_rate(self) -> float:
        return self.insertions / self.reference_words

    @property
    def cer(self) -> float:
        """Character error rate of the same normalised texts: spaces count, but in the `UNSPACED`, where the
        normaliser puts one between any two characters."""
        return self.character_errors / self.reference_characters

    @property
    def counts(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}


def score(
    ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], language: str = "en"
) -> Score:
    """Score raw `hypotheses` against raw `references`, utterance by utterance.

    ValueError: unequal lengths, an id that occurs twice, no reference with a word in it, or a language that
    Whisper does not know.
    """
    import jiwer
    import numpy as np

    if not len(ids) == len(references) == len(hypotheses):
        raise ValueError(
            f"{len(ids)} ids, {len(references)} references, {len(hypotheses)} hypotheses; "
            "give as many of each"
        )
    if len(set(ids)) < len(ids):
        twice = next(id for id, times in Counter(ids).items() if times > 1)
        raise ValueError(f"id {twice} occurs twice; give every utterance its own")

    # jiwer takes an empty reference without complaint, and counts its insertions over no words
    scored = [n for n, reference in enumerate(references) if normalise(reference, language)]
    if not scored:
        raise ValueError(
            f"none of the {len(ids)} references has a word in it; check the dataset's text column"
        )
    normal_references = [normalise(references[n], language) for n in scored]
    normal_hypotheses = [normalise(hypotheses[n], language) for n in scored]
    words = jiwer.process_words(normal_references, normal_hypotheses)
    characters = jiwer.process_characters(
        [_characters(text, language) for text in normal_references],
        [_characters(text, language) for text in normal_hypotheses],
    )
    return Score(
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        hits=words.hits,
        reference_words=words.hits + words.substitutions + words.deletions,
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
        reference_characters=characters.hits + characters.substitutions + characters.deletions,
        utterances=len(scored),
        dropped_references=len(ids) - len(scored),
        empty_hypotheses=sum(not hypothesis for hypothesis in normal_hypotheses),
        repetition_loops=sum(
            ends_in_loop(hypotheses[n], language) and not ends_in_loop(references[n], language)
            for n in scored
        ),
        hallucinated_words=sum(map(_made_up, words.alignments)),
        ids=tuple(ids[n] for n in scored),
        errors=np.fromiter(_errors(words.alignments), np.int64, len(scored)),
        words=np.array([len(reference) for reference in words.references], np.int64),
    )


def _errors(alignments: Sequence[Sequence[Any]]) -> Iterator[int]:
    for alignment in alignments:
        yield sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in alignment
            if chunk.type != "equal"
        )


def _made_up(alignment: Sequence[Any]) -> int:
    runs = (chunk.hyp_end_idx - chunk.hyp_start_idx for chunk in alignment if chunk.type == "insert")
    return sum(run for run in runs if run >= MADE_UP)


def alignment(
    reference: str, hypothesis: str, language: str = "en"
) -> list[tuple[str, str | None, str | None]]:
    """The normalised words of two raw texts side by side: (operation, reference word, hypothesis word), the
    operation one of equal, substitute, delete (no hypothesis word) and insert (no reference word).

    One of the alignments with the fewest errors, the same as `score` counts.

    >>> alignment("Turn the light on!", "turn a light on now")[1:]
    [('substitute', 'the', 'a'), ('equal', 'light', 'light'), ('equal', 'on', 'on'), ('insert', None, 'now')]
    """
    import jiwer

    output = jiwer.process_words(normalise(reference, language), normalise(hypothesis, language))
    references, hypotheses = output.references[0], output.hypotheses[0]
    return [
        (chunk.type, expected, heard)
        for chunk in output.alignments[0]
        for expected, heard in zip_longest(
            references[chunk.ref_start_idx : chunk.ref_end_idx],
            hypotheses[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
    ]


def normaliser_of(references: Iterable[str], language: str) -> str:
    """The name, for the record, of the rules that these texts are normalised by."""
    if language_code(language) == "en":
        return NORMALISER
    texts = (unicodedata.normalize("NFKC", text.lower()) for text in references)
    has_marks = any(unicodedata.category(character)[0] == "M" for text in texts for character in text)
    return NORMALISER_WITH_MARKS if has_marks else NORMALISER


@lru_cache(maxsize=1 << 16)  # a grid scores the same references, and mostly the same hypotheses, in every job
def normalise(text: str, language: str = "en") -> str:
    """`text` as Whisper's authors score it: English by their English normaliser (numbers, contractions,
    spelling, fillers), every other language by their basic one (case, punctuation, symbols), with characters
    as words for the `UNSPACED`. Theirs takes combining marks for symbols, and so splits the words of Hindi,
    Tamil and others at their vowel signs; here marks stay with their letters.

    `language` is a code or a name, as of `languages.language_code`. Radford et al. 2022, appendix C.
    """
    code = language_code(language)
    return _normaliser(code)(text).strip() if code == "en" else _basic(text, code in UNSPACED)


def _basic(text: str, by_character: bool = False) -> str:
    """A mark whose letter was a symbol, as after an emoji, is no word."""
    words = _normaliser("", by_character)(text).split()
    return " ".join(word for word in words if any(unicodedata.category(each)[0] != "M" for each in word))


def _characters(normal: str, language: str) -> str:
    """The characters of a normalised text that count as such."""
    return normal.replace(" ", "") if language_code(language) in UNSPACED else normal


@cache
def _normaliser(language: str, by_character: bool = False):
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    if language != "en":
        return BasicTextNormalizer(split_letters=by_character, preserve_marks=True)
    normaliser = EnglishTextNormalizer()
    for rule in FOREIGN_RULES:
        normaliser.replacers.pop(rule, None)
    return normaliser


def ends_in_loop(text: str, language: str = "en") -> bool:
    """Whether the last words are one phrase said at least `LOOP_ROUNDS` times in a row, the last round
    possibly cut short.

    Words are those of the basic normaliser: the English one would join "nine nine nine nine" into a number.
    """
    words = _basic(text, language_code(language) in UNSPACED).split()[::-1]
    # The prefix function of Knuth, Morris and Pratt over the reversed words: the last `size` words of the
    # text repeat with a period of `size - border`.
    border = [0] * len(words)
    for n in range(1, len(words)):
        length = border[n - 1]
        while length and words[n] != words[length]:
            length = border[length - 1]
        border[n] = length + (words[n] == words[length])
        size = n + 1
        if size >= LOOP_ROUNDS * (size - border[n]):
            return True
    return False


@cache
def _metric():
    import evaluate
    from evaluate.info import Features, MetricInfo, Value

    class WER(evaluate.Metric):
        """`score` as an `evaluate` metric that needs no network.

        `WER().compute(predictions=..., references=..., language="en")` returns wer, cer and every count
        of `Score`.
        """

        def __init__(self, *args, keep_in_memory: bool = True, **kwargs):
            super().__init__(*args, keep_in_memory=keep_in_memory, **kwargs)

        def _info(self):
            text = Value("string")
            return MetricInfo(
                description="Word error rate after Whisper's text normalisation.",
                citation="",
                features=Features({"predictions": text, "references": text}),
            )

        def _compute(self, *, predictions=None, references=None, language: str = "en", **_):
            predictions, references = predictions or [], references or []
            result = score([str(n) for n in range(len(references))], references, predictions, language)
            return {"wer": result.wer, "cer": result.cer, **result.counts}

    return WER


def __getattr__(name: str):
    """`WER`, built on first use: `evaluate` takes seconds to import."""
    if name == "WER":
        return _metric()
    raise AttributeError(f"module {__name__} has no attribute {name}")
