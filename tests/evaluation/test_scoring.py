"""What a split has is scored, what it lacks is left out and noted, and nothing else is projected."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

import support
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.evaluation.result import RetrievalRecord, ZeroShotRecord, ZeroShotResult
from sharelock_ray.evaluation.scoring import (
    Classes,
    class_prototypes,
    evaluate,
    zero_shot_accuracy,
    zero_shot_captions,
)
from sharelock_ray.evaluation.signatures.scores import of_records
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.features.featureset import FeatureSet, Pairs, join, open_features
from sharelock_ray.sources.sample import Reject

NAMES = ["circle", "square", "star"]
WIDTH = 16


class Model:
    """A model whose heads change nothing, and whose classes lie on the axes; it notes the rows it is asked for."""

    checkpoint = SimpleNamespace(position=SimpleNamespace(step=7))

    def __init__(self) -> None:
        self.projected: list[tuple[str, list[int]]] = []

    def project(self, features: FeatureSet, rows: np.ndarray) -> torch.Tensor:
        self.projected.append((features.manifest.modality, rows.tolist()))
        return torch.nn.functional.normalize(features.embeddings[torch.from_numpy(rows)].float(), dim=-1)


def prompts_of(folder: Path, names: list[str], axes: list[int] | None = None) -> FeatureSet:
    """A prompt of each class; equal names lie on one axis, unless the axes are given."""
    known = list(dict.fromkeys([*NAMES, *names]))
    places = axes or [known.index(name) for name in names]
    keys = [f"classes-00000/{label:09d}" for label in range(len(names))]
    chunk = support.encoded("language", keys, embeddings=np.eye(WIDTH, dtype=np.float32)[places])
    spec = LanguageSpec(name="signal", model="none", stored_dtype="float32")
    return open_features(support.write_parts(str(folder / f"prompts-{len(names)}-{places}"), spec, [[chunk]]))


def pairs_of(folder: Path, labels: list[int | None], captioned: list[int]) -> Pairs:
    """Images of these labels, near the axis of their class, or near the last one; some of them have captions."""
    keys = [f"00000/{i:04d}" for i in range(len(labels))]
    axes = [WIDTH - 1 if label in (None, -1) else label % 3 for label in labels]
    image = np.eye(WIDTH, dtype=np.float32)[axes] + 0.01 * np.arange(len(keys))[:, None]
    spec = VisionSpec(name="signal", model="none", stored_dtype="float32")
    chunk = support.encoded("vision", keys, embeddings=image, columns={"key": keys, "label": labels})
    vision = support.write_parts(str(folder / "vision"), spec, [[chunk]])
    some = [keys[i] for i in captioned]
    chunk = support.encoded("language", some, embeddings=image[captioned].reshape(-1, WIDTH))
    language = support.write_parts(
        str(folder / "language"), LanguageSpec(name="signal", model="none", stored_dtype="float32"), [[chunk]]
    )
    return join(open_features(vision), open_features(language))


@dataclass
class Found:
    """The records of an evaluation by task."""

    zero_shot: list[ZeroShotRecord]
    retrieval: list[RetrievalRecord]
    notes: list[str]


def evaluated(pairs: Pairs, names: list[str] | None = NAMES, split: str = "test") -> tuple[Found, Model]:
    model = Model()
    prompts = prompts_of(Path(pairs.vision.uri).parent, names) if names else None
    records, notes, *_ = evaluate(model, pairs.vision, pairs, split, names, prompts, ("a {}.",), (1,))
    for record in records:
        assert (record.dataset, record.split, record.model_step) == (pairs.vision.manifest.dataset, split, 7)
        assert type(record).model_validate_json(record.model_dump_json()) == record
    by_task = [[r for r in records if isinstance(r, kind)] for kind in (ZeroShotRecord, RetrievalRecord)]
    return Found(*by_task, notes), model


def test_labels_without_captions_are_classified_only(tmp_path: Path) -> None:
    found, _ = evaluated(pairs_of(tmp_path, [0, 1, 2, 0], []))
    assert found.retrieval == []
    (record,) = found.zero_shot
    assert (record.result.candidate_set, record.result.top_1.value, record.templates) == ("all", 1, ("a {}.",))
    assert found.notes == ["retrieval is left out: no image of the test split has a caption"]
    assert [(example.truth, example.predicted) for example in record.examples[:2]] == [("circle",) * 2, ("square",) * 2]


def test_classes_without_images_give_a_second_record(tmp_path: Path) -> None:
    found, _ = evaluated(pairs_of(tmp_path, [0, 1, 0], []))
    assert [(r.result.candidate_set, r.result.candidates) for r in found.zero_shot] == [("present", 2), ("all", 3)]
    # Examples belong to the first one, whose classes they are ranked among.
    assert [len(record.examples) for record in found.zero_shot] == [3, 0]


@pytest.mark.parametrize("none", [None, -1])
def test_captions_without_labels_are_retrieved_only(tmp_path: Path, none: int | None) -> None:
    found, _ = evaluated(pairs_of(tmp_path, [none, none], [0, 1]))
    assert found.zero_shot == []
    (record,) = found.retrieval
    assert (record.result.images, record.result.texts) == (2, 2)
    assert found.notes == ["zero-shot classification is left out: no image of the test split has a label"]
    assert record.examples[0].truth == "text 0 of 00000/0000"


def test_labels_that_nobody_has_named_are_left_out(tmp_path: Path) -> None:
    found, _ = evaluated(pairs_of(tmp_path, [0, 1], [0, 1]), [])
    assert found.zero_shot == []
    assert found.notes == ["zero-shot classification is left out: `data.classes` names no class"]


def test_validation_pairs_are_not_classified_and_not_said_to_lack_it(tmp_path: Path) -> None:
    found, _ = evaluated(pairs_of(tmp_path, [0, 1], [0, 1]), None, "validation")
    assert (found.zero_shot, found.notes) == ([], [])


@pytest.mark.parametrize("names", [NAMES, [], None])
def test_nothing_to_score_is_one_line(tmp_path: Path, names: list[str] | None) -> None:
    with pytest.raises(RequestError, match="nothing to evaluate: retrieval is left out: no image of the test") as error:
        evaluated(pairs_of(tmp_path, [None, None], []), names)
    assert "\n" not in str(error.value)


def test_a_split_of_texts_only_is_one_line(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, [], [])
    with pytest.raises(RequestError, match="no image of the test split has a label"):
        evaluated(pairs)


def test_labels_beyond_the_names_are_refused_before_anything_is_projected(tmp_path: Path) -> None:
    model = Model()
    pairs = pairs_of(tmp_path, [0, 5], [0])
    with pytest.raises(RequestError, match="labels go from 0 to 5, but 3 classes are named"):
        evaluate(model, pairs.vision, pairs, "test", NAMES, prompts_of(tmp_path, NAMES), ("a {}.",), (1,))
    assert model.projected == []


def test_only_what_is_scored_is_projected(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, [0, None, 1, None, None, 2], [0, 1, 3])
    _, model = evaluated(pairs)
    assert model.projected == [("vision", [0, 1, 2, 3, 5]), ("language", [0, 1, 2]), ("language", [0, 1, 2])]
    _, model = evaluated(pairs.select(np.array([False, True, False])), None, "validation")
    assert model.projected == [("vision", [1]), ("language", [1])]


def test_one_name_for_two_classes_is_noted_and_counts_for_both(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, [0, 1, 2, 3, 3], [])
    found, _ = evaluated(pairs, [*NAMES, "circle"])
    (record,) = found.zero_shot
    assert record.result.mean_per_class == 1
    assert record.result.per_class["circle (label 3)"] == 1
    assert record.notes[-1] == "2 of 4 classes share their name, and any of these is right: circle (0, 3)"
    # A trial of a study is scored by the same rule.
    prompts = prompts_of(tmp_path, [*NAMES, "circle"])
    assert zero_shot_accuracy(Model(), Classes(pairs.vision, prompts, [*NAMES, "circle"])) == 1


def test_many_double_names_are_counted(tmp_path: Path) -> None:
    names = [*NAMES, *(f"name {i // 2}" for i in range(16))]
    found, _ = evaluated(pairs_of(tmp_path, [0, 1], []), names)
    assert found.zero_shot[0].notes[-1].endswith("name 2 (7, 8) and 5 more")


def test_a_trial_is_scored_among_the_classes_that_have_images(tmp_path: Path) -> None:
    # The images of label 1 lie where label 0 is expected.
    pairs = pairs_of(tmp_path, [0, 0, 1, 1, None], [])
    prompts = prompts_of(tmp_path, NAMES, [0, 0, 1])
    tied = Classes(pairs.vision, prompts, NAMES)
    assert zero_shot_accuracy(Model(), tied) == 0
    assert zero_shot_accuracy(Model(), Classes(pairs.vision, prompts_of(tmp_path, NAMES, [0, 1, 0]), NAMES)) == 1


def test_a_trial_without_labels_is_one_line(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, [None, None], [])
    with pytest.raises(RequestError, match=r"no image of .* has a label: give labels, or take `data\.classes` away"):
        zero_shot_accuracy(Model(), Classes(pairs.vision, prompts_of(tmp_path, NAMES), NAMES))


def test_a_class_is_the_normalised_mean_of_its_projected_prompts(tmp_path: Path) -> None:
    keys = [f"classes-00000/{label:09d}" for label in (0, 0, 1, 1)]
    embeddings = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
    spec = LanguageSpec(name="signal", model="none", stored_dtype="float32")
    chunk = support.encoded("language", keys, embeddings=embeddings)
    prompts = open_features(support.write_parts(str(tmp_path / "prompts"), spec, [[chunk]]))
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    means = np.stack([units[:2].mean(0), units[2:].mean(0)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    found = class_prototypes(Model(), prompts, np.array([1, 0]))
    np.testing.assert_allclose(found, expected[[1, 0]], atol=1e-6)


def test_classes_may_have_different_numbers_of_texts(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(2).normal(size=(4, WIDTH)).astype(np.float32)
    keys = [f"classes-00000/{label:09d}" for label in (0, 1, 1, 1)]
    spec = LanguageSpec(name="signal", model="none", stored_dtype="float32")
    chunk = support.encoded("language", keys, embeddings=embeddings)
    texts = open_features(support.write_parts(str(tmp_path / "texts"), spec, [[chunk]]))
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    mean = units[1:].mean(0)
    expected = [mean / np.linalg.norm(mean), units[0]]
    np.testing.assert_allclose(class_prototypes(Model(), texts, np.array([1, 0])), expected, atol=1e-6)


def test_a_prompt_that_could_not_be_encoded_is_one_line(tmp_path: Path) -> None:
    lost = [Reject("classes-00000/000000001", "encode", "UnknownToken", "caption 0 has a token")]
    chunk = support.encoded("language", ["classes-00000/000000000"], dim=WIDTH, rejects=lost)
    spec = LanguageSpec(name="signal", model="none")
    prompts = open_features(support.write_parts(str(tmp_path / "prompts"), spec, [[chunk]]))
    with pytest.raises(RunError, match="a text could not be encoded: classes-00000/000000001: caption 0"):
        class_prototypes(Model(), prompts, np.arange(2))


def translations_of(folder: Path, axes: dict[str, int]) -> FeatureSet:
    """One caption for each key, on an axis."""
    chunk = support.encoded("language", list(axes), embeddings=np.eye(WIDTH, dtype=np.float32)[list(axes.values())])
    spec = LanguageSpec(name="signal", model="none", stored_dtype="float32")
    return open_features(support.write_parts(str(folder / "translations"), spec, [[chunk]]))


class TestTranslations:
    def test_each_language_is_scored_among_the_images_that_it_has_captions_of(self, tmp_path: Path) -> None:
        pairs = pairs_of(tmp_path, [0, 1, 2], [0])
        model, images = Model(), pairs.vision
        axes = {"de/00000/0000": 0, "de/00000/0001": 1, "fr/00000/0002": 2, "fr/00000/0001": 1, "fr/elsewhere": 3}
        translations = translations_of(tmp_path, axes)
        records, *_ = evaluate(model, images, pairs, "test", None, None, (), (1, 2), translations)
        own, german, german_names, french, french_names = records
        for record, found in ((german_names, german), (french_names, french)):
            assert (record.task, record.language, record.templates) == ("zero_shot_classification", found.language, ())
            assert (record.result.candidate_set, record.result.top_1.value) == ("captions", 1)
            assert (record.result.images, record.result.candidates, record.result.chance) == (2, 2, 1 / 2)
        assert (own.language, own.result.images) == (None, 1)
        assert (german.language, german.result.images, german.result.texts) == ("de", 2, 2)
        assert (french.language, french.result.images, french.result.texts) == ("fr", 2, 2)
        assert german.result.image_to_text[1].value == german.result.text_to_image[1].value == 1
        assert french.result.image_to_text[1].value == french.result.text_to_image[1].value == 1
        assert (french.split, french.model_step, french.dataset) == ("test", 7, images.manifest.dataset)
        # Images are projected once, captions that belong to no image never.
        assert model.projected == [("vision", [0, 1, 2]), ("language", [0]), ("language", [0, 1]), ("language", [2, 3])]

    def test_captions_of_other_images_are_refused(self, tmp_path: Path) -> None:
        pairs = pairs_of(tmp_path, [0, 1], [0])
        translations = translations_of(tmp_path, {"de/elsewhere": 0})
        with pytest.raises(RequestError, match="no caption of the translations belongs to an image"):
            evaluate(Model(), pairs.vision, pairs, "test", None, None, (), (1,), translations)


class TestSamples:
    def test_each_record_has_its_rows(self, tmp_path: Path) -> None:
        pairs = pairs_of(tmp_path, [0, 1, 0, None], [0, 1, 3])
        translations = translations_of(tmp_path, {"de/00000/0000": 0, "de/00000/0001": 1})
        prompts = prompts_of(tmp_path, NAMES)
        found = evaluate(Model(), pairs.vision, pairs, "test", NAMES, prompts, ("a {}.",), (1,), translations)
        columns = ["task", "candidate_set", "language"]
        rows = found.samples.to_pylist()
        for record in found.records:
            said = [record.task, getattr(record.result, "candidate_set", None), record.language]
            mine = [row for row in rows if [row[name] for name in columns] == said]
            if isinstance(record, RetrievalRecord):
                for direction in ("image_to_text", "text_to_image"):
                    hits = [row["rank"] < 1 for row in mine if row["direction"] == direction]
                    assert np.mean(hits) == getattr(record.result, direction)[1].value
            else:
                assert len(mine) == record.result.images
                assert np.mean([row["rank"] == 0 for row in mine]) == record.result.top_1.value
                # No image of these ties, so the nearest class is right or wrong as the rank says.
                assert all((row["predicted"] == row["label"]) == (row["rank"] == 0) for row in mine)
        own = [row for row in rows if row["direction"] == "text_to_image" and row["language"] is None]
        assert [(row["key"], row["caption_id"], row["text"]) for row in own] == [
            (f"00000/{i:04d}", 0, f"text 0 of 00000/{i:04d}") for i in (0, 1, 3)
        ]
        assert [row["label"] for row in rows if row["candidate_set"] == "present"] == [0, 1, 0]


class TestCaptionsAsClasses:
    IMAGE = torch.eye(WIDTH)[[0, 0, 1]]

    def found(self, image: torch.Tensor, text: torch.Tensor, owner: np.ndarray, texts: list[str]) -> ZeroShotResult:
        keys = pa.array([f"{place:04d}" for place in range(len(image))])
        result, samples = zero_shot_captions(image, text, owner, texts, keys)
        assert samples["key"].to_pylist() == keys.to_pylist()
        assert np.mean(samples["rank"].to_numpy() == 0) == result.top_1.value
        assert [text in texts for text in samples["text"].to_pylist()] == [True] * len(image)
        return result

    def test_images_of_one_caption_are_one_class(self) -> None:
        texts = ["ein Hahn", "ein Hahn", "eine Eule"]
        found = self.found(self.IMAGE, self.IMAGE, np.arange(3), texts)
        assert (found.top_1.value, found.candidates, found.classes, found.chance) == (1, 2, 2, 1 / 2)
        assert (found.images, found.tied, found.per_class) == (3, 0, {})
        # Retrieval calls both roosters errors, since each is as near as the other.
        assert retrieval(self.IMAGE, self.IMAGE, np.arange(3), (1,)).image_to_text[1].value == pytest.approx(1 / 3)

    def test_the_first_caption_of_an_image_is_its_class(self) -> None:
        text = torch.eye(WIDTH)[[2, 0, 1]]
        found = self.found(self.IMAGE[1:], text, np.array([0, 0, 1]), ["a hen", "a rooster", "an owl"])
        assert (found.candidates, found.top_1.value) == (2, 0.5)

    def test_captions_that_a_model_cannot_tell_apart_are_errors(self) -> None:
        text = torch.eye(WIDTH)[[0, 0, 0]]
        found = self.found(self.IMAGE, text, np.arange(3), ["ไก่", "เป็ด", "นกฮูก"])
        assert (found.top_1.value, found.tied) == (0, 3)


class TestSignatures:
    def found(self, pairs: Pairs, names: list[str], axes: list[int] | None = None, **more: object) -> dict:
        prompts = prompts_of(Path(pairs.vision.uri).parent, names, axes)
        found = evaluate(Model(), pairs.vision, pairs, "test", names, prompts, ("a {}.",), (1, 2), **more)[2]
        return {signature.name: signature for signature in found}

    def test_names_in_a_wrong_order(self, tmp_path: Path) -> None:
        pairs = pairs_of(tmp_path, [0, 1, 2] * 8, [])
        assert self.found(pairs, NAMES, [1, 2, 0])["wrong_class_order"].present
        assert not self.found(pairs, NAMES)["wrong_class_order"].present

    def test_seen_classes_are_compared_with_others_where_training_is_known(self, tmp_path: Path) -> None:
        names = [f"class {i}" for i in range(12)]
        keys = [f"00000/{i:04d}" for i in range(24)]
        labels = [i % 12 for i in range(24)]
        image = np.eye(WIDTH, dtype=np.float32)[labels]
        # All images of the unseen classes are alike.
        image[np.array(labels) >= 6] = np.eye(WIDTH)[-1]
        spec = VisionSpec(name="signal", model="none", stored_dtype="float32")
        chunk = support.encoded("vision", keys, embeddings=image, columns={"key": keys, "label": labels})
        vision = open_features(support.write_parts(str(tmp_path / "vision"), spec, [[chunk]]))
        prompts = prompts_of(tmp_path, names, list(range(12)))
        scored = (Model(), vision, None, "test", names, prompts, ("a {}.",), (1,))
        (found,) = [f for f in evaluate(*scored, seen=np.arange(12) < 6)[2] if f.name == "memorised_classes"]
        assert found.present
        assert "memorised_classes" not in {found.name for found in evaluate(*scored)[2]}

    def test_embeddings_are_measured_with_captions_or_else_class_prompts(self, tmp_path: Path) -> None:
        labels: list[int | None] = [0, 1, 2] * 8
        captioned = pairs_of(tmp_path / "captioned", labels, list(range(24)))
        assert self.found(captioned, NAMES)["collapsed_embeddings"].texts == "captions"
        # Three class prompts are too few.
        assert "collapsed_embeddings" not in self.found(pairs_of(tmp_path / "labelled", labels, []), NAMES)

    def test_captions_of_one_text_are_one(self, tmp_path: Path) -> None:
        pairs = pairs_of(tmp_path, [0, 1, 2] * 8, [])
        keys = pairs.vision.keys.tolist()
        columns = {"key": keys, "caption_id": [0] * 24, "text": [f"text {i % 3}" for i in range(24)]}
        chunk = support.encoded("language", keys, dim=WIDTH, columns=columns)
        spec = LanguageSpec(name="signal", model="none", stored_dtype="float32")
        language = open_features(support.write_parts(str(tmp_path / "other"), spec, [[chunk]]))
        assert "collapsed_embeddings" not in self.found(join(pairs.vision, language), NAMES)

    def test_languages_at_chance(self, tmp_path: Path) -> None:
        keys = [f"00000/{i:04d}" for i in range(WIDTH)]
        spec = VisionSpec(name="signal", model="none", stored_dtype="float32")
        chunk = support.encoded("vision", keys, embeddings=np.eye(WIDTH, dtype=np.float32))
        vision = open_features(support.write_parts(str(tmp_path / "vision"), spec, [[chunk]]))
        axes = {f"en/{key}": i for i, key in enumerate(keys)} | {f"hi/{key}": 3 for key in keys}
        translations = translations_of(tmp_path, axes)
        scored = Model(), vision, None, "test", NAMES, prompts_of(tmp_path, NAMES), ("a {}.",), (1,)
        (found,) = of_records(evaluate(*scored, translations)[0])
        assert found.present
        assert found.languages["hi"].at_chance
