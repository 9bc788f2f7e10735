"""`make study`: a worked study on real encoders and pictures, from features to a page of results (docs/study.md).

Each step is a command of `sharelock` too; finished steps are not repeated.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from sharelock_ray import storage
from sharelock_ray.concepts.audit import ConceptAudit
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.wordnet import WordNet, open_wordnet
from sharelock_ray.documents import read_document
from sharelock_ray.evaluation.samples import read_samples, samples_uri
from sharelock_ray.evaluation.statistics import proportion
from sharelock_ray.progress import say
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.report import affinity_text, matched_text
from sharelock_ray.report.affinity_page import scatter
from sharelock_ray.report.data_scale import data_scales, expected, scale_plot
from sharelock_ray.report.results_page import Plot, Section, write_results
from sharelock_ray.report.study_page import NAMES, verdict
from sharelock_ray.report.summary import interval_text
from sharelock_ray.study.affinity_study import Affinity
from sharelock_ray.study.effects import ranked
from sharelock_ray.study.matched import compare_matched
from sharelock_ray.study.trials import STUDY, Point, Study
from sharelock_ray.workflows import concepts
from sharelock_ray.workflows.affinity import affinity
from sharelock_ray.workflows.evaluate import evaluate
from sharelock_ray.workflows.extract import extract
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.language_score import language_score
from sharelock_ray.workflows.tune import tune

RECIPE = "study"
_GLOSSES = 200
"""One gloss of so many is read: 32 kB."""
_SEEN, _K = "recall at 1", 10
_DIRECTION = """{
  to_vision: {},
  to_language: {
    alignment.vision: {depth: 2, width: 1024, activation: relu, norm: batch, dropout: 0.2},
    alignment.language: {depth: 0}},
  both: {
    alignment.vision: {depth: 1, width: 1024, activation: relu, norm: batch, dropout: 0.2},
    alignment.language: {depth: 1, width: 1024, activation: relu, norm: batch, dropout: 0.2},
    alignment.dim: 384}}"""
_RULES = Rules(hyponyms=1)
"""Training captions list general words: with those of any depth, such as "animal", hardly a subject is unseen."""
_SIZES = "[345, 690, 1380, null]"


def worked_study(settings: Sequence[str] = ()) -> str:
    """Runs what is missing of the study, and writes its page.

    Args:
        settings: of the recipe, `field=value`.

    Returns:
        the page's URI.
    """
    recipe = read_recipe(RECIPE, settings)
    extract(recipe)
    glosses = _write_glosses(recipe)
    language_score(recipe, glosses)
    studies = {name: _study(of) for name, of in _recipes(recipe, settings).items()}
    folder = storage.join(recipe.output, "affinity")
    scores = [storage.join(recipe.output, "language_scores", "*.json")]
    found = affinity([recipe.output], "bits_per_byte", "causal", scores, _SEEN, output=folder)
    unseen = _audited(recipe)
    best = ranked(studies["language"].trials, studies["language"].objective[0])[0]
    sections = [
        _setup(recipe, studies["language"], found),
        _better(found),
        _matched(studies["language"]),
        _direction(studies["direction"]),
        _scale(studies["scale"]),
        _unseen(unseen, _ranks(recipe, settings, best)),
        _limits(found),
    ]
    summary = [f"{section.title} {section.text[0]}" for section in sections[1:-1]]
    page = write_results("Do better language models see better? A worked study", summary, sections, recipe.output)
    say(f"study: {page}")
    return page


def _recipes(recipe: Recipe, settings: Sequence[str]) -> dict[str, Recipe]:
    """The three studies, on one set of features."""

    def part(name: str, space: str) -> Recipe:
        return read_recipe(
            RECIPE,
            [
                *settings,
                f"output={storage.join(recipe.output, name)}",
                f"features_of={recipe.output}",
                "tuning.matched=[]",
                f"tuning.space={space}",
            ],
        )

    return {
        "language": recipe,
        "direction": part("direction", f"{{direction: {_DIRECTION}}}"),
        "scale": part("scale", f"{{alignment.training_pairs: {_SIZES}}}"),
    }


def _study(recipe: Recipe) -> Study:
    tune(recipe)
    return read_document(Study, storage.join(recipe.output, STUDY))


def _write_glosses(recipe: Recipe) -> str:
    """Writes some of WordNet's glosses, whose bits per byte are measured; returns the file."""
    path = storage.join(recipe.output, "glosses.txt")
    if not storage.exists(path):
        glosses = [synset.definition for synset in open_wordnet().synsets.values()][_GLOSSES - 1 :: _GLOSSES]
        storage.write_bytes(path, "".join(f"{gloss}\n" for gloss in glosses).encode())
    return path


