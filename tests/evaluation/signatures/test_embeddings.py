"""Measures of embeddings equal their formulas, and each kind of collapse is found by one of them."""

import math

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation import ranks as module
from sharelock_ray.evaluation.signatures.embeddings import (
    collapsed_embeddings,
    effective_rank,
    hubness,
    modality_gap,
    uniformity,
)


def units(rows: int, dim: int = 16, seed: int = 0, towards: float = 0.0) -> torch.Tensor:
    """Unit vectors of random directions, moved along the first axis before they are normalised."""
    found = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim))).float()
    found[:, 0] += towards
    return torch.nn.functional.normalize(found, dim=1)


@pytest.fixture(params=[7, 2048])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are smaller than the data, and larger."""
    monkeypatch.setattr(module, "_BLOCK", request.param)


@pytest.mark.usefixtures("block")
class TestMeasures:
    @pytest.mark.parametrize(("rows", "dim"), [(50, 16), (10, 16), (16, 16)])
    def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values(self, rows: int, dim: int) -> None:
        embeddings = units(rows, dim, towards=1.0)
        singular = np.linalg.svd(embeddings.double().numpy(), compute_uv=False)
        shares = singular / singular.sum()
        expected = math.exp(-sum(p * math.log(p) for p in shares))
        assert effective_rank(embeddings) == pytest.approx(expected, rel=1e-5)

    def test_effective_rank_counts_equally_long_axes(self) -> None:
        assert effective_rank(torch.eye(16)[[0, 1, 2, 2, 1, 0]]) == pytest.approx(3)
        assert effective_rank(torch.eye(16)[[3] * 9]) == pytest.approx(1)

    def test_uniformity_is_the_logarithm_of_the_mean_potential_of_pairs(self) -> None:
        rows = units(20, towards=1.0).double().tolist()
        potentials = [math.exp(-2 * math.dist(rows[i], rows[j]) ** 2) for j in range(20) for i in range(j)]
        assert uniformity(units(20, towards=1.0)) == pytest.approx(
            math.log(sum(potentials) / len(potentials)), rel=1e-5
        )

    def test_uniformity_of_one_point_is_zero(self) -> None:
        assert uniformity(torch.eye(16)[[3] * 9]) == pytest.approx(0, abs=1e-6)

    def test_the_gap_is_the_distance_of_the_means(self) -> None:
        image, text = units(20, towards=2.0), units(30, seed=1)
        means = [np.mean(rows.double().numpy(), axis=0) for rows in (image, text)]
        assert modality_gap(image, text) == pytest.approx(math.dist(*means), rel=1e-5)

    @pytest.mark.parametrize("k", [1, 5])
    def test_hubness_is_the_skewness_of_occurrences_in_lists(self, k: int) -> None:
        queries, items = units(30, towards=1.0), units(25, seed=1)
        occurrences = [0] * 25
        for query in queries.tolist():
            near = [sum(a * b for a, b in zip(query, item, strict=True)) for item in items.tolist()]
            for i in sorted(range(25), key=near.__getitem__, reverse=True)[:k]:
                occurrences[i] += 1
        mean = sum(occurrences) / 25
        moments = [sum((n - mean) ** power for n in occurrences) / 25 for power in (2, 3)]
        found = hubness(queries, items, k)
        assert found.skewness == pytest.approx(moments[1] / moments[0] ** 1.5)
        assert found.largest == max(occurrences) / 30
        assert (found.queries, found.k) == (30, k)

    def test_items_that_occur_equally_often_are_not_skewed(self) -> None:
        assert hubness(torch.eye(8), torch.eye(8), 1).skewness == 0


class TestCollapse:
    def test_matching_embeddings_that_fill_their_space_are_sound(self) -> None:
        image = units(200)
        found = collapsed_embeddings(image, torch.nn.functional.normalize(image + 0.1 * units(200, seed=1)), "captions")
        assert not found.present
        assert found.faults == ()
        assert found.statement.startswith("Embeddings have effective ranks of images 1")

    def test_one_point_for_every_text(self) -> None:
        found = collapsed_embeddings(units(50), units(1).expand(50, -1), "classes")
        assert found.present
        assert "Texts take up 1.0 of 16 dimensions (effective rank)" in found.statement
        assert "texts are nearly equal (uniformity " in found.statement
        assert (found.text.effective_rank, found.texts) == (pytest.approx(1), "classes")

    def test_a_plane(self) -> None:
        flat = units(60)
        flat[:, 2:] = 0
        flat = torch.nn.functional.normalize(flat, dim=1)
        found = collapsed_embeddings(flat, flat, "captions")
        assert [fault.split(" take")[0] for fault in found.faults] == ["images", "texts"]

    def test_a_narrow_cone(self) -> None:
        found = collapsed_embeddings(units(60, towards=30.0), units(60, seed=1), "captions")
        assert any(fault.startswith("images are nearly equal (uniformity -0.") for fault in found.faults)

    def test_modalities_in_two_cones(self) -> None:
        found = collapsed_embeddings(units(60, towards=4.0), units(60, seed=1, towards=-4.0), "captions")
        assert any("images and texts are 1." in fault for fault in found.faults)
        assert found.modality_gap > 1

    def test_a_hub(self) -> None:
        # All texts lean towards the first axis, on which one image lies.
        image = units(100, dim=64, seed=2)
        image[0] = torch.eye(64)[0]
        found = collapsed_embeddings(image, units(100, dim=64, towards=6.0), "captions")
        assert any(
            fault.startswith("one image is among the 10 nearest of 100 % of the texts") for fault in found.faults
        )
        assert found.image_hubs.largest == 1

    def test_few_embeddings_say_nothing(self) -> None:
        assert collapsed_embeddings(units(200), units(19), "classes") is None

    def test_many_embeddings_are_sampled(self) -> None:
        found = collapsed_embeddings(units(3000), units(30), "captions")
        assert (found.image.rows, found.text.rows) == (2048, 30)
