"""Under `first_index`, the tasks give the numbers of CLIP-Benchmark's own functions on the same tensors.

Its functions take a model and a tokenizer. Here, both pass embeddings on: a text is the number of a row of a table.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval

from sharelock_ray.evaluation.result import ZeroShotResult
from sharelock_ray.evaluation.tasks.compositional import compositional
from sharelock_ray.evaluation.tasks.multi_label import multi_label
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.evaluation.tasks.zero_shot import ensemble, zero_shot

DIM = 24
CLOSE = 1e-6


@pytest.fixture(autouse=True)
def _numpy_2_4(monkeypatch: pytest.MonkeyPatch) -> None:
    # `accuracy` calls `float` on an array of one element, which NumPy refuses from 2.4 on.
    monkeypatch.setattr(zeroshot_classification, "float", lambda array: array.item(), raising=False)


class Identity:
    """Passes the embeddings of images on, and those of tokens, which are rows of `texts`."""

    def __init__(self, texts: torch.Tensor) -> None:
        self.texts = texts

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.texts[tokens]


def tokens(texts: list[str]) -> torch.Tensor:
    return torch.tensor([int(text) for text in texts])


class Batches:
    """Batches of images with their targets, as a data loader gives them."""

    def __init__(self, images: torch.Tensor, targets: Any, classes: Sequence[str] = ()) -> None:
        self.images, self.targets, self.classes = images, targets, classes

    @property
    def dataset(self) -> "Batches":
        return self

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Any]]:
        for start in range(0, len(self.images), 64):
            yield self.images[start : start + 64], self.targets[start : start + 64]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(*shape: int, seed: int) -> torch.Tensor:
    """Vectors of which every element is 1/4 or -1/4: similarities are exact, and often equal."""
    return torch.sign(normal(*shape[:-1], 16, seed=seed)) / 4


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


class TestZeroShot:
    def compared(
        self, image: torch.Tensor, labels: np.ndarray, prompts: torch.Tensor
    ) -> tuple[dict[str, float], ZeroShotResult, torch.Tensor]:
        """Scores of CLIP-Benchmark and ours, with images' similarities to the classes.

        Args:
            prompts: (C, T, D)
        """
        classes, templates = prompts.shape[:2]
        names = [f"{c}" for c in range(classes)]
        rows = {name: [f"{c * templates + t}" for t in range(templates)] for c, name in enumerate(names)}
        texts = prompts.flatten(0, 1)
        batches = Batches(image, torch.from_numpy(labels), names)
        theirs = zeroshot_classification.evaluate(Identity(texts), batches, tokens, names, rows, "cpu", amp=False)
        prototypes = ensemble(texts, np.repeat(np.arange(classes), templates), classes)
        weights = zeroshot_classification.zero_shot_classifier(Identity(texts), tokens, names, rows, "cpu", amp=False)
        torch.testing.assert_close(prototypes, weights.T, atol=CLOSE, rtol=0)
        ours = zero_shot(unit(image), labels, prototypes, names, "first_index")[-1]
        return theirs, ours, unit(image) @ prototypes.T

    @pytest.mark.filterwarnings("ignore:y_pred contains classes")
    def test_agrees(self) -> None:
        labels = np.random.default_rng(0).integers(0, 37, 500)
        prompts = normal(40, 7, DIM, seed=0)
        image = prompts.mean(1)[torch.from_numpy(labels)] + 0.4 * normal(500, DIM, seed=1)
        theirs, ours, _ = self.compared(image, labels, prompts)
        assert ours.top_1.value == pytest.approx(theirs["acc1"], abs=CLOSE)
        assert ours.top_5.value == pytest.approx(theirs["acc5"], abs=CLOSE)
        # Three classes have no images. Both leave them out of the mean.
        assert ours.mean_per_class == pytest.approx(theirs["mean_per_class_recall"], abs=CLOSE)
        assert 0.1 < ours.top_1.value < ours.top_5.value < 1
        assert ours.tied == 0

    def test_agrees_where_classes_are_tied(self) -> None:
        labels = np.random.default_rng(0).integers(0, 40, 500)
        # Every class has a twin of equal prompts.
        prompts = normal(20, 7, DIM, seed=0).repeat(2, 1, 1)
        image = prompts.mean(1)[torch.from_numpy(labels)] + 0.4 * normal(500, DIM, seed=1)
        theirs, ours, similarity = self.compared(image, labels, prompts)
        assert ours.mean_per_class == pytest.approx(theirs["mean_per_class_recall"], abs=CLOSE)
        # Its top-1 is by `topk`, whose order of ties is unspecified; its mean per class is by `argmax`.
        assert ours.top_1.value == pytest.approx((similarity.argmax(1).numpy() == labels).mean(), abs=CLOSE)
        assert ours.tied == 500
        prototypes = ensemble(prompts.flatten(0, 1), np.repeat(np.arange(40), 7), 40)
        strict = zero_shot(unit(image), labels, prototypes, [f"{c}" for c in range(40)])[-1]
        assert (strict.top_1.value, strict.tied) == (0, 500)

    def test_a_name_of_two_classes_is_a_tie_as_there(self) -> None:
        prototypes = torch.eye(3)[[0, 0, 1]]
        names = ["crane", "crane", "heron"]
        labels = np.array([0, 1, 2])
        first = zero_shot(prototypes, labels, prototypes, names, "first_index")[-1]
        assert (first.top_1.value, first.candidates, first.tied) == (pytest.approx(2 / 3), 3, 2)
        strict = zero_shot(prototypes, labels, prototypes, names)[-1]
        assert (strict.top_1.value, strict.candidates, strict.tied) == (1, 2, 0)


class TestMultiLabel:
    def theirs(self, image: torch.Tensor, has_class: np.ndarray, prompts: torch.Tensor) -> tuple[float, np.ndarray]:
        names = [f"{c}" for c in range(len(prompts))]
        rows = {name: [name] for name in names}
        targets = torch.from_numpy(has_class)
        found = zeroshot_classification.evaluate(
            Identity(prompts), Batches(image, targets, names), tokens, names, rows, "cpu", amp=False
        )
        by_class = zeroshot_classification.average_precision_per_class(unit(image) @ unit(prompts).T, targets)
        return found["mean_average_precision"], by_class.numpy()

    @pytest.mark.parametrize("vectors", [normal, exact], ids=["normal", "with ties"])
    def test_agrees(self, vectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        # Its own order of ties is that of an unstable sort, which is unspecified.
        sort = torch.sort
        monkeypatch.setattr(torch, "sort", lambda s, dim, down: sort(s, dim=dim, descending=down, stable=True))
        image, prompts = vectors(300, DIM, seed=0), vectors(12, DIM, seed=1)
        noisy = (unit(image) @ unit(prompts).T).numpy() + np.random.default_rng(0).normal(0, 0.2, (300, 12))
        has_class = noisy > 0.25
        has_class[:, 11] = False
        theirs, by_class = self.theirs(image, has_class, prompts)
        names = [f"{c}" for c in range(12)]
        ours = multi_label(unit(image), has_class, unit(prompts), names, "first_index")
        assert list(ours.per_class.values()) == pytest.approx(by_class[:11].tolist(), abs=CLOSE)
        # It gives 0 to the class without images.
        assert (ours.classes, ours.candidates) == (11, 12)
        assert ours.mean_average_precision.value * 11 / 12 == pytest.approx(theirs, abs=CLOSE)
        assert (ours.tied > 0) == (vectors is exact)
        strict = multi_label(unit(image), has_class, unit(prompts), names)
        assert strict.tied == ours.tied
        assert (strict.mean_average_precision.value < ours.mean_average_precision.value) == (vectors is exact)


class TestRetrieval:
    """One to three texts of each image."""

    def compared(self, image: torch.Tensor, text: torch.Tensor, owner: np.ndarray) -> tuple[dict[str, float], Any]:
        texts = [[f"{t}" for t in np.flatnonzero(owner == i)] for i in range(len(image))]
        theirs = zeroshot_retrieval.evaluate(
            Identity(text), Batches(image, texts), tokens, "cpu", amp=False, recall_k_list=[1, 5, 10]
        )
        return theirs, retrieval(unit(image), unit(text), owner, (1, 5, 10), "first_index")

    def test_agrees(self) -> None:
        owner = np.repeat(np.arange(200), np.arange(200) % 3 + 1)
        image = normal(200, DIM, seed=0)
        text = image[torch.from_numpy(owner)] + 1.2 * normal(len(owner), DIM, seed=1)
        theirs, ours = self.compared(image, text, owner)
        for k in (1, 5, 10):
            assert ours.text_to_image[k].value == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=CLOSE)
            assert ours.image_to_text[k].value == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=CLOSE)
        assert 0.1 < ours.text_to_image[1].value < 0.9
        assert (ours.tied_images, ours.tied_texts) == (0, 0)

    def test_agrees_where_items_are_tied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Its own order of ties is that of `topk`, which is unspecified. A stable sort gives the first index.
        def topk(scores: torch.Tensor, k: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
            order = scores.sort(dim=dim, descending=True, stable=True)
            return order.values[:, :k], order.indices[:, :k]

        monkeypatch.setattr(torch, "topk", topk)
        owner = np.repeat(np.arange(200), np.arange(200) % 3 + 1)
        image = exact(200, DIM, seed=0)
        changed = torch.where(torch.rand(len(owner), 16, generator=torch.Generator().manual_seed(2)) < 0.2, -1, 1)
        text = image[torch.from_numpy(owner)] * changed
        theirs, ours = self.compared(image, text, owner)
        for k in (1, 5, 10):
            assert ours.text_to_image[k].value == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=CLOSE)
            assert ours.image_to_text[k].value == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=CLOSE)
        strict = retrieval(image, text, owner)
        assert (strict.tied_images, strict.tied_texts) == (ours.tied_images, ours.tied_texts)
        assert ours.tied_texts > 50
        assert strict.text_to_image[1].value < ours.text_to_image[1].value


class TestCompositional:
    SHAPES = ((2, 2), (1, 2), (1, 5), (2, 1), (3, 3))

    @pytest.mark.parametrize(("images", "texts"), SHAPES)
    @pytest.mark.parametrize("vectors", [normal, exact], ids=["normal", "with ties"])
    def test_agrees(self, images: int, texts: int, vectors: Any) -> None:
        image, text = vectors(300, images, DIM, seed=0), vectors(300, texts, DIM, seed=1)
        own = min(images, texts)
        text[:, :own] += image[:, :own]
        of_sample = [[f"{s * texts + t}" for t in range(texts)] for s in range(300)]
        pixels = image.view(300, images, 1, 1, -1)
        theirs = image_caption_selection.evaluate(
            Identity(text.flatten(0, 1)), Batches(pixels, of_sample), tokens, "cpu", amp=False
        )
        ours = compositional(unit(image), unit(text), ties="first_index").total
        for score, name in ((ours.text, "text_acc"), (ours.image, "image_acc"), (ours.group, "acc")):
            if score is not None:
                assert score.value == pytest.approx(theirs[name], abs=CLOSE)
        # With one image, its image score is 1 and its group score is the text score.
        assert (ours.image is None, ours.text is None) == (images == 1, texts == 1)

    def test_all_items_alike_are_wrong_in_its_second_row_and_right_in_its_first(self) -> None:
        four, pair = torch.ones(9, 2, 1), torch.ones(9, 1, 1)
        for ties, right in (("first_index", 1), ("strict", 0)):
            assert compositional(four, four, ties=ties).total.text.value == 0
            found = compositional(pair, four, ties=ties)
            assert (found.total.text.value, found.tied) == (right, 9)
