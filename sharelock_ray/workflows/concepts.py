"""`concepts`: seen and unseen concepts without leakage, the audit of given ones, and their pages."""

from dataclasses import dataclass

from sharelock_ray import storage
from sharelock_ray.concepts.audit import ConceptAudit
from sharelock_ray.concepts.audit import audit as audit_concepts
from sharelock_ray.concepts.concept import ENGLISH, Concept, read_names, with_names
from sharelock_ray.concepts.relations import Rules, Side
from sharelock_ray.concepts.split import ConceptSplit, split_list
from sharelock_ray.concepts.split import split as split_concepts
from sharelock_ray.concepts.standard import read_source
from sharelock_ray.concepts.wordnet import WordNet, open_wordnet
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import RequestError


@dataclass(frozen=True)
class Inputs:
    """Where concepts are read from.

    Args:
        wordnet: folder of WordNet's database files; None is the system's, or Debian's package.
        names: a table of names in other languages.
        seen_language: of the names in the first list.
        unseen_language: of those in the second.
    """

    wordnet: str | None = None
    names: str | None = None
    seen_language: str = ENGLISH
    unseen_language: str = ENGLISH

    def read(self, source: str, side: Side, wordnet: WordNet) -> list[Concept]:
        """Reads the concepts of a side, with their names in other languages."""
        language = self.seen_language if side == "seen" else self.unseen_language
        found = read_source(source, wordnet, language)
        return found if self.names is None else with_names(found, read_names(self.names))


def make_split(
    seen: str,
    unseen: str | None,
    rules: Rules,
    inputs: Inputs,
    fraction: float = 0.2,
    seed: int = 0,
    remove: Side = "unseen",
    output: str | None = None,
) -> ConceptSplit:
    """Makes a split of two lists, or of one of which a fraction is drawn as unseen.

    Args:
        output: the file to write, `.json`; None writes nothing.

    Raises:
        RequestError: a list, a table or WordNet cannot be read; or too few concepts are left.
    """
    wordnet = open_wordnet(inputs.wordnet)
    concepts = inputs.read(seen, "seen", wordnet)
    if unseen is None:
        made = split_list(concepts, fraction, seed, wordnet, rules, remove)
    else:
        made = split_concepts(concepts, inputs.read(unseen, "unseen", wordnet), wordnet, rules, remove)
    _write(made, output)
    return made


def audit(
    seen: str,
    unseen: str,
    rules: Rules,
    inputs: Inputs,
    accuracy: str | None = None,
    output: str | None = None,
) -> ConceptAudit:
    """Audits the concepts of one list against those of another.

    Args:
        accuracy: a model's accuracy by unseen class, as a JSON object: `<file>#<place>`, where `place` is keys and
            indices separated by `/` (`evaluation.json#records/0/result/per_class`).
        output: the file to write, `.json`; None writes nothing.

    Raises:
        RequestError: a list, a table, WordNet or the accuracies cannot be read.
    """
    wordnet = open_wordnet(inputs.wordnet)
    of_class = None if accuracy is None else _accuracy(accuracy)
    sides = inputs.read(seen, "seen", wordnet), inputs.read(unseen, "unseen", wordnet)
    found = audit_concepts(*sides, wordnet, rules, accuracy=of_class)
    _write(found, output)
    return found


def report(document: str) -> str:
    """Writes the page of a split or an audit beside it.

    Returns:
        the page's path.

    Raises:
        RequestError: there is no such document, or it is of another kind.
        RunError: it is damaged.
    """
    from sharelock_ray.report.concepts_page import audit_page, split_page

    place = storage.absolute(document)
    remedy = "make it again with `sharelock concepts`"
    with storage.reading(place, "split or audit of concepts"):
        content = storage.read_json(place)
        if isinstance(content, dict) and "removed_from" in content:
            written = split_page(read_document(ConceptSplit, place, remedy))
        else:
            written = audit_page(read_document(ConceptAudit, place, remedy))
    page = f"{place.removesuffix('.json')}.html"
    storage.write_bytes(page, written.encode())
    return page


def _write(document: Document, output: str | None) -> None:
    if output is not None:
        if not output.endswith(".json"):
            raise RequestError(f"the output {output} must end in .json")
        storage.write_json(storage.absolute(output), document.content())


def _accuracy(source: str) -> dict[str, float]:
    file, _, place = source.partition("#")
    with storage.reading(file, "accuracies"):
        found = storage.read_json(file)
    try:
        for key in place.split("/") if place else ():
            found = found[int(key) if isinstance(found, list) else key]
        return {str(name): float(value) for name, value in found.items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise RequestError(f"{source} is no JSON object of accuracies by class: give <file>#<place>") from None