def _audited(recipe: Recipe) -> ConceptAudit:
    """Audits the subjects of the test captions against the training captions."""
    uri, place = (storage.join(recipe.output, name) for name in ("concepts.json", "subjects.txt"))
    if storage.exists(uri):
        return read_document(ConceptAudit, uri)
    inputs = Inputs(recipe)
    texts = inputs.open("test", recipe.language).table["text"].to_pylist()
    wordnet = open_wordnet()
    subjects = dict.fromkeys(_subject(text, wordnet) for text in texts)
    storage.write_bytes(place, "".join(f"{subject}\n" for subject in subjects).encode())
    captions = concepts.CaptionCorpus(inputs.open("train", recipe.language).uri)
    return concepts.audit(None, place, _RULES, concepts.Inputs(), output=uri, captions=captions)


def _subject(caption: str, wordnet: WordNet) -> str:
    """What a caption such as "A brown hen, sitting." is of: "hen", its longest end that WordNet knows, or else all."""
    words = re.split(r"[(,.;:!?—]| - ", caption, maxsplit=1)[0].lower().split()
    ends = (" ".join(words[start:]) for start in range(len(words)))
    return next((end for end in ends if wordnet.senses(end)), " ".join(words))


def _ranks(recipe: Recipe, settings: Sequence[str], best: Point) -> tuple[list[str], np.ndarray]:
    """The subject of each test caption, and the rank of its picture by the best model."""
    folder = storage.join(recipe.output, "best")
    pair = f"alignment.pair=[{recipe.vision.name}, {best.point['language']}]"
    model = storage.join(best.runs[0], "best")
    changes = [f"output={folder}", f"features_of={recipe.output}", pair, f"evaluation.model={model}"]
    evaluate(read_recipe(RECIPE, [*settings, *changes]))
    samples, _ = read_samples(samples_uri(folder, recipe.data.dataset, "test"))
    found = samples.filter(pc.equal(samples["direction"], "text_to_image"))
    wordnet = open_wordnet()
    return [_subject(text, wordnet) for text in found["text"].to_pylist()], found["rank"].to_numpy()


def _setup(recipe: Recipe, study: Study, found: Affinity) -> Section:
    points = {point.encoder: point for point in found.points}
    rows = [("language encoder", "model", "layer", "pooling", "bits per byte", _SEEN, "zero-shot accuracy")]
    for point in ranked(study.trials, study.objective[0]):
        name = point.point["language"]
        reading = study.readings[name]
        measured = points.get(name)
        rows.append(
            (
                name,
                _short(reading.model),
                "last" if reading.layer is None else str(reading.layer),
                reading.pooling,
                "" if measured is None else f"{measured.language:.2f}",
                interval_text(point.values["recall_at_1"], "recall_at_1"),
                interval_text(point.values.get("zero_shot"), "zero_shot"),
            )
        )
    text = _paragraphs(
        f"""{recipe.vision.model} is aligned with each reading of three language models: the same {recipe.data.dataset},
        in the same order, with {len(study.seeds)} seeds. Intervals are 95 %. Recall at 1 is that among the validation
        pairs. Zero-shot accuracy is that of stamps, which have another style, among 14 classes.

        Bits per byte of WordNet's glosses are lower for better models. Layers before the last are read by an affine
        map to the states of the last one (docs/language-scores.md). MiniLM has no head that predicts words, so no
        score."""
    )
    return Section("Models and data", text, tuple(rows))


def _better(found: Affinity) -> Section:
    text = (affinity_text.verdict(found), f"Language score: {affinity_text.choice(found)}")
    rows = (("statistic", "value"), *affinity_text.rows(found))
    caption = "Each mark is a language encoder. Lines are 95 % intervals; the dark band is that of the fitted line."
    return Section("Do better language models see better?", text, rows, (Plot("affinity", scatter(found), caption),))


