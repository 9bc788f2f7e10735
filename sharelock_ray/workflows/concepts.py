"""`concepts`: seen and unseen concepts without leakage, the audit of given ones, thresholds, and their pages."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from sharelock_ray import storage
from sharelock_ray.concepts.audit import ConceptAudit, Finder
from sharelock_ray.concepts.audit import audit as audit_concepts
from sharelock_ray.concepts.captions import (
    Captions,
    CaptionSearch,
    FoundCaptions,
    removed_rows,
    rows_sha256,
    write_removed,
)
from sharelock_ray.concepts.compared import (
    AUTO,
    NAME,
    POSITIVE,
    QUANTILE,
    SimilarityThreshold,
    Threshold,
    Twins,
    read_threshold,
)
from sharelock_ray.concepts.concept import ENGLISH, Concept, read_names, with_names
from sharelock_ray.concepts.corpus import Corpus, open_corpus
from sharelock_ray.concepts.relations import Rules, Side
from sharelock_ray.concepts.residual import Distance
from sharelock_ray.concepts.split import ConceptSplit, draw
from sharelock_ray.concepts.split import split as split_concepts
from sharelock_ray.concepts.standard import read_source
from sharelock_ray.concepts.wordnet import WordNet, open_wordnet
from sharelock_ray.documents import Document, read_document
from sharelock_ray.encoders.presets import PRESETS
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.samples import read_samples
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.manifest import is_complete
from sharelock_ray.progress import Progress
from sharelock_ray.recipe.load import read_recipe

if TYPE_CHECKING:
    from sharelock_ray.concepts.similarity import Names, NameSimilarity
    from sharelock_ray.concepts.twins import Pictures, PrototypeSimilarity


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
        return with_names(found, self.table) if self.names else found

    @cached_property
    def table(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Names in other languages, by concept and language."""
        return read_names(self.names) if self.names else {}


@dataclass(frozen=True)
class CaptionCorpus:
    """Captions of training.

    Args:
        place: see `sharelock_ray.concepts.corpus`.
        through_ray: whether parts are searched on all nodes of a cluster.
    """

    place: str
    through_ray: bool = False

    def search(
        self, unseen: Sequence[Concept], wordnet: WordNet, rules: Rules, inputs: Inputs
    ) -> tuple[Captions, pa.Table]:
        """The captions that name these concepts or related ones, and what to remove.

        Raises:
            RequestError: there is no such corpus, or it has no captions.
        """
        corpus = open_corpus(self.place)
        search = CaptionSearch(unseen, wordnet, rules, inputs.table)
        return search.summary(corpus.place, self._found(corpus, search))

    def _found(self, corpus: Corpus, search: CaptionSearch) -> Iterator[FoundCaptions]:
        found: Iterator[FoundCaptions] = map(search, corpus.parts)
        if self.through_ray:
            from sharelock_ray.engine.tasks import streamed

            found = streamed("search of captions", search, corpus.parts)
        with Progress("search of captions", "captions", corpus.captions) as progress:
            for done, part in enumerate(found, 1):
                progress.update(part.captions, share=0 if corpus.captions else done / len(corpus.parts))
                yield part


@dataclass(frozen=True)
class Evidence:
    """What is compared beside names and WordNet: embeddings of names, and images.

    Args:
        similarity: document of a threshold for similar names.
        name_features: language set of the names; None embeds them anew, with the threshold's encoder.
        seen_images: vision set of the seen concepts, whose labels are positions in their list.
        unseen_images: of the unseen ones; None is the set of the seen ones, if one list is split.
        image_classes: the list of concepts by label, of both sets, if it is not the list of the side.
        duplicates: least cosine of near duplicates; None is by rule.
        quantile: of the similarity of the halves of a class, from which classes are twins.
        pretraining: lists of classes on which the vision encoder was trained; `auto` is by the model's name.
    """

    similarity: str | None = None
    name_features: str | None = None
    seen_images: str | None = None
    unseen_images: str | None = None
    image_classes: str | None = None
    duplicates: float | None = None
    quantile: float = QUANTILE
    pretraining: str | None = None


