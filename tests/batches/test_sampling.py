"""Sampling of batches: the same pairs on any number of workers, with and without prefetching."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import support
from sharelock_ray.batches.sampling import Batch, PairBatches, drawn
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import Pairs, join, open_features

CPU = torch.device("cpu")
SPECS = (VisionSpec(name="made-up", model="none"), LanguageSpec(name="made-up", model="none"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """203 images, each with one to three captions; captions are in another order than images."""
    folder = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(0)
    keys = [f"{i:04d}" for i in range(203)]
    captions = [key for key in random.permutation(keys) for _ in range(random.integers(1, 4))]
    chunks = {
        "vision": support.encoded("vision", keys, dim=5),
        "language": support.encoded("language", captions, dim=3),
    }
    return join(
        *(
            open_features(support.write_parts(str(folder / spec.modality), spec, [[chunks[spec.modality]]]))
            for spec in SPECS
        )
    )


def copies(batches: Iterator[Batch]) -> list[Batch]:
    """Copies of batches, because each is valid only until the next."""
    return [Batch(batch.image.clone(), batch.text.clone()) for batch in batches]


def images_of(pairs: Pairs, keys: list[str]) -> list[list[float]]:
    rows = {key: row for row, key in enumerate(pairs.vision.keys)}
    return pairs.vision.embeddings[[rows[key] for key in keys]].tolist()


def test_batches_have_the_stored_type_and_match_their_keys(pairs: Pairs) -> None:
    batches = PairBatches(pairs, 32, seed=0, device=CPU)
    batch = batches.batch(7, 0, 1)
    assert batch.image.dtype == batch.text.dtype == torch.float16
    assert batch.image.tolist() == images_of(pairs, batches.keys(7))


@pytest.mark.parametrize("world_size", [1, 3])
def test_prefetched_batches_are_the_same(pairs: Pairs, world_size: int) -> None:
    # Includes the ends of two epochs of six steps.
    steps = range(4, 15)
    for rank in range(world_size):
        prefetched = copies(PairBatches(pairs, 32, seed=1, device=CPU).prefetch(steps, rank, world_size))
        one_by_one = PairBatches(pairs, 32, seed=1, device=CPU)
        assert len(prefetched) == len(steps)
        for step, batch in zip(steps, prefetched, strict=True):
            expected = one_by_one.batch(step, rank, world_size)
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.text, expected.text)


def test_the_shares_of_all_ranks_make_up_the_batch_of_one(pairs: Pairs) -> None:
    whole = PairBatches(pairs, 32, seed=0, device=CPU).batch(3, 0, 1)
    for world_size in (2, 3, 5):
        shares = [PairBatches(pairs, 32, seed=0, device=CPU).batch(3, r, world_size) for r in range(world_size)]
        assert torch.equal(torch.cat([share.image for share in shares]), whole.image)
        assert torch.equal(torch.cat([share.text for share in shares]), whole.text)


def test_a_sweep_yields_every_pair_once_with_its_first_caption(pairs: Pairs) -> None:
    for world_size in (1, 2):
        batches = PairBatches(pairs, 32, seed=0, device=CPU)
        shares = [copies(batches.sweep(rank, world_size)) for rank in range(world_size)]
        images = [share.image for step in zip(*shares, strict=True) for share in step]
        texts = [share.text for step in zip(*shares, strict=True) for share in step]
        assert torch.equal(torch.cat(images), pairs.vision.embeddings[torch.from_numpy(pairs.vision_rows)])
        first = torch.from_numpy(pairs.caption_rows[pairs.caption_start[:-1]])
        assert torch.equal(torch.cat(texts), pairs.language.embeddings[first])


class TestOrderByParts:
    """40 parts of 20 images, with captions in 7 parts."""

    @pytest.fixture
    def pairs(self, tmp_path: Path) -> Pairs:
        uris = support.write_feature_sets(tmp_path, pairs=800, parts=(40, 7))
        return join(*map(open_features, uris))

    def rows(self, batches: PairBatches, epoch: int) -> np.ndarray:
        """(steps, batch) pair numbers of an epoch; a key ends with the number of its pair."""
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        return np.array([[int(key[-6:]) for key in batches.keys(step)] for step in steps])

    @pytest.mark.parametrize(("size", "steps"), [(80, 10), (50, 16), (7, 114), (800, 1)])
    def test_an_epoch_has_every_pair_at_most_once(self, pairs: Pairs, size: int, steps: int) -> None:
        batches = PairBatches(pairs, size, seed=0, device=CPU, order="parts")
        rows = self.rows(batches, 3)
        assert rows.shape == (steps, size)
        assert len(np.unique(rows)) == rows.size

    def test_a_batch_has_few_parts_and_as_many_pairs_of_each_stream(self, pairs: Pairs) -> None:
        batches = PairBatches(pairs, 80, seed=0, device=CPU, order="parts")
        for rows in self.rows(batches, 0):
            parts = rows // 20
            # A stream has five pairs in each batch, from one or two parts.
            assert len(np.unique(parts)) <= 32
            assert all(len(np.unique(of_stream)) <= 2 for of_stream in parts.reshape(16, 5))

    def test_parts_and_their_pairs_are_shuffled_in_each_epoch(self, pairs: Pairs) -> None:
        first, second, again, other = (
            self.rows(PairBatches(pairs, 80, seed, CPU, order="parts"), epoch)
            for seed, epoch in ((0, 0), (0, 1), (0, 0), (1, 0))
        )
        assert np.array_equal(first, again)
        for rows in (second, other):
            assert not np.array_equal(first // 20, rows // 20)
        for rows in (first, second, other):
            assert (np.diff(rows.T.reshape(16, 5 * 10)) != 1).mean() > 0.8


def test_every_caption_is_drawn_over_epochs_and_the_same_ones_for_a_seed(pairs: Pairs) -> None:
    def drawn(seed: int) -> list[set[int]]:
        found: list[set[int]] = [set() for _ in range(len(pairs))]
        batches = PairBatches(pairs, len(pairs), seed=seed, device=CPU)
        rows = {tuple(row): i for i, row in enumerate(pairs.language.embeddings.tolist())}
        for epoch in range(40):
            of_image = {
                key: tuple(text)
                for key, text in zip(batches.keys(epoch), batches.batch(epoch, 0, 1).text.tolist(), strict=True)
            }
            for i, key in enumerate(pairs.keys):
                found[i].add(rows[of_image[key]])
        return found

    own = [set(rows.tolist()) for rows in np.split(pairs.caption_rows, pairs.caption_start[1:-1])]
    assert drawn(0) == drawn(0) == own


def test_an_error_while_prefetching_is_raised_to_the_consumer(pairs: Pairs) -> None:
    batches = PairBatches(pairs, 32, seed=0, device=CPU).prefetch([0, -(10**9)], 0, 1)
    next(batches)
    with pytest.raises(ValueError, match="non-negative"):
        next(batches)


class TestDrawn:
    """A number of the training pairs, for studies of the size of the data."""

    def test_of_a_smaller_number_are_among_those_of_a_larger(self, pairs: Pairs) -> None:
        sizes = [2, 20, 150, len(pairs)]
        kept = [set(drawn(pairs, size, seed=3).keys) for size in sizes]
        assert [len(keys) for keys in kept] == sizes
        assert all(small < large for small, large in itertools.pairwise(kept))
        assert drawn(pairs, None, seed=3) is pairs

    def test_differ_by_seed_and_not_by_the_order_of_rows(self, pairs: Pairs) -> None:
        first, again, other = (set(drawn(pairs, 100, seed).keys) for seed in (0, 0, 1))
        assert first == again != other
        turned = dataclasses.replace(
            pairs,
            vision_rows=pairs.vision_rows[::-1],
            caption_start=np.concatenate([[0], np.cumsum(np.diff(pairs.caption_start)[::-1])]),
        )
        assert set(drawn(turned, 100, 0).keys) == first

    def test_are_not_more_than_there_are(self, pairs: Pairs) -> None:
        with pytest.raises(
            RequestError, match=r"`alignment.training_pairs` is 204, but there are 203 pairs to train on"
        ):
            drawn(pairs, 204, seed=0)
