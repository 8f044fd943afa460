"""The languages that Whisper was trained on, and one code for each, however people name it.

Codes are Whisper's own, as its tokenizer has them in <|en|>: those of ISO 639-1, but for jw (Javanese, jv),
haw and yue. Needs no other library.
"""

from difflib import get_close_matches

# Code: what else it is called. ISO 639-3 and 639-2/B, other codes in use, English names
LANGUAGES = {
    "af": "afr, afrikaans",
    "am": "amh, amharic",
    "ar": "ara, arb, arabic",
    "as": "asm, assamese",
    "az": "aze, azj, azerbaijani, azeri",
    "ba": "bak, bashkir",
    "be": "bel, belarusian",
    "bg": "bul, bulgarian",
    "bn": "ben, bengali, bangla",
    "bo": "bod, tib, tibetan",
    "br": "bre, breton",
    "bs": "bos, bosnian",
    "ca": "cat, catalan, valencian",
    "cs": "ces, cze, czech",
    "cy": "cym, wel, welsh",
    "da": "dan, danish",
    "de": "deu, ger, german",
    "el": "ell, gre, greek",
    "en": "eng, english",
    "es": "spa, spanish, castilian",
    "et": "est, ekk, estonian",
    "eu": "eus, baq, basque",
    "fa": "fas, per, pes, persian, farsi",
    "fi": "fin, finnish",
    "fo": "fao, faroese",
    "fr": "fra, fre, french",
    "gl": "glg, galician",
    "gu": "guj, gujarati",
    "ha": "hau, hausa",
    "haw": "hawaiian",
    "he": "heb, iw, hebrew",
    "hi": "hin, hindi",
    "hr": "hrv, croatian",
    "ht": "hat, haitian, haitian creole",
    "hu": "hun, hungarian",
    "hy": "hye, arm, armenian",
    "id": "ind, in, indonesian",
    "is": "isl, ice, icelandic",
    "it": "ita, italian",
    "ja": "jpn, japanese",
    "jw": "jav, jv, javanese",
    "ka": "kat, geo, georgian",
    "kk": "kaz, kazakh",
    "km": "khm, khmer",
    "kn": "kan, kannada",
    "ko": "kor, korean",
    "la": "lat, latin",
    "lb": "ltz, luxembourgish, letzeburgesch",
    "ln": "lin, lingala",
    "lo": "lao",
    "lt": "lit, lithuanian",
    "lv": "lav, lvs, latvian",
    "mg": "mlg, malagasy",
    "mi": "mri, mao, maori",
    "mk": "mkd, mac, macedonian",
    "ml": "mal, malayalam",
    "mn": "mon, khk, mongolian",
    "mr": "mar, marathi",
    "ms": "msa, may, zsm, malay",
    "mt": "mlt, maltese",
    "my": "mya, bur, myanmar, burmese",
    "ne": "nep, npi, nepali",
    "nl": "nld, dut, dutch, flemish",
    "nn": "nno, nynorsk, norwegian nynorsk",
    "no": "nor, nb, nob, norwegian, bokmål, norwegian bokmål",
    "oc": "oci, occitan",
    "pa": "pan, punjabi, panjabi",
    "pl": "pol, polish",
    "ps": "pus, pashto, pushto",
    "pt": "por, portuguese",
    "ro": "ron, rum, mo, romanian, moldavian, moldovan",
    "ru": "rus, russian",
    "sa": "san, sanskrit",
    "sd": "snd, sindhi",
    "si": "sin, sinhala, sinhalese",
    "sk": "slk, slo, slovak",
    "sl": "slv, slovenian, slovene",
    "sn": "sna, shona",
    "so": "som, somali",
    "sq": "sqi, alb, albanian",
    "sr": "srp, serbian",
    "su": "sun, sundanese",
    "sv": "swe, swedish",
    "sw": "swa, swh, swahili",
    "ta": "tam, tamil",
    "te": "tel, telugu",
    "tg": "tgk, tajik",
    "th": "tha, thai",
    "tk": "tuk, turkmen",
    "tl": "tgl, fil, tagalog, filipino",
    "tr": "tur, turkish",
    "tt": "tat, tatar",
    "uk": "ukr, ukrainian",
    "ur": "urd, urdu",
    "uz": "uzb, uzn, uzbek",
    "vi": "vie, vietnamese",
    "yi": "yid, ydd, ji, yiddish",
    "yo": "yor, yoruba",
    "yue": "cantonese, zh yue",
    "zh": "zho, chi, cmn, chinese, mandarin",
}
CODES = {name: code for code, names in LANGUAGES.items() for name in (code, *names.split(", "))}


def find_code(text: str) -> str | None:
    """Whisper's code of a language given by a code or an English name, in any case, with or without a script
    and a region (en-GB, zh_Hans_CN, Haitian Creole); None where it is none that Whisper knows."""
    parts = text.casefold().replace("_", " ").replace("-", " ").split()
    beginnings = (" ".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((CODES[name] for name in beginnings if name in CODES), None)


def language_code(text: str, setting: str = "language") -> str:
    """The same. Raises ValueError for a language that Whisper does not know, with the names most like it."""
    code = find_code(text)
    if code is None:
        names = [name for name in CODES if len(name) > 3]  # of codes, any two are alike
        near = [f"{CODES[name]} ({name})" for name in get_close_matches(text.casefold(), names, 2, 0.7)]
        remedy = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(LANGUAGES)}"
        raise ValueError(f"{setting}={text} is no language that Whisper knows; {remedy}")
    return code