@dataclass
class _Evidence:
    """The sources of evidence about the concepts of one side, against the other."""

    finders: list[Finder] = field(default_factory=list)
    names: "NameSimilarity | None" = None
    prototypes: "PrototypeSimilarity | None" = None
    pictures: "dict[Side, Pictures]" = field(default_factory=dict)
    pretraining: tuple[str, ...] = ()

    @property
    def threshold(self) -> Threshold | None:
        return self.names.rule if self.names else None

    def twins(self, sides: dict[Side, Sequence[Concept]], asked: Side, threshold: float | None) -> Twins | None:
        """What the images of the concepts of both sides say; near duplicates are those of the side that is asked."""
        duplicates = None
        if self.pictures:
            from sharelock_ray.concepts.twins import duplicate_images

            kept: Side = "seen" if asked == "unseen" else "unseen"
            rows = {side: self.pictures[side].rows(sides[side]) for side in sides}
            duplicates = duplicate_images(
                self.pictures[asked], rows[asked], self.pictures[kept], rows[kept], asked, threshold
            )
        prototypes = self.prototypes.found if self.prototypes else None
        if duplicates is None and not self.pretraining:
            return None
        return Twins(duplicates=duplicates, prototypes=prototypes, pretraining=self.pretraining)


def make_threshold(
    pairs: str,
    encoder: str,
    template: str = NAME,
    positive: float = POSITIVE,
    precision: float | None = None,
    output: str | None = None,
) -> SimilarityThreshold:
    """Chooses the cosine from which names are similar, for an encoder.

    Args:
        pairs: file of labelled pairs.
        encoder: a preset, a recipe, or a language set with all words of the pairs.
        output: the file to write, `.json`; None writes nothing.

    Raises:
        RequestError: there is no such encoder, or as `choose_threshold`.
    """
    # Other commands start faster without torch.
    from sharelock_ray.concepts.similarity import choose_threshold, names_of_encoder, names_of_features

    if is_complete(encoder):
        features = open_features(encoder)
        names, spec = names_of_features(features), dict(features.manifest.encoder)
    else:
        of = _language_spec(encoder).resolved()
        names, spec = names_of_encoder(of), of.model_dump(mode="json")
    made = SimilarityThreshold(chosen=choose_threshold(pairs, names, template, positive, precision), spec=spec)
    _write(made, output)
    return made


def make_split(
    seen: str,
    unseen: str | None,
    rules: Rules,
    inputs: Inputs,
    fraction: float = 0.2,
    seed: int = 0,
    remove: Side = "unseen",
    output: str | None = None,
    evidence: Evidence = Evidence(),
    captions: CaptionCorpus | None = None,
) -> ConceptSplit:
    """Makes a split of two lists, or of one of which a fraction is drawn as unseen.

    Args:
        evidence: more than names and WordNet.
        captions: of training: those that name an unseen concept are removed, whichever side loses concepts. Without a
            second list, a fraction of 1 makes the list the unseen side.
        output: the file to write, `.json`; None writes nothing. The table of removed images and captions is beside it.

    Raises:
        RequestError: a list, a table, a corpus or WordNet cannot be read; or too few concepts are left.
    """
    wordnet = open_wordnet(inputs.wordnet)
    concepts = inputs.read(seen, "seen", wordnet)
    lists: dict[Side, Sequence[Concept]]
    if unseen is None:
        lists = dict(zip(("seen", "unseen"), draw(concepts, fraction, seed), strict=True))
    else:
        lists = {"seen": concepts, "unseen": inputs.read(unseen, "unseen", wordnet)}
    found = _evidence(evidence, lists, concepts if unseen is None else None, remove, wordnet, rules)
    has_corpus = captions is not None
    made = split_concepts(lists["seen"], lists["unseen"], wordnet, rules, remove, found.finders, has_corpus)
    left: dict[Side, Sequence[Concept]] = {"seen": made.seen, "unseen": made.unseen}
    drawn = {"fraction": fraction, "seed": seed} if unseen is None else {}
    twins = found.twins(left, remove, evidence.duplicates)
    made = made.model_copy(update={**drawn, "similarity": found.threshold, "twins": twins})
    if captions is not None:
        named, table = captions.search(made.unseen, wordnet, rules, inputs)
        table = removed_rows(table, made.removed_images if remove == "seen" else ())
        digest = rows_sha256(table)
        named = named.model_copy(update={"removed": f"removed-{digest[:8]}.parquet", "removed_sha256": digest})
        made = made.model_copy(update={"captions": named})
        if output is not None:
            write_removed(beside(output, named), table)
    _write(made, output)
    return made


def beside(output: str, captions: Captions) -> str:
    """Where the table of what is removed is, beside a split."""
    return storage.join(storage.absolute(output).rpartition("/")[0], captions.removed or "")