def _matched(study: Study) -> Section:
    found = compare_matched(study)
    rows = [("encoder", "decoder", "pooling", "difference")]
    rows += [(_short(one), _short(other), pooling, shown) for one, other, pooling, shown, _ in matched_text.rows(found)]
    choices = ", ".join(f"{each.encoder} of {_short(each.model)}" for each in found.choices)
    notes = [note for note in found.notes if "://" not in note]
    text = (
        f"By {NAMES[found.score]}: {matched_text.verdict(found)}",
        f"Chosen on validation pairs: {choices}.",
        *notes,
    )
    plot = Plot("matched", matched_text.plot(found, NAMES[found.score]), "Encoder minus decoder, by pooling.")
    return Section("Encoder or decoder?", text, tuple(rows), (plot,))


def _direction(study: Study) -> Section:
    points = ranked(study.trials, study.objective[0])
    rows = [("direction", _SEEN, "difference from the best", "zero-shot accuracy")]
    rows += [
        (
            str(point.point["direction"]).replace("_", " "),
            interval_text(point.values["recall_at_1"], "recall_at_1"),
            interval_text(point.difference, "recall_at_1", signed=True),
            interval_text(point.values.get("zero_shot"), "zero_shot"),
        )
        for point in points
    ]
    return Section("Which side is projected?", (verdict(points, study.objective),), tuple(rows))


def _scale(study: Study) -> Section:
    objective = study.objective[0]
    (scale,) = data_scales(study)
    points = ranked(study.trials, objective)
    text = expected(scale, objective) if scale.law else f"No power law fits: {scale.reason}."
    sizes = {str(point.point["alignment.training_pairs"] or "all"): point for point in points}
    rows = [("training pairs", _SEEN), *((n, interval_text(sizes[n].values[objective], objective)) for n in sizes)]
    plot = scale_plot([scale], [study.title], objective, NAMES[objective])
    return Section("More data?", (text,), tuple(rows), (Plot("scale", plot, "Trials, and the fitted power law."),))


def _unseen(audited: ConceptAudit, ranks: tuple[list[str], np.ndarray]) -> Section:
    captions = audited.captions
    assert captions is not None, "an audit of captions"
    subjects, found = ranks
    named = {each.concept for each in captions.concepts}
    related = np.array([subject in named for subject in subjects])
    rows = [("subject of the caption", "captions", f"recall at {_K}")]
    for name, of in (("named in training, or related", related), ("strictly unseen", ~related)):
        recall = proportion(found[of] < _K)
        interval = f"{recall.value:.1%} ({recall.low:.1%} to {recall.high:.1%})"
        rows.append((name, f"{int(of.sum()):,}", interval))
    rules = Counter(rule for each in captions.concepts for rule in each.by_rule)
    examples = [each.examples[0] for each in captions.concepts if each.examples][:: max(1, len(named) // 5)][:5]
    strict = len(audited.unseen) - len(named)
    text = _paragraphs(
        f"""Of {len(audited.unseen):,} subjects of the test captions, {len(named):,} are named by one of
        {captions.captions:,} training captions, or WordNet relates them to one, so {strict:,} are strictly unseen.
        Recall at {_K} from text to image is {rows[2][2]} for strictly unseen subjects, {rows[1][2]} for
        others.

        General words two steps or more above a subject, such as "animal", do not count: with them, few are unseen.
        Subjects by rule: {", ".join(f"{rule} {count:,}" for rule, count in rules.most_common())}.

        Examples: {"; ".join(each.evidence.detail for each in examples)}."""
    )
    return Section("How many concepts are strictly unseen?", text, tuple(rows))


def _limits(found: Affinity) -> Section:
    text = _paragraphs(
        f"""The {len(found.points)} language encoders with a score are depths of {found.families} models, so they are
        not independent. An interval over families would be the one to read, and two families give none.

        Depth changes size, training and reading together. That a deeper layer sees better does not show that a better
        language model does.

        The data are a few thousand pictures of clip art and emoji. Which reading is best was chosen in part on the
        same validation pairs (docs/pictures.md), and some test stamps have near duplicates in the training.

        MiniLM was trained to embed sentences, and the decoders were not: their difference is not of architecture."""
    )
    return Section("Limits", text)


def _short(model: str) -> str:
    """The end of a model's place."""
    return "/".join(model.split("/")[-2:])


def _paragraphs(text: str) -> tuple[str, ...]:
    return tuple(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


if __name__ == "__main__":
    worked_study()
