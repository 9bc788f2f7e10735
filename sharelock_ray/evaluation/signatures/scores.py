"""Signatures that are read from the records of an evaluation: multilingual collapse, near-random compositionality."""

from collections.abc import Collection, Mapping, Sequence

from sharelock_ray.evaluation.result import CompositionalRecord, EvaluationRecord, RetrievalRecord
from sharelock_ray.evaluation.signatures.evidence import (
    LanguageScore,
    MultilingualCollapse,
    RandomCompositionality,
    at_chance,
    percent,
    sentence,
)

_NAMED = 12
"""Number of languages that a statement lists."""


def of_records(records: Sequence[EvaluationRecord]) -> list[MultilingualCollapse | RandomCompositionality]:
    """The signatures of each data set and split that has the records for them."""
    by_split: dict[tuple[str | None, str], list[RetrievalRecord]] = {}
    for record in records:
        if isinstance(record, RetrievalRecord):
            by_split.setdefault((record.dataset, record.split), []).append(record)
    collapses = (multilingual_collapse(some) for some in by_split.values())
    choices = (record for record in records if isinstance(record, CompositionalRecord))
    return [*(found for found in collapses if found), *map(random_compositionality, choices)]


def multilingual_collapse(records: Sequence[RetrievalRecord]) -> MultilingualCollapse | None:
    """Compares languages with chance and with English, by recall from text to image on one split.

    English is the language `en`, or else the split's own captions. k is the largest one of which chance, k of the
    images, is at most a half in every language. English must be significantly above chance. A language is at chance by
    `at_chance`; its reference is English's recall, moved to its number of images: as far from chance to 1.

    Args:
        records: of one data set and split, at most one for each language.

    Returns:
        None without English, without another language, or with too few images.
    """
    by_language = {record.language or "": record.result for record in records}
    english = next((name for name in by_language if _is_english(name)), "")
    # The split's own captions are in no known language.
    others = [name for name in by_language if name and not _is_english(name)]
    if english not in by_language or not others:
        return None
    images = min(by_language[name].images for name in (english, *others))
    possible = [k for k in by_language[english].text_to_image if 2 * k <= images]
    if not possible:
        return None
    k = max(possible)
    best = by_language[english].text_to_image[k]
    chance = {name: k / by_language[name].images for name in by_language}
    skill = (best.value - chance[english]) / (1 - chance[english])
    clear = best.low > chance[english]

    def score(name: str) -> LanguageScore:
        recall = by_language[name].text_to_image[k]
        reference = chance[name] + skill * (1 - chance[name])
        lost = clear and name != english and at_chance(recall, chance[name], reference)
        return LanguageScore(images=by_language[name].images, recall=recall, chance=chance[name], at_chance=lost)

    languages = {name: score(name) for name in others}
    lost = {name: found for name, found in languages.items() if found.at_chance}
    verdict = _collapse(lost, languages) if clear else "English itself is not above chance"
    own = "" if english else " (the split's own captions)"
    reference = f"English{own} {percent(best)} (chance {percent(chance[english])})"
    return MultilingualCollapse(
        present=bool(lost),
        statement=sentence(f"{verdict}: recall@{k} from text to image {_range(lost or languages)}, {reference}"),
        dataset=records[0].dataset,
        k=k,
        english=score(english),
        languages=languages,
    )


def _collapse(lost: Collection[str], languages: Collection[str]) -> str:
    if not lost:
        return f"none of {len(languages)} languages is at chance"
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    named = ", ".join(list(lost)[:_NAMED])
    return f"{len(lost)} of {len(languages)} languages are at chance ({named}{more})"


def _range(scores: Mapping[str, LanguageScore]) -> str:
    """The lowest and the highest recall, and the highest chance."""
    recalls = [found.recall.value for found in scores.values()]
    values = " to ".join(dict.fromkeys(map(percent, (min(recalls), max(recalls)))))
    return f"{values} (chance up to {percent(max(found.chance for found in scores.values()))})"


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


def _is_english(language: str) -> bool:
    return language.lower().replace("_", "-").split("-")[0] in ("en", "eng", "english")
