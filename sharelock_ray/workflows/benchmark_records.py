"""Records of benchmarks, for `evaluate`: those that are missing are scored, and nothing else is."""

from collections.abc import Iterator, Sequence

from sharelock_ray import storage
from sharelock_ray.encoders.spec import EncoderSpec
from sharelock_ray.evaluation.benchmark_scoring import Gallery, Question
from sharelock_ray.evaluation.result import EvaluationRecord, scores
from sharelock_ray.evaluation.samples import samples_uri, write_samples
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows.evaluate import ScoredModel
from sharelock_ray.workflows.extract import opened
from sharelock_ray.workflows.inputs import Inputs, Split, refuse_other_inputs
from sharelock_ray.workflows.timing import timed


def new_records(
    recipe: Recipe, inputs: Inputs, model: ScoredModel, known: Sequence[EvaluationRecord]
) -> Iterator[EvaluationRecord]:
    """Scores each benchmark of the recipe in each language that `known` has no record of; writes its samples first.

    Raises:
        RequestError: there are no images of a benchmark, or they differ from those of its features.
    """
    wanted: list[tuple[Split, EncoderSpec]] = []
    for each in inputs.benchmarks:
        wanted += [(each.images, recipe.vision), *((texts, recipe.language) for texts in each.texts.values())]
    sets = iter(opened(inputs, wanted))
    done = [record.benchmark for record in known]
    for each in inputs.benchmarks:
        images = next(sets)
        questions = [
            Question(
                each.name,
                each.benchmark,
                language,
                each.spec.folder,
                each.spec.ties,
                recipe.evaluation.recall_at,
                model.digest,
                images,
                next(sets),
            )
            for language in each.texts
        ]
        left = [
            question for question in questions if question.request not in done or not _has_samples(recipe, question)
        ]
        if not left:
            continue
        refuse_other_inputs(each.images.source, [images])
        gallery = Gallery(images, model.heads)
        with timed(recipe, f"evaluate {each.name}"):
            for question in left:
                yield _answered(recipe, question, gallery)


def _answered(recipe: Recipe, question: Question, gallery: Gallery) -> EvaluationRecord:
    record, samples = question.answer(gallery)
    write_samples(_uri(recipe, question), samples, {"benchmark": question.request.model_dump_json()})
    main = scores(record)[0]
    say(
        f"evaluate {question.name} ({question.language}): {main.measure} {main.value.value:.1%} of "
        f"{record.result.images:,} images"
    )
    for note in record.notes:
        say(f"evaluate: {note}")
    return record


def _has_samples(recipe: Recipe, question: Question) -> bool:
    return storage.exists(_uri(recipe, question))


def _uri(recipe: Recipe, question: Question) -> str:
    return samples_uri(recipe.output, question.name, question.language)
