"""Names, families and scripts of languages by their code.

Languages are those of the shipped benchmarks and of Tux Paint's stamps, by ISO 639. Families are groups of ISO 639-5
under their usual names, and scripts are the likely ones, both as in CLDR 41 (`languageGroup.xml`,
`likelySubtags.xml`); a code can name another script: `sr@latin`. No Python package that this project needs has them.
"""

import re
from typing import NamedTuple

_FAMILIES = {
    "Germanic": "af Afrikaans, da Danish, de German, en English, fy West Frisian, is Icelandic, nb Norwegian Bokmål, "
    "nl Dutch, nn Norwegian Nynorsk, no Norwegian, sv Swedish, yi Yiddish",
    "Romance": "an Aragonese, ast Asturian, ca Catalan, es Spanish, fr French, gl Galician, it Italian, "
    "oc Occitan, pt Portuguese, ro Romanian, vec Venetian",
    "Italic": "la Latin",
    "Slavic": "be Belarusian, bg Bulgarian, bs Bosnian, cs Czech, hr Croatian, mk Macedonian, pl Polish, ru Russian, "
    "sk Slovak, sl Slovenian, sr Serbian, uk Ukrainian",
    "Baltic": "lt Lithuanian, lv Latvian",
    "Celtic": "br Breton, cy Welsh, ga Irish, gd Scottish Gaelic",
    "Greek": "el Greek",
    "Albanian": "sq Albanian",
    "Armenian": "hy Armenian",
    "Iranian": "fa Persian, ku Kurdish, ps Pashto",
    "Indo-Aryan": "as Assamese, bn Bangla, gu Gujarati, hi Hindi, mr Marathi, ne Nepali, or Odia, pa Punjabi, "
    "sa Sanskrit, sd Sindhi, si Sinhala, ur Urdu",
    "Uralic": "et Estonian, fi Finnish, hu Hungarian",
    "Basque": "eu Basque",
    "Kartvelian": "ka Georgian",
    "Turkic": "az Azerbaijani, kk Kazakh, ky Kyrgyz, tr Turkish, ug Uyghur, uz Uzbek",
    "Mongolic": "mn Mongolian",
    "Semitic": "am Amharic, ar Arabic, he Hebrew",
    "Berber": "kab Kabyle",
    "Cushitic": "om Oromo, so Somali",
    "Chadic": "ha Hausa",
    "Niger-Congo": "ak Akan, ff Fula, nso Northern Sotho, sw Swahili, xh Xhosa, zu Zulu",
    "Nilotic": "ach Acholi",
    "Songhay": "son Songhay",
    "Dravidian": "kn Kannada, ml Malayalam, ta Tamil, te Telugu",
    "Sino-Tibetan": "my Burmese, zh Chinese",
    "Japonic": "ja Japanese",
    "Koreanic": "ko Korean",
    "Tai": "lo Lao, th Thai",
    "Austroasiatic": "km Khmer, vi Vietnamese",
    "Austronesian": "fil Filipino, id Indonesian, jv Javanese, mg Malagasy, mi Māori, ms Malay, su Sundanese, "
    "tl Tagalog",
    "Quechuan": "quz Cusco Quechua",
    "Inuit": "iu Inuktitut",
    "Salishan": "shs Shuswap",
    "Constructed": "eo Esperanto",
}
_LATIN = "Latin"
_SCRIPTS = {
    _LATIN: "latin latn",  # And of all known languages that have no other.
    "Greek": "el grek",
    "Cyrillic": "be bg kk ky mk mn ru sr uk cyrillic cyrl",
    "Armenian": "hy",
    "Georgian": "ka",
    "Hebrew": "he yi",
    "Arabic": "ar fa ps sd ug ur arabic arab",
    "Ethiopic": "am",
    "Devanagari": "hi mr ne sa deva",
    "Bengali": "as bn",
    "Gurmukhi": "pa",
    "Gujarati": "gu",
    "Odia": "or",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Thai": "th",
    "Lao": "lo",
    "Burmese": "my",
    "Khmer": "km",
    "Han": "zh hans hant",
    "Japanese": "ja",
    "Hangul": "ko",
    "Inuit syllabics": "iu",
}
OTHER = "other"
"""The script and the family of a language that is not known."""

_NAMES = {
    code: (name, family)
    for family, listed in _FAMILIES.items()
    for code, _, name in (each.partition(" ") for each in listed.split(", "))
}
_SCRIPT_OF = {code: script for script, codes in _SCRIPTS.items() for code in codes.split()}


class Language(NamedTuple):
    """A language as it is shown and ordered."""

    code: str
    """As in the data, such as `pt_BR`."""
    name: str
    """With what follows the language in the code, such as "Portuguese (BR)". The code itself if it is not known."""
    script: str
    family: str

    @property
    def order(self) -> tuple[int, int, str]:
        """Sorts by script and family in the order of this module, and by name."""
        scripts, families = [*_SCRIPTS, OTHER], [*_FAMILIES, OTHER]
        return scripts.index(self.script), families.index(self.family), self.name


def language(code: str) -> Language:
    """Describes the language of a code such as `de`, `pt_BR`, `zh-Hant` or `sr@latin`; letters may have any case."""
    first, *more = re.split("[-_@]", code)
    name, family = _NAMES.get(first.lower(), (code, OTHER))
    if family == OTHER:
        return Language(code, code, OTHER, OTHER)
    scripts = (_SCRIPT_OF[part.lower()] for part in more if len(part) > 2 and part.lower() in _SCRIPT_OF)
    return Language(
        code,
        f"{name} ({', '.join(more)})" if more else name,
        next(scripts, _SCRIPT_OF.get(first.lower(), _LATIN)),
        family,
    )
