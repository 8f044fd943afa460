"""One code for a language, held against transformers' own tables."""

import re

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES as THEIRS
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from wq.whisper.checkpoint.languages import CODES, LANGUAGES, find_code, language_code


def test_the_languages_are_those_of_transformers():
    assert set(LANGUAGES) == set(THEIRS)
    assert {name: find_code(name.title()) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE
    assert all(find_code(code.upper()) == code for code in LANGUAGES)


def test_no_name_is_that_of_two_languages():
    names = [name for code, names in LANGUAGES.items() for name in (code, *names.split(", "))]
    assert len(names) == len(set(names)) == len(CODES)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("en-GB", "en"),
        ("en_us", "en"),
        (" English ", "en"),
        ("zh-Hans-CN", "zh"),
        ("cmn_hans_cn", "zh"),
        ("zh-yue-HK", "yue"),
        ("Haitian-Creole", "ht"),
        ("nb-NO", "no"),
        ("jpn", "ja"),
        ("jv", "jw"),
        ("es-419", "es"),
        ("Norwegian Nynorsk", "nn"),
        ("klingon", None),
        ("", None),
        ("False", None),
        ("engl", None),
    ],
)
def test_codes_by_hand(text, code):
    assert find_code(text) == code


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("germn", "model.language=germn is no language that Whisper knows; did you mean de (german)?"),
        ("tlh", "choose one of af, am, ar"),
        ("", "choose one of"),
    ],
)
def test_an_unknown_language_is_refused(text, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        language_code(text, "model.language")
    assert "\n" not in str(caught.value)