def audit(
    seen: str | None,
    unseen: str,
    rules: Rules,
    inputs: Inputs,
    accuracy: str | None = None,
    output: str | None = None,
    evidence: Evidence = Evidence(),
    distance: Distance = "steps",
    chance: float = 0.0,
    captions: CaptionCorpus | None = None,
) -> ConceptAudit:
    """Audits the concepts of one list against those of another, or against captions.

    Args:
        seen: None if the training has captions only.
        captions: of training.
        accuracy: a model's accuracy by unseen class, as a JSON object: `<file>#<place>`, where `place` is keys and
            indices separated by `/` (`evaluation.json#records/0/result/per_class`). Or the samples of an evaluation,
            `<file>.parquet`, whose labels are positions in the second list; `#<candidate set>` chooses one of several.
        evidence: more than names and WordNet.
        distance: by which accuracies are ordered: steps in WordNet, or 1 - similarity of names or prototypes.
        chance: accuracy of a random answer.
        output: the file to write, `.json`; None writes nothing.

    Raises:
        RequestError: a list, a table, WordNet or the accuracies cannot be read.
    """
    wordnet = open_wordnet(inputs.wordnet)
    images: dict[str, int] | None = None
    of_class: dict[str, float] | None = None
    if accuracy is not None and ".parquet" not in accuracy:
        of_class = _accuracy(accuracy)
    sides: dict[Side, Sequence[Concept]] = {
        "seen": [] if seen is None else inputs.read(seen, "seen", wordnet),
        "unseen": inputs.read(unseen, "unseen", wordnet),
    }
    if accuracy is not None and of_class is None:
        of_class, images = _sampled(accuracy, sides["unseen"])
    more = _evidence(evidence, sides, None, "unseen", wordnet, rules)
    by_names, by_prototypes = more.names, more.prototypes

    def distance_of(concept: Concept) -> float | None:
        if distance == "names":
            return 1 - by_names.nearest(concept)[1] if by_names else None
        nearest = by_prototypes.nearest(concept) if by_prototypes else None
        return 1 - nearest[1] if nearest else None

    if (distance == "names" and not by_names) or (distance == "prototypes" and not by_prototypes):
        needed = "--similarity" if distance == "names" else "--seen-images and --unseen-images"
        raise RequestError(f"distances by {distance} need {needed}")
    named = captions.search(sides["unseen"], wordnet, rules, inputs)[0] if captions is not None else None
    found = audit_concepts(
        sides["seen"],
        sides["unseen"],
        wordnet,
        rules,
        [*more.finders, *([named] if named else [])],
        of_class,
        images,
        chance,
        distance,
        None if distance == "steps" else distance_of,
    )
    twins = more.twins(sides, "unseen", evidence.duplicates)
    found = found.model_copy(update={"similarity": more.threshold, "twins": twins, "captions": named})
    _write(found, output)
    return found


def _evidence(
    given: Evidence,
    sides: dict[Side, Sequence[Concept]],
    one_list: Sequence[Concept] | None,
    asked: Side,
    wordnet: WordNet,
    rules: Rules,
) -> _Evidence:
    """Opens what is given.

    Args:
        one_list: of which both sides are parts.
        asked: the side about whose concepts evidence is asked.
    """
    found = _Evidence()
    if given == Evidence():
        return found
    # Other commands start faster without torch.
    from sharelock_ray.concepts.similarity import NameSimilarity
    from sharelock_ray.concepts.twins import Pictures, Pretraining, PrototypeSimilarity, pretraining_of

    kept: Side = "seen" if asked == "unseen" else "unseen"
    if given.similarity is not None:
        threshold = read_threshold(given.similarity)
        names = _names(threshold, given.name_features, given.similarity)
        found.names = NameSimilarity(sides[kept], sides[asked], names, threshold.chosen, kept)
        found.finders.append(found.names)
    images: dict[Side, str | None] = {"seen": given.seen_images, "unseen": given.unseen_images}
    if one_list is not None and given.unseen_images is None:
        images["unseen"] = given.seen_images
    if any(images.values()):
        for side, uri in images.items():
            if uri is None:
                raise RequestError(f"twins need images of both sides: add --{side}-images")
            listed = one_list or sides[side]
            if given.image_classes is not None:
                listed = read_source(given.image_classes, wordnet)
            found.pictures[side] = Pictures(open_features(uri), tuple(listed))
        seen, unseen = found.pictures["seen"], found.pictures["unseen"]
        labelled = [each for each in (seen, unseen) if each.has_labels]
        if seen.features.uri == unseen.features.uri and not labelled:
            raise RequestError(f"{seen.features.uri} has no labels, by which its images are seen or unseen")
        if len(labelled) == len(sides):
            found.prototypes = PrototypeSimilarity(
                found.pictures[asked], sides[asked], found.pictures[kept], sides[kept], kept, given.quantile
            )
            found.finders.append(found.prototypes)
    if given.pretraining is not None:
        if given.pretraining == AUTO and not found.pictures:
            raise RequestError(
                "--pretraining auto is by the model of --seen-images: add them, or name lists of classes"
            )
        model = found.pictures["seen"].model if found.pictures else ""
        found.pretraining = tuple(pretraining_of(given.pretraining, model))
        encoder = found.pictures["seen"].encoder if found.pictures else "the vision encoder"
        found.finders.append(Pretraining(found.pretraining, encoder, wordnet, rules))
    return found


