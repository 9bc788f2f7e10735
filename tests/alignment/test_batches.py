"""Batches: which pairs are in them, on any number of workers, and that gathering ahead changes nothing."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import support
from sharelock_ray.alignment.batches import Batch, PairBatches
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.features.featureset import Pairs, join, open_features

CPU = torch.device("cpu")
SPECS = (VisionSpec(name="made-up", model="none"), LanguageSpec(name="made-up", model="none"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """203 images, each with one to three captions, in another order."""
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
    """Batches that are good until the next, kept."""
    return [Batch(batch.image.clone(), batch.text.clone()) for batch in batches]


def images_of(pairs: Pairs, keys: list[str]) -> list[list[float]]:
    rows = {key: row for row, key in enumerate(pairs.vision.keys)}
    return pairs.vision.embeddings[[rows[key] for key in keys]].tolist()


def test_are_of_the_stored_type_and_belong_to_their_keys(pairs: Pairs) -> None:
    batches = PairBatches(pairs, 32, seed=0, device=CPU)
    batch = batches.batch(7, 0, 1)
    assert batch.image.dtype == batch.text.dtype == torch.float16
    assert batch.image.tolist() == images_of(pairs, batches.keys(7))


@pytest.mark.parametrize("world_size", [1, 3])
def test_gathered_ahead_are_the_same(pairs: Pairs, world_size: int) -> None:
    # Over the ends of two epochs of six steps.
    steps = range(4, 15)
    for rank in range(world_size):
        ahead = copies(PairBatches(pairs, 32, seed=1, device=CPU).ahead(steps, rank, world_size))
        one_by_one = PairBatches(pairs, 32, seed=1, device=CPU)
        assert len(ahead) == len(steps)
        for step, batch in zip(steps, ahead, strict=True):
            expected = one_by_one.batch(step, rank, world_size)
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.text, expected.text)


def test_of_all_ranks_together_are_the_batch_of_one(pairs: Pairs) -> None:
    whole = PairBatches(pairs, 32, seed=0, device=CPU).batch(3, 0, 1)
    for world_size in (2, 3, 5):
        shares = [PairBatches(pairs, 32, seed=0, device=CPU).batch(3, r, world_size) for r in range(world_size)]
        assert torch.equal(torch.cat([share.image for share in shares]), whole.image)
        assert torch.equal(torch.cat([share.text for share in shares]), whole.text)


def test_a_sweep_shows_every_pair_once_with_its_first_caption(pairs: Pairs) -> None:
    for world_size in (1, 2):
        batches = PairBatches(pairs, 32, seed=0, device=CPU)
        shares = [copies(batches.sweep(rank, world_size)) for rank in range(world_size)]
        images = [share.image for step in zip(*shares, strict=True) for share in step]
        texts = [share.text for step in zip(*shares, strict=True) for share in step]
        assert torch.equal(torch.cat(images), pairs.vision.embeddings[torch.from_numpy(pairs.vision_rows)])
        first = torch.from_numpy(pairs.caption_rows[pairs.caption_start[:-1]])
        assert torch.equal(torch.cat(texts), pairs.language.embeddings[first])


def test_draw_every_caption_in_time_and_the_same_one_from_the_same_seed(pairs: Pairs) -> None:
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


def test_what_fails_while_gathering_ahead_reaches_whoever_asks(pairs: Pairs) -> None:
    feed = PairBatches(pairs, 32, seed=0, device=CPU).ahead([0, -(10**9)], 0, 1)
    next(feed)
    with pytest.raises(ValueError, match="non-negative"):
        next(feed)
