"""Similar names: a threshold for each encoder from labelled pairs, and the evidence that it gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

import support
from sharelock_ray import storage
from sharelock_ray.concepts.compared import SimilarityThreshold, read_threshold
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.similarity import (
    Names,
    NameSimilarity,
    choose_threshold,
    names_of_encoder,
    names_of_features,
    read_pairs,
)
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.writer import EncodedChunk

ANGLES = {"dog": 0, "hound": 10, "puppy": 25, "cat": 40, "red bus": 90, "lorry": 100, "truck": 103}
"""Names as directions in a plane, in degrees."""
SPEC = LanguageSpec(name="plane", model="none", stored_dtype="float32")
PAIRS = "# words\ndog\thound\t9\ndog\tpuppy\t7.5\nlorry\ttruck\t9.5\ndog\tcat\t5\ncat\tred bus\t0\nred bus\tlorry\t6\n"


def directions(names) -> np.ndarray:
    radians = np.deg2rad([ANGLES[name] for name in names])
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


PLANE = Names("plane-12345678", lambda names: torch.from_numpy(directions(names)) * 3)


def concepts(*names: str) -> list[Concept]:
    return [Concept(name=name) for name in names]


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.txt"
    path.write_text(PAIRS)
    return str(path)


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    names = list(ANGLES)
    columns = {"key": [f"{i:02d}" for i in range(len(names))], "caption_id": [0] * len(names), "text": names}
    chunk = EncodedChunk(columns, directions(names))
    return open_features(support.write_parts(str(tmp_path / "set"), SPEC, [[chunk]]))


class TestLabelledPairs:
    @pytest.mark.parametrize(
        "text",
        [
            "old\tnew\t1.58\nsmart\tintelligent\t9.2\n",
            "# SimLex-999\n# Word 1\tWord 2\tHuman (mean)\nold\tnew\t1.58\nsmart\tintelligent\t9.2\n",
            "word1\tword2\tPOS\tSimLex999\tconc(w1)\nold\tnew\tA\t1.58\t2.72\nsmart\tintelligent\tA\t9.2\t1.75\n",
            'Word 1,Word 2,Human (mean)\nold,new,1.58\n"smart","intelligent",9.2\r\n',
        ],
    )
    def test_are_read_as_published(self, text, tmp_path):
        (tmp_path / "pairs.txt").write_text(text)
        assert read_pairs(str(tmp_path / "pairs.txt")) == [("old", "new", 1.58), ("smart", "intelligent", 9.2)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("old\tnew\t1\nsmart\tintelligent\n", r"line 2: .* is no pair: give two words and a score"),
            ("a header\nanother\n", "line 2"),
            ("# nothing\n", "has no labelled pairs"),
            ("", "has no labelled pairs"),
        ],
    )
    def test_others_are_one_line(self, text, message, tmp_path):
        (tmp_path / "pairs.txt").write_text(text)
        with pytest.raises(RequestError, match=message):
            read_pairs(str(tmp_path / "pairs.txt"))

    def test_that_are_missing_are_one_line(self):
        with pytest.raises(RequestError, match="no labelled pairs at none"):
            read_pairs("none.txt")


class TestAThreshold:
    def test_has_the_highest_f1(self, pairs):
        found = choose_threshold(pairs, PLANE)
        # By cosine: lorry-truck 3, dog-hound 10, red bus-lorry 10, dog-puppy 25, dog-cat 40 and cat-red bus 50 degrees.
        assert found.threshold == round(np.cos(np.deg2rad(25)), 4)
        assert (found.labelled, found.positives, found.rule) == (6, 3, "highest F1")
        assert (found.precision.value, found.recall.value) == (0.75, 1)
        assert found.precision.low < 0.75 < found.precision.high
        assert found.f1 == pytest.approx(6 / 7)

    def test_or_the_precision_that_is_asked_for(self, pairs):
        found = choose_threshold(pairs, PLANE, precision=0.9)
        assert found.threshold == round(np.cos(np.deg2rad(3)), 4)
        assert (found.precision.value, found.recall.value) == (1, pytest.approx(1 / 3))
        assert found.rule == "lowest with a precision of at least 0.9"

    def test_shows_its_curve_as_scikit_learn_computes_it(self, tmp_path):
        from sklearn.metrics import average_precision_score, precision_recall_curve

        generator = np.random.default_rng(0)
        scores, cosine = generator.uniform(0, 10, 300).round(1), generator.uniform(-1, 1, 300).round(2)
        path = tmp_path / "pairs.txt"
        path.write_text("".join(f"a{i}\tb{i}\t{score}\n" for i, score in enumerate(scores)))

        def encode(names):
            angles = [0 if name[0] == "a" else np.arccos(cosine[int(name[1:])]) for name in names]
            return torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1))

        found = choose_threshold(str(path), Names("random-00000000", encode))
        truth = scores >= 7
        assert found.average_precision == pytest.approx(average_precision_score(truth, cosine))
        precision, recall, thresholds = precision_recall_curve(truth, cosine)
        known = {
            (round(t, 4), round(p, 9), round(r, 9)) for t, p, r in zip(thresholds, precision, recall, strict=False)
        }
        shown = [(round(at.threshold, 4), round(at.precision, 9), round(at.recall, 9)) for at in found.curve]
        assert set(shown) <= known
        assert shown[-1][2] == 1
        f1 = 2 * precision * recall / (precision + recall + 1e-12)
        assert found.f1 == pytest.approx(f1.max())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"positive": 20}, "0 of 6 pairs .* have a score of at least 20"),
            ({"positive": -1}, "6 of 6 pairs"),
            ({"template": "a photo"}, "has no {} for the name"),
        ],
    )
    def test_that_cannot_be_chosen_is_one_line(self, options, message, pairs):
        with pytest.raises(RequestError, match=message):
            choose_threshold(pairs, PLANE, **options)

    def test_of_an_unreachable_precision_says_the_highest(self, pairs, tmp_path):
        path = tmp_path / "reversed.txt"
        path.write_text("dog\thound\t0\ndog\tred bus\t9\n")
        with pytest.raises(RequestError, match=r"no threshold .* the highest is 0.50, at 0.0"):
            choose_threshold(str(path), PLANE, precision=0.9)

    def test_is_stored(self, pairs, tmp_path):
        made = SimilarityThreshold(chosen=choose_threshold(pairs, PLANE), spec=SPEC.model_dump(mode="json"))
        storage.write_json(str(tmp_path / "threshold.json"), made.content())
        assert read_threshold(str(tmp_path / "threshold.json")) == made
        with pytest.raises(RequestError, match="no threshold at"):
            read_threshold(str(tmp_path / "none.json"))
        (tmp_path / "bad.json").write_text("{}")
        with pytest.raises(RunError, match="make it again with `sharelock concepts threshold`"):
            read_threshold(str(tmp_path / "bad.json"))


class TestSimilarNames:
    def test_are_evidence_with_the_cosine(self, pairs):
        rule = choose_threshold(pairs, PLANE)
        finder = NameSimilarity(concepts("cat", "dog", "lorry"), concepts("hound", "red bus", "puppy"), PLANE, rule)
        (found,) = finder.evidence(Concept(name="hound"))
        assert (found.rule, found.seen, found.unseen) == ("similarity", "dog", "hound")
        assert found.score == round(np.cos(np.deg2rad(10)), 4)
        assert found.detail == (
            'the names "hound" and "dog" have a cosine of 0.985 by plane-12345678; 0.906 is similar'
        )
        assert finder.nearest(Concept(name="red bus"))[0].name == "lorry"

    def test_below_the_threshold_are_none(self, pairs):
        rule = choose_threshold(pairs, PLANE, precision=0.9)
        finder = NameSimilarity(concepts("dog"), concepts("hound", "cat"), PLANE, rule)
        assert finder.evidence(Concept(name="hound")) == []

    def test_of_the_seen_side_are_asked_about_too(self, pairs):
        rule = choose_threshold(pairs, PLANE)
        (found,) = NameSimilarity(concepts("dog"), concepts("hound"), PLANE, rule, "unseen").evidence(
            Concept(name="hound")
        )
        assert (found.seen, found.unseen) == ("hound", "dog")

    def test_need_the_threshold_of_their_encoder(self, pairs):
        other = Names("plane-87654321", PLANE.encode)
        with pytest.raises(
            RequestError, match="chosen for plane-12345678, and the names are of plane-87654321"
        ) as error:
            NameSimilarity(concepts("dog"), concepts("hound"), other, choose_threshold(pairs, PLANE))
        assert "\n" not in str(error.value)

    def test_without_an_embedding_are_one_line(self, pairs):
        lost = Names("plane-12345678", lambda names: torch.full((len(names), 2), torch.nan))
        with pytest.raises(RequestError, match="cannot embed 'hound'"):
            NameSimilarity(concepts("dog"), concepts("hound"), lost, choose_threshold(pairs, PLANE))


class TestOfFeatures:
    def test_are_those_of_the_texts(self, features, pairs):
        names = names_of_features(features)
        assert names.encoder == f"plane-{SPEC.identity(SPEC.weights_digest())}"
        np.testing.assert_allclose(names.encode(["cat", "dog"]).numpy(), directions(["cat", "dog"]), atol=1e-6)
        assert choose_threshold(pairs, names).threshold == choose_threshold(pairs, PLANE).threshold

    def test_that_lack_a_name_are_one_line(self, features):
        with pytest.raises(RequestError, match=r"has no embedding of 2 names \('a', 'b'\): extract these names"):
            names_of_features(features).encode(["a", "dog", "b"])

    def test_of_images_are_refused(self, tmp_path):
        from sharelock_ray.encoders.spec import VisionSpec

        spec = VisionSpec(name="signal", model="none")
        images = open_features(support.write_parts(str(tmp_path / "v"), spec, [[support.encoded("vision", ["a"])]]))
        with pytest.raises(RequestError, match="is a vision set: give one of texts"):
            names_of_features(images)


def test_an_encoder_embeds_names_on_first_use(tmp_path):
    spec = support.tiny_language(tmp_path / "model")
    names = names_of_encoder(spec)
    assert names.encoder == spec.folder()
    assert names.units(["red circle", "blue"], "a photo of {}").shape[0] == 2