def _names(threshold: SimilarityThreshold, features: str | None, place: str) -> "Names":
    from sharelock_ray.concepts.similarity import names_of_encoder, names_of_features

    if features is not None:
        return names_of_features(open_features(features))
    spec = LanguageSpec.model_validate(threshold.spec)
    if spec.trust_remote_code:
        raise RequestError(f"the encoder of {place} runs code of its own: embed the names, and add --name-features SET")
    return names_of_encoder(spec)


def _language_spec(encoder: str) -> LanguageSpec:
    if encoder.endswith((".yaml", ".yml")):
        return read_recipe(encoder).language
    if PRESETS.get(encoder, {}).get("modality") != "language":
        raise RequestError(
            f"{encoder} is no language encoder: give a preset (docs/encoders.md lists them), a recipe, or a language "
            f"set"
        )
    return LanguageSpec.model_validate({"preset": encoder})


def report(document: str) -> str:
    """Writes the page of a split, an audit or a threshold beside it.

    Returns:
        the page's path.

    Raises:
        RequestError: there is no such document, or it is of another kind.
        RunError: it is damaged.
    """
    from sharelock_ray.report.concepts_page import audit_page, split_page, threshold_page

    place = storage.absolute(document)
    remedy = "make it again with `sharelock concepts`"
    with storage.reading(place, "split or audit of concepts"):
        content = storage.read_json(place)
        if isinstance(content, dict) and "chosen" in content:
            written = threshold_page(read_document(SimilarityThreshold, place, remedy))
        elif isinstance(content, dict) and "removed_from" in content:
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


def _sampled(source: str, concepts: Sequence[Concept]) -> tuple[dict[str, float], dict[str, int]]:
    """Accuracy and number of images by concept, from the samples of an evaluation."""
    file, _, chosen = source.partition("#")
    with storage.reading(file, "samples of an evaluation"):
        table, _ = read_samples(file)
    if not {"label", "rank"} <= set(table.column_names):
        raise RequestError(f"{file} has no samples of a classification: it has {', '.join(table.column_names)}")
    if "candidate_set" in table.column_names:
        sets = [each for each in table["candidate_set"].unique().to_pylist() if each not in (None, "captions")]
        if not chosen and len(sets) > 1:
            raise RequestError(f"{file} has several sets of candidates: add one, as in {file}#{sets[0]}")
        if (chosen and chosen not in sets) or not sets:
            raise RequestError(f"{file} has no set of candidates {chosen!r}: use one of {', '.join(sets)}")
        table = table.filter(pc.equal(table["candidate_set"], chosen or sets[0]))
    table = table.filter(pc.is_valid(table["label"]))
    labels, ranks = table["label"].to_pylist(), table["rank"].to_pylist()
    bad = next((each for each in labels if not isinstance(each, int) or not 0 <= each < len(concepts)), None)
    if bad is not None:
        raise RequestError(
            f"{file} has the label {bad}, but there are {len(concepts):,} unseen concepts: give them in the order of "
            f"the labels"
        )
    total = Counter(labels)
    right = Counter(label for label, rank in zip(labels, ranks, strict=True) if rank == 0)
    names = {label: str(concepts[label]) for label in sorted(total)}
    return {name: right[label] / total[label] for label, name in names.items()}, {
        name: total[label] for label, name in names.items()
    }
