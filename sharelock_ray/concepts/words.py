"""Texts as words that can be compared, in any script.

Case, compatibility variants (NFKC) and accents do not count: a caption may drop the accent of a loan word, and a leak
costs more than a false alarm. So "Piñata", "PIÑATA" and "pinata" are one word, and so are the German "Bär" and "bar".
Vowel points, letter extenders and hamzas do not count in Arabic, nor stress marks in Russian; marks that make another
letter do count (Russian "й", Japanese "が", vowels of Hindi and Thai).
"""

import re
import unicodedata
from functools import cache

APOSTROPHE, HYPHEN = "'", "‐"
"""Tokens of an apostrophe, and of a hyphen within a word."""

_SAME = {
    **dict.fromkeys("’‘ʼʹ′`´＇ʻ", APOSTROPHE),
    **dict.fromkeys("‑‒–－", "-"),
    # Japanese writes foreign words with or without a dot between them.
    **dict.fromkeys("・･", "-"),
    # Invisible: soft hyphen, joiners, direction, and the extender of Arabic.
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u0640"),
    **dict(zip("øØłŁđĐıħĦ", "oollddihh", strict=True)),
    **dict.fromkeys("æÆ", "ae"),
    **dict.fromkeys("œŒ", "oe"),
    # Persian letters that look as the Arabic ones.
    **dict(zip("یک", "يك", strict=True)),
}
_SAME_LETTERS = str.maketrans(_SAME)
# Accents of Latin and Greek; stress marks; the dots of ё; points of Hebrew and Arabic.
_ACCENTS = re.compile("(?<=[a-zα-ω])[\u0300-\u036f]+|[\u0300\u0301]|(?<=е)\u0308|[\u0591-\u05c7\u064b-\u0655\u0670]")
# "St." is no end of a sentence.
_ABBREVIATION = re.compile(r"\b([^\W\d_]{1,2})\.")
_WITHIN = re.compile(r"(?<=[^\s-])-(?=[^\s-])")

_KATAKANA = "ァ-ヺー"
_SPACELESS = (
    "々〇\u3041-\u309f"
    + _KATAKANA
    + "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    + "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ece\u1000-\u103f\u1050-\u109f\u1780-\u17d3"  # Thai, Lao, Burmese, Khmer
)


def fold(text: str) -> str:
    """A text without what does not count in comparisons."""
    if text.isascii():
        return text.lower()
    letters = unicodedata.normalize("NFKD", text.translate(_SAME_LETTERS)).casefold()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", letters))


def tokens(text: str) -> list[str]:
    """The folded words of a text, with a token for each punctuation mark.

    A character is a word in scripts without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer). Underscores are
    spaces.
    """
    folded = _ABBREVIATION.sub(r"\1 ", _WITHIN.sub(HYPHEN, fold(text).replace("&", " and ")))
    return _pattern().findall(folded)


def is_katakana(token: str) -> bool:
    return re.fullmatch(f"[{_KATAKANA}]", token) is not None


@cache
def _pattern() -> re.Pattern[str]:
    # Python's `\w` has no marks, without which words of Hindi would fall apart.
    marks = "".join(chr(code) for code in range(0x300, 0xFE30) if unicodedata.category(chr(code)).startswith("M"))
    letter = rf"[^\W_{_SPACELESS}]"
    return re.compile(rf"[{_SPACELESS}][{marks}]*|{letter}(?:{letter}|[{marks}])*|[^\w\s]")
