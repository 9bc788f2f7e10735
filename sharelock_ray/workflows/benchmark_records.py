"""Records of benchmarks, for `evaluate`: those that are missing are scored, and nothing else is."""

from collections.abc import Iterator, Sequence
from typing import Any

from sharelock_ray import storage
from sharelock_ray.encoders.spec import EncoderSpec
from sharelock_ray.evaluation.benchmark_scoring import FrozenQuestion, Gallery, ModelQuestion, Question
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
    """Scores each benchmark of the recipe in each language, and its frozen features in each task, that `known` has no
    record of; writes its samples first.

    Raises:
        RequestError: there are no images of a benchmark, or they differ from those of its features.
    """
    wanted: list[tuple[Split, EncoderSpec]] = []
    for each in inputs.benchmarks:
        wanted += [(images, recipe.vision) for images in (each.images, each.training) if images]
        wanted += [(texts, recipe.language) for texts in each.texts.values()]
    sets = iter(opened(inputs, wanted))
    done = [record.benchmark for record in known]
    for each in inputs.benchmarks:
        images, training = next(sets), next(sets) if each.training else None
        about: dict[str, Any] = {
            "name": each.name,
            "benchmark": each.benchmark,
            "folder": each.spec.folder,
            "ties": each.spec.ties,
            "images": images,
        }
        questions: list[Question] = [
            ModelQuestion(
                **about,
                language=language,
                recall_at=recipe.evaluation.recall_at,
                model=model.digest,
                texts=next(sets),
            )
            for language in each.texts
        ]
        if training:
            (language,) = each.benchmark.chosen(())
            questions += [
                FrozenQuestion(**about, language=language, task=task, training=training) for task in each.spec.frozen
            ]
        left = [
            question for question in questions if question.request not in done or not _has_samples(recipe, question)
        ]
        if not left:
            continue
        refuse_other_inputs(each.images.source, [images])
        if each.training and training:
            refuse_other_inputs(each.training.source, [training])
        gallery = Gallery(images, model.heads)
        with timed(recipe, f"evaluate {each.name}"):
            for question in left:
                yield _answered(recipe, question, gallery)


def _answered(recipe: Recipe, question: Question, gallery: Gallery) -> EvaluationRecord:
    record, samples = question.answer(gallery)
    write_samples(_uri(recipe, question), samples, {"benchmark": question.request.model_dump_json()})
    main = scores(record)[0]
    say(f"evaluate {question.request.title}: {main.measure} {main.value.value:.1%} of {record.result.images:,} images")
    for note in record.notes:
        say(f"evaluate: {note}")
    return record


def _has_samples(recipe: Recipe, question: Question) -> bool:
    return storage.exists(_uri(recipe, question))


def _uri(recipe: Recipe, question: Question) -> str:
    return samples_uri(recipe.output, question.name, question.request.part)
