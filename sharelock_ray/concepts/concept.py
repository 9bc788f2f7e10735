"""A concept: a class name, one meaning in WordNet, or both; and how a list of them is read."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.concepts.wordnet import WNID, WordNet, plain
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.names import read_list

ENGLISH = "en"
NAME_COLUMNS = ("concept", "language", "name")
"""Columns of a table of names, all of strings; `concept` is a wnid or a name."""
# The number of a class in front of its name: "001.Black_footed_Albatross", "6<tab>persian+cat".
_NUMBER = re.compile(r"\d+[.\t]\s*(?=\D)")
_SHOWN = 3


class Concept(Config):
    """A class of a training or of a test.

    Args:
        name: as the data have it.
        wnid: its one meaning; None means what the name means.
        language: of `name`.
        names: more names by language, such as translations.
    """

    name: str
    wnid: str | None = None
    language: str = ENGLISH
    names: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def __str__(self) -> str:
        return self.name if self.wnid in (None, self.name) else f"{self.name} ({self.wnid})"

    @property
    def words(self) -> str:
        """The name as words: "001.Black_footed_Albatross" is "Black footed Albatross"."""
        return " ".join(re.sub(r"[_+]", " ", _NUMBER.sub("", self.name, count=1)).split())

    def all_names(self) -> dict[str, tuple[str, ...]]:
        """Its names by language, its own first."""
        own = () if WNID.fullmatch(self.name) else (self.words,)
        languages = dict.fromkeys((self.language, *self.names))
        return {of: (*(own if of == self.language else ()), *self.names.get(of, ())) for of in languages}


def read_concepts(source: str, wordnet: WordNet, language: str = ENGLISH) -> list[Concept]:
    """Reads a list of concepts.

    Args:
        source: a list in a file, as in `sharelock_ray.evaluation.names` (`timm://imagenet-1k`, `classes.txt`,
            `classes.json#names`). An entry is a name, a wnid, or a wnid and names, of which the first counts:
            "n02119789 kit fox, Vulpes macrotis".
        language: of the names.

    Raises:
        RequestError: there is no such list; it is empty or has an entry twice; a wnid is unknown.
    """
    return concepts_of(read_list(source, "concepts"), source, wordnet, language)


def concepts_of(entries: Sequence[object], place: str, wordnet: WordNet, language: str = ENGLISH) -> list[Concept]:
    """Concepts of the entries of a list; raises as `read_concepts`.

    Args:
        place: where they are from, for errors.
    """
    found = [_concept(entry, f"{place}, entry {row:,}", wordnet, language) for row, entry in enumerate(entries, 1)]
    if not found:
        raise RequestError(f"{place} has no concepts: give at least one")
    twice = [name for name, count in Counter(each.wnid or plain(each.words) for each in found).items() if count > 1]
    if twice:
        shown = ", ".join(twice[:_SHOWN]) + (", …" if len(twice) > _SHOWN else "")
        raise RequestError(f"{place} has concepts more than once ({shown}): give each once, or with its wnid")
    return found


def _concept(entry: object, place: str, wordnet: WordNet, language: str) -> Concept:
    if isinstance(entry, list | tuple) and all(isinstance(each, str) for each in entry):
        entry = " ".join(entry)
    if not isinstance(entry, str) or not entry.strip():
        raise RequestError(f"{place}: {entry!r} is no name and no wnid")
    first, _, rest = entry.strip().partition(" ") if " " in entry.strip() else entry.strip().partition("\t")
    if not WNID.fullmatch(first):
        return Concept(name=entry.strip(), language=language)
    known(first, wordnet, place)
    return Concept(name=rest.split(",")[0].strip() or wordnet[first].lemmas[0], wnid=first, language=language)


def known(wnid: str, wordnet: WordNet, place: str) -> None:
    """Raises:
    RequestError: WordNet has no such synset.
    """
    if wnid not in wordnet:
        near = difflib.get_close_matches(wnid, wordnet.synsets, n=1, cutoff=0)
        raise RequestError(f"{place}: WordNet has no noun {wnid}; the nearest is {wordnet[near[0]]}")


def read_names(uri: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Reads names in several languages, by concept and language.

    Args:
        uri: a `.csv` or Parquet file with the columns `concept`, `language` and `name`.

    Raises:
        RequestError: the file is missing, or is not such a table.
    """
    try:
        with storage.reading(uri, "table of names"):
            data = pa.BufferReader(storage.read_bytes(uri))
        if uri.endswith(".csv"):
            types = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(NAME_COLUMNS, pa.string()))
            table = pyarrow.csv.read_csv(data, convert_options=types)
        else:
            table = pq.read_table(data)
        rows = zip(*(table[name].cast(pa.string()).to_pylist() for name in NAME_COLUMNS), strict=True)
    except (pa.ArrowException, KeyError) as error:
        raise RequestError(
            f"{uri} is no .csv or Parquet table with the columns {', '.join(NAME_COLUMNS)}: "
            f"{' '.join(str(error).split())}"
        ) from None
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for row, (concept, language, name) in enumerate(rows, 1):
        if not concept or not language or not name:
            raise RequestError(f"{uri}: row {row:,} needs a concept, a language and a name")
        of = found.setdefault(plain(concept), {})
        of[language] = tuple(dict.fromkeys((*of.get(language, ()), name)))
    return found


def with_names(concepts: Iterable[Concept], names: Mapping[str, Mapping[str, tuple[str, ...]]]) -> list[Concept]:
    """`concepts` with their names of a table that `read_names` read, by wnid or else by name."""
    found = []
    for concept in concepts:
        more = names.get(concept.wnid or "") or names.get(plain(concept.words)) or {}
        found.append(concept.model_copy(update={"names": {**concept.names, **more}}) if more else concept)
    return found
