"""Signatures that are read from the records of an evaluation: multilingual collapse, near-random compositionality."""

from collections.abc import Collection, Mapping, Sequence

from sharelock_ray.evaluation.result import (
    CompositionalRecord,
    EvaluationRecord,
    RetrievalRecord,
    RetrievalResult,
    ZeroShotRecord,
)
from sharelock_ray.evaluation.signatures.evidence import (
    LanguageScore,
    MultilingualCollapse,
    RandomCompositionality,
    at_chance,
    percent,
    sentence,
)

OWN = ""
"""In place of a language: the split's own captions."""
_NAMED = 12
"""Number of languages that a statement lists."""


def of_records(records: Sequence[EvaluationRecord]) -> list[MultilingualCollapse | RandomCompositionality]:
    """The signatures of each data set and split that has the records for them."""
    by_split: dict[tuple[str | None, str], dict[str, RetrievalResult]] = {}
    top_1: dict[str, dict[str, LanguageScore]] = {}
    for record in records:
        if isinstance(record, RetrievalRecord):
            by_split.setdefault((record.dataset, record.split), {})[record.language or OWN] = record.result
        elif isinstance(record, ZeroShotRecord) and record.benchmark and record.benchmark.language:
            found = record.result
            score = LanguageScore(images=found.images, value=found.top_1, chance=found.chance)
            top_1.setdefault(record.benchmark.name, {})[record.benchmark.language] = score
    collapses = [
        multilingual_collapse(dataset, f"recall@{k} from text to image", recalls(results, k))
        for (dataset, _), results in by_split.items()
        if (k := largest_k(results.values())) is not None
    ]
    collapses += [multilingual_collapse(name, "zero-shot accuracy", scores) for name, scores in top_1.items()]
    choices = (record for record in records if isinstance(record, CompositionalRecord))
    return [*(found for found in collapses if found), *map(random_compositionality, choices)]


def largest_k(results: Collection[RetrievalResult]) -> int | None:
    """The largest k of which chance, k of the images, is at most a half in all results; None if there is none."""
    ks = set[int].intersection(*(set(found.text_to_image) for found in results))
    return max((k for k in ks if 2 * k <= min(found.images for found in results)), default=None)


def recalls(results: Mapping[str, RetrievalResult], k: int) -> dict[str, LanguageScore]:
    """Recall at k from text to image by language, of which chance is k of the images."""
    return {
        name: LanguageScore(images=found.images, value=found.text_to_image[k], chance=k / found.images)
        for name, found in results.items()
    }


def multilingual_collapse(
    dataset: str | None, measure: str, scores: Mapping[str, LanguageScore]
) -> MultilingualCollapse | None:
    """Compares languages with chance and with English.

    English must be significantly above chance. A language is near chance by `at_chance`; its reference is English's
    score, moved to its own chance, such as that of other images: as far from chance to 1.

    Args:
        scores: by language. English is `en`, or else `OWN`, the split's own captions, whose language is not known.

    Returns:
        None without English, or without another language.
    """
    english = next((name for name in scores if _is_english(name)), OWN)
    others = {name: found for name, found in scores.items() if name != OWN and not _is_english(name)}
    if english not in scores or not others:
        return None
    best = scores[english]
    skill = (best.value.value - best.chance) / (1 - best.chance)
    clear = best.value.low > best.chance

    def judged(found: LanguageScore) -> LanguageScore:
        reference = found.chance + skill * (1 - found.chance)
        return found.model_copy(update={"at_chance": clear and at_chance(found.value, found.chance, reference)})

    languages = {name: judged(found) for name, found in others.items()}
    lost = {name: found for name, found in languages.items() if found.at_chance}
    verdict = _collapse(lost, languages) if clear else "English itself is not above chance"
    own = " (the split's own captions)" if english == OWN else ""
    reference = f"English{own} {percent(best.value)} (chance {percent(best.chance)})"
    return MultilingualCollapse(
        present=bool(lost),
        statement=sentence(f"{verdict}: {measure} {_range(lost or languages)}, {reference}"),
        dataset=dataset,
        measure=measure,
        english=best,
        languages=languages,
    )


def random_compositionality(record: CompositionalRecord) -> RandomCompositionality:
    """Tells whether all scores of a record are near chance: see `at_chance`, with 1 as the reference."""
    found = record.result
    scores = {name: value for name in ("text", "image", "group") if (value := getattr(found.total, name)) is not None}
    chance = {name: getattr(found.chance, name) for name in scores}
    random = all(at_chance(score, chance[name], 1) for name, score in scores.items())
    values = ", ".join(f"{name} {percent(score)} (chance {percent(chance[name])})" for name, score in scores.items())
    verdict = "are no better than a guess" if random else "are not all near chance"
    return RandomCompositionality(
        present=random,
        statement=sentence(f"compositional choices of {found.total.samples:,} samples {verdict}: {values}"),
        dataset=record.dataset,
        samples=found.total.samples,
        scores=scores,
        chance=chance,
    )


def _collapse(lost: Collection[str], languages: Collection[str]) -> str:
    if not lost:
        return f"none of {len(languages)} languages is near chance"
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    named = ", ".join(list(lost)[:_NAMED])
    return f"{len(lost)} of {len(languages)} languages are near chance ({named}{more})"


def _range(scores: Mapping[str, LanguageScore]) -> str:
    """The lowest and the highest score, and the highest chance."""
    values = [found.value.value for found in scores.values()]
    both = " to ".join(dict.fromkeys(map(percent, (min(values), max(values)))))
    return f"{both} (chance up to {percent(max(found.chance for found in scores.values()))})"


def _is_english(language: str) -> bool:
    return language.lower().replace("_", "-").split("-")[0] in ("en", "eng", "english")
