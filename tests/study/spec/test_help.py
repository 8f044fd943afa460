"""`--help` explains every setting that there is."""

from wq.study.spec.help import DECODERS, help_text
from wq.study.spec.refusals import setting_names

# explained where they are those of another setting: fields of a format, entries of a plan, a decoder's own
ELSEWHERE = (*(f"{name}." for name in DECODERS.values()), "activation.options.", "kv_cache.options.")
WITHOUT = {"format.name"}  # a format's own, which nobody sets


def test_every_setting_has_its_line():
    lines = help_text().splitlines()
    told = {
        line.split()[0].partition("=")[0] for line in lines if line.strip() and not line.startswith("   ")
    }
    asked = {name for name in setting_names() if not name.startswith(ELSEWHERE)} - WITHOUT
    assert {name for name in asked - told if name not in DECODERS.values()} == set()
    for own in DECODERS.values():
        assert f"{own}=... gives the decoder its own" in " ".join(help_text().split())


def test_lines_fit_a_terminal_and_say_something():
    lines = help_text().splitlines()
    assert max(map(len, lines)) <= 110
    for name in (
        *("format.scale_rule", "format.four_over_six", "smoothquant.scope", "chunk=1", "detach=false"),
        *("expect_wer={}", "reuse_limit=1000", "seed=0"),
    ):
        (line,) = [line for line in lines if line.strip().startswith(name)]
        assert len(line.strip()) > len(name) + 10
