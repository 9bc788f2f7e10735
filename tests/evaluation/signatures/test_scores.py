"""Languages and compositional choices at chance are named; weak evidence is not taken for a failure."""

import numpy as np
import pytest

from sharelock_ray.evaluation.result import (
    BenchmarkRequest,
    CompositionalChance,
    CompositionalRecord,
    CompositionalResult,
    CompositionalScores,
    FeatureSetUse,
    RetrievalRecord,
    RetrievalResult,
    ZeroShotRecord,
    ZeroShotResult,
)
from sharelock_ray.evaluation.signatures.evidence import LanguageScore, MultilingualCollapse, at_chance
from sharelock_ray.evaluation.signatures.scores import multilingual_collapse, of_records, random_compositionality
from sharelock_ray.evaluation.statistics import Estimate, proportion

SCOPE = {"dataset": "d", "split": "test", "model_step": 1}


def hits(share: float, count: int) -> Estimate:
    return proportion(np.arange(count) < share * count)


def language(name: str | None, recall: float, images: int = 500, ks: tuple[int, ...] = (1, 5, 10)) -> RetrievalRecord:
    found = {k: hits(recall, images) for k in ks}
    result = RetrievalResult(images=images, texts=images, image_to_text=found, text_to_image=found)
    return RetrievalRecord(**SCOPE, language=name, result=result)


class TestAtChance:
    @pytest.mark.parametrize(
        ("share", "count", "expected"),
        [(0.5, 1000, True), (0.45, 1000, True), (0.55, 1000, True), (0.62, 1000, False), (0.5, 4, False)],
    )
    def test_near_chance_and_known_to_be(self, share: float, count: int, expected: bool) -> None:
        assert at_chance(hits(share, count), 0.5, 1) is expected


def collapse(records: list[RetrievalRecord]) -> MultilingualCollapse | None:
    found = of_records(records)
    return found[0] if found else None


class TestMultilingualCollapse:
    def test_languages_at_chance_are_named(self) -> None:
        found = collapse([language("en", 0.6), language("hi", 0.02), language("de", 0.5)])
        assert found.present
        assert {name: score.at_chance for name, score in found.languages.items()} == {"hi": True, "de": False}
        assert found.english.at_chance is False
        assert (found.measure, found.english.chance) == ("recall@10 from text to image", 0.02)
        assert found.dataset == "d"
        assert found.statement == (
            "1 of 2 languages are near chance (hi): recall@10 from text to image 2.0 % (chance up to 2.0 %), "
            "English 60.0 % (chance 2.0 %)."
        )

    def test_a_model_that_knows_all_languages(self) -> None:
        found = collapse([language("en", 0.6), language("hi", 0.3), language("de", 0.5)])
        assert not found.present
        assert found.statement.startswith(
            "None of 2 languages is near chance: recall@10 from text to image 30.0 % to 50"
        )

    def test_a_model_that_does_not_know_english_either(self) -> None:
        found = collapse([language("en", 0.02), language("hi", 0.02)])
        assert not found.present
        assert found.statement.startswith("English itself is not above chance")

    def test_a_few_images_are_no_evidence(self) -> None:
        assert not collapse([language("en", 0.9, 20), language("hi", 0.5, 20)]).present

    def test_the_reference_follows_the_number_of_images(self) -> None:
        # Half of 20 images are found by chance, as k is 10.
        found = collapse([language("en", 0.6, 2000), language("hi", 0.5, 20, (10,))])
        assert (found.languages["hi"].chance, found.languages["hi"].images) == (0.5, 20)

    @pytest.mark.parametrize("name", ["en", "eng", "en_GB", "en-US", "English"])
    def test_english_has_several_tags(self, name: str) -> None:
        assert collapse([language(name, 0.6), language("hi", 0.02)]).present

    def test_the_splits_own_captions_stand_for_english(self) -> None:
        found = collapse([language(None, 0.6), language("hi", 0.02)])
        assert found.present
        assert "English (the split's own captions) 60.0 %" in found.statement
        assert set(found.languages) == {"hi"}

    def test_many_languages_are_counted(self) -> None:
        found = collapse([language("en", 0.6), *(language(f"x{i}", 0.02) for i in range(40))])
        assert "x11 and 28 more)" in found.statement

    def test_k_leaves_room_above_chance(self) -> None:
        assert collapse([language("en", 0.6), language("hi", 0.2, 12)]).measure.startswith("recall@5 ")

    @pytest.mark.parametrize(
        "records",
        [
            [],
            [language("en", 0.6)],
            [language(None, 0.6), language("en", 0.6)],
            [language("hi", 0.1), language("de", 0.1)],
            [language("en", 1, 1), language("hi", 1, 1)],
        ],
    )
    def test_nothing_to_compare(self, records: list[RetrievalRecord]) -> None:
        assert collapse(records) is None


