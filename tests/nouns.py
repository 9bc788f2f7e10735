"""A tiny WordNet in the format of the real one, in which every fact can be seen at a glance."""

from dataclasses import dataclass
from pathlib import Path

LICENCE = "  1 This software and database is being provided to you under the licence WordNet 3.0 Copyright 2006  \n"


@dataclass(frozen=True)
class Noun:
    """A synset: its words, separated by commas, and the names of other synsets."""

    words: str
    up: tuple[str, ...] = ()
    instance_of: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


NOUNS = {
    "animal": Noun("animal,beast"),
    "dog": Noun("dog,domestic_dog", ("animal",), parts=("flag",)),
    "puppy": Noun("puppy", ("dog",)),
    "terrier": Noun("terrier", ("dog",)),
    "airedale": Noun("Airedale,Airedale_terrier", ("terrier",)),
    "laika": Noun("Laika", instance_of=("dog",)),
    "flag": Noun("flag,tail"),
    "banner": Noun("flag,banner"),
    "bird": Noun("bird", ("animal",)),
    "crane": Noun("crane", ("bird",)),
    "machine": Noun("machine"),
    "lifting crane": Noun("crane", ("machine",)),
    "goose": Noun("goose", ("bird",)),
    "cat": Noun("cat", ("animal",)),
    "sea dog": Noun("sea_dog,sailor"),
}
"""The bird is the first meaning of "crane"."""


def write_wordnet(folder: Path, nouns: dict[str, Noun] = NOUNS) -> dict[str, str]:
    """Writes `data.noun`, `index.noun`, `noun.exc` and `verb.exc`.

    Returns:
        the wnid of each noun.
    """
    folder.mkdir(parents=True, exist_ok=True)
    at = len(LICENCE)
    offsets = {}
    blank = dict.fromkeys(nouns, "0" * 8)
    for name in nouns:
        offsets[name] = f"{at:08d}"
        at += len(_line(name, nouns, blank))
    (folder / "data.noun").write_text(LICENCE + "".join(_line(name, nouns, offsets) for name in nouns))
    senses: dict[str, list[str]] = {}
    for name, noun in nouns.items():
        for word in noun.words.split(","):
            senses.setdefault(word.lower(), []).append(offsets[name])
    lines = [f"{word} n {len(of)} 0 {len(of)} 0 {' '.join(of)}  \n" for word, of in sorted(senses.items())]
    (folder / "index.noun").write_text(LICENCE + "".join(lines))
    (folder / "noun.exc").write_text("geese goose\nsea_wolves sea_wolf\n")
    (folder / "verb.exc").write_text("ran run\n")
    return {name: f"n{offset}" for name, offset in offsets.items()}


def _line(name: str, nouns: dict[str, Noun], offsets: dict[str, str]) -> str:
    noun = nouns[name]
    pointers = [
        *(("@", other) for other in noun.up),
        *(("@i", other) for other in noun.instance_of),
        *(("~", other) for other, of in nouns.items() if name in of.up),
        *(("~i", other) for other, of in nouns.items() if name in of.instance_of),
        *(("%p", other) for other in noun.parts),
        *(("#p", other) for other, of in nouns.items() if name in of.parts),
    ]
    words = noun.words.split(",")
    # The real files have pointers to verbs too.
    targets = [*(f"{symbol} {offsets[other]} n 0000" for symbol, other in pointers), "+ 00000001 v 0101"]
    of_words = [f"{len(words):02x}", *(f"{word} 0" for word in words)]
    return f"{' '.join([offsets[name], '05', 'n', *of_words, f'{len(targets):03d}', *targets])} | what {name} is  \n"
