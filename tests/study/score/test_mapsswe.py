"""Matched pairs by hand, and the same from NIST's own tool where it is installed."""

import math
import random
import re
import shutil
import subprocess
from statistics import NormalDist

import pytest

from wq.study.score.mapsswe import mapsswe, segments
from wq.study.score.wer import alignment

SC_STATS = shutil.which("sc_stats", path="/usr/lib/sctk/bin") or shutil.which("sc_stats")


def align(reference: str, hypothesis: str):
    return alignment(reference, hypothesis, language="fr")


@pytest.mark.parametrize(
    ("reference", "first", "second", "expected"),
    [
        ("a b c d", "a b c d", "a b c d", []),
        ("a b c d", "a x c d", "a b c d", [(1, 0)]),
        ("a b c d", "a x c d", "a y c d", [(1, 1)]),
        ("a b c d", "a x c d", "a b y d", [(1, 1)]),  # side by side
        ("a b c d", "a x c d", "a b c y", [(1, 1)]),  # one right word between them is no boundary
        ("a b c d e", "a x c d e", "a b c d y", [(1, 0), (0, 1)]),  # two are
        ("a b c d e", "x b c d y", "a b c d e", [(1, 0), (1, 0)]),  # at either end
        ("a b c d e", "x b c d e", "a b y d e", [(1, 1)]),
        ("a b c d", "x a b c d", "a b c d y", [(1, 0), (0, 1)]),  # insertions before and after
        ("a b c d", "x b z c d", "a b c d", [(2, 0)]),
        ("a b c d e", "x b y c d e", "a b c d z", [(2, 0), (0, 1)]),
        ("a b c d", "x b c d", "a b y c d", [(1, 1)]),  # an insertion between two words parts them
        ("a b c d e f", "a d e f", "a b c d e f g h", [(2, 0), (0, 2)]),
        ("a b", "", "a b", [(2, 0)]),
        ("a b", "", "", [(2, 2)]),
    ],
)
def test_segments_by_hand(reference, first, second, expected):
    assert segments(align(reference, first), align(reference, second)) == expected
    swapped = segments(align(reference, second), align(reference, first))
    assert swapped == [(b, a) for a, b in expected]


CORPUS = [  # reference, first, second
    ("the cat sat on the mat today", "the cat sat on a mat today", "the cat sat on the mat today"),
    ("hello world how are you", "hello word how are you", "hello world how are you there"),
    ("open the door now please", "open the door now please", "open the door now please thanks"),
    (
        "one two three four five six seven eight",
        "one too three four five six seven ate",
        "one two three four fife six seven eight",
    ),
]


def test_a_corpus_by_hand():
    """Differences +1; +1, -1; -1; +1, -1, +1: mean 1/7, variance (7 - 1/7) / 6 = 8/7. sc_stats 1.3 of SCTK
    2.4.10 prints for the same files: # segs: 7, mean: 0.143, std dev: 1.069, Z Stat: 0.354, p 0.726."""
    result = mapsswe((align(reference, one), align(reference, two)) for reference, one, two in CORPUS)
    assert result.segments == 7
    assert result.z == pytest.approx(1 / 7 / math.sqrt(8 / 7 / 7))
    assert round(result.z, 3) == 0.354
    assert result.p == pytest.approx(0.726, abs=0.003)  # the tool looks p up in a table
    swapped = mapsswe((align(reference, two), align(reference, one)) for reference, one, two in CORPUS)
    assert (swapped.segments, swapped.z, swapped.p) == (7, -result.z, result.p)


@pytest.mark.parametrize("z", [0.0, 0.5, -1.96, 4.0, 7.0])
def test_p_is_the_normal_one(z):
    result = mapsswe([])
    assert (result.segments, result.z, result.p) == (0, 0.0, 1.0)
    assert type(result)(5, z).p == pytest.approx(2 * NormalDist().cdf(-abs(z)), rel=1e-6)


def test_equal_differences_have_no_spread_to_test_with():
    """sc_stats prints Z Stat: 0.000 for them."""
    worse = [(align("a b c", "a x c"), align("a b c", "a b c"))] * 3
    assert (mapsswe(worse).segments, mapsswe(worse).z) == (3, 0.0)


def test_other_references_are_refused():
    with pytest.raises(ValueError, match="references of 2 and 3 words"):
        segments(align("a b", "a b"), align("a b c", "a b"))


@pytest.mark.skipif(SC_STATS is None, reason="needs NIST's sc_stats: apt-get install sctk")
@pytest.mark.parametrize("seed", range(20))
def test_equals_sc_stats(seed, tmp_path):
    """The same alignments through NIST's tool: as many segments, and z to the digits that it prints."""
    generator = random.Random(seed)
    words = list("abcdefgh")

    def heard(reference: list) -> str:
        rate, said = generator.choice([0.02, 0.1]), []
        for word in reference:
            chance = generator.random()
            said += [] if chance < rate else [generator.choice(words) if chance < 2 * rate else word]
            said += generator.choices(words, k=2) if chance > 1 - rate else []
        return " ".join(said)

    references = [generator.choices(words, k=generator.randint(1, 25)) for _ in range(30)]
    systems = [[align(" ".join(each), heard(each)) for each in references] for _ in range(2)]
    result = mapsswe(zip(*systems, strict=True))

    told = subprocess.run(
        [str(SC_STATS), "-p", "-r", "-v", "-t", "mapsswe", "-n", "-"],
        input="".join(as_sgml(name, system) for name, system in zip("AB", systems, strict=True)).encode(),
        capture_output=True,
        cwd=tmp_path,
        check=True,
    ).stdout.decode(errors="replace")
    found = re.search(r"# segs: (\d+)\).*Z Stat: (\S+)\)", told)
    assert found, told[-500:]
    assert int(found[1]) == result.segments
    assert float(found[2]) == pytest.approx(result.z, abs=0.00051)


def as_sgml(name: str, system) -> str:
    """Alignments as sclite writes them for sc_stats."""
    codes = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}
    lines = [
        f'<SYSTEM title="{name}" ref_fname="r" hyp_fname="{name}" creation_date="" format="2.4" '
        'frag_corr="FALSE" opt_del="FALSE" weight_ali="FALSE" weight_filename="">',
        '<SPEAKER id="s">',
    ]
    for n, pairs in enumerate(system):
        texts = [
            ",".join([codes[operation], *(f'"{word}"' if word else "" for word in pair)])
            for operation, *pair in pairs
        ]
        lines += [f'<PATH id="(s_{n})" word_cnt="{len(texts)}" sequence="{n}">', ":".join(texts), "</PATH>"]
    return "\n".join([*lines, "</SPEAKER>", "</SYSTEM>", ""])