def test_any_score_can_be_compared() -> None:
    scores = {
        name: LanguageScore(images=500, value=hits(share, 500), chance=0.01)
        for name, share in (("en", 0.6), ("hi", 0.01), ("de", 0.4))
    }
    found = multilingual_collapse("d", "top-1", scores)
    assert {name for name, score in found.languages.items() if score.at_chance} == {"hi"}
    assert "(hi): top-1 1.0 % (chance up to 1.0 %), English 60.0 % (chance 1.0 %)." in found.statement


def test_zero_shot_benchmarks_are_compared_by_language() -> None:
    def record(language: str, share: float) -> ZeroShotRecord:
        use = FeatureSetUse(path="p", digest="d")
        benchmark = BenchmarkRequest(
            name="names",
            language=language,
            ties="strict",
            recall_at=(),
            model="m",
            images=use,
            texts=use,
            preprocessing={},
        )
        result = ZeroShotResult(
            images=500,
            candidates=100,
            classes=100,
            chance=0.01,
            top_1=hits(share, 500),
            top_5=hits(share, 500),
            mean_per_class=share,
            per_class={},
            candidate_set="all",
        )
        return ZeroShotRecord(**SCOPE, benchmark=benchmark, templates=("{}",), result=result)

    (found,) = of_records([record("en", 0.6), record("hi", 0.01), record("de", 0.4)])
    assert (found.dataset, found.measure) == ("names", "zero-shot accuracy")
    assert {name for name, score in found.languages.items() if score.at_chance} == {"hi"}


def choice(text: float, image: float | None = None, samples: int = 400) -> CompositionalRecord:
    scores = {
        "text": hits(text, samples),
        "image": None if image is None else hits(image, samples),
        "group": None,
    }
    chance = {"text": 0.5, "image": None, "group": None} if image is None else {"text": 0.25, "image": 0.25}
    result = CompositionalResult(
        images=samples,
        images_of_sample=1,
        texts_of_sample=2,
        total=CompositionalScores(samples=samples, **scores),
        chance=CompositionalChance(**({"group": None} | chance)),
        by_kind={},
        tied=0,
    )
    return CompositionalRecord(**SCOPE, result=result)


class TestRandomCompositionality:
    def test_a_guess_between_two_texts(self) -> None:
        found = random_compositionality(choice(0.52))
        assert found.present
        assert found.statement == (
            "Compositional choices of 400 samples are no better than a guess: text 52.0 % (chance 50.0 %)."
        )
        assert (found.chance, found.samples, found.dataset) == ({"text": 0.5}, 400, "d")

    def test_texts_that_are_told_apart(self) -> None:
        assert not random_compositionality(choice(0.8)).present

    def test_one_good_score_of_two_is_no_guess(self) -> None:
        assert random_compositionality(choice(0.27, 0.2)).present
        found = random_compositionality(choice(0.6, 0.2))
        assert not found.present
        assert "are not all near chance: text 60.0 % (chance 25.0 %), image 20.0 % (chance 25.0 %)" in found.statement

    def test_few_samples_are_no_evidence(self) -> None:
        assert not random_compositionality(choice(0.5, samples=4)).present


def test_records_are_compared_within_their_split() -> None:
    elsewhere = language("hi", 0.02).model_copy(update={"dataset": "other"})
    assert of_records([language("en", 0.6), elsewhere]) == []
    found = of_records([language("en", 0.6), language("hi", 0.02), choice(0.5)])
    assert [signature.name for signature in found] == ["multilingual_collapse", "random_compositionality"]
