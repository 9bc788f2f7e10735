"""Rows of parts that are read from storage as batches need them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import support
from sharelock_ray.batches import sampling as batches_module
from sharelock_ray.batches.placement import MappedRows, Placement, Rows
from sharelock_ray.batches.sampling import PairBatches
from sharelock_ray.batches.streaming import Piece, StreamedRows, read_here
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet, Pairs, join, open_features

CPU = torch.device("cpu")
STORAGE, HOST = Placement("storage", "as the test wants it"), Placement("host", "as the test wants it")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, FeatureSet]:
    """120 pairs in 12 parts of images and 5 of texts."""
    return tuple(map(open_features, support.write_feature_sets(tmp_path_factory.mktemp("sets"), 120, parts=(12, 5))))


@pytest.fixture(scope="module")
def pairs(sets: tuple[FeatureSet, FeatureSet]) -> Pairs:
    return join(*sets)


class Watched:
    """Reads, and notes what was asked for and how far."""

    def __init__(self) -> None:
        self.asked: list[list[Piece]] = []
        self.read = 0

    def __call__(self, sets: tuple[FeatureSet, FeatureSet], pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
        self.asked.append(list(pieces))
        for values in read_here(sets, pieces):
            self.read += 1
            yield values


def random_batches(sizes: list[int], seed: int = 0) -> list[Rows]:
    """Rows of so many random pairs each, none of them twice."""
    shuffled = [np.random.default_rng([seed, side]).permutation(120) for side in (0, 1)]
    ends = np.cumsum(sizes)
    return [(shuffled[0][end - n : end], shuffled[1][end - n : end]) for n, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", [[120], [30, 30, 30], [1, 17, 0, 40], []], ids=str)
def test_are_those_of_the_mapped_files_in_any_order(sets: tuple[FeatureSet, FeatureSet], sizes: list[int]) -> None:
    passes = [random_batches(sizes, seed) for seed in range(3)]
    streamed = StreamedRows(*sets, CPU, STORAGE, read_here).gather(passes, max_rows=120)
    mapped = MappedRows(*sets, CPU, HOST).gather(passes, max_rows=120)
    compared = 0
    for (rows, ours), (others, theirs) in zip(streamed, mapped, strict=True):
        assert rows is others
        assert [values.dtype for values in ours] == [torch.float32, torch.float32]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        compared += 1
    assert compared == 3 * len(sizes)


def test_a_part_is_read_once_a_pass_and_only_the_rows_that_are_wanted(sets: tuple[FeatureSet, FeatureSet]) -> None:
    read = Watched()
    list(StreamedRows(*sets, CPU, STORAGE, read).gather([random_batches([20, 20]), random_batches([30])], max_rows=30))
    assert len(read.asked) == 2
    for pieces, rows in zip(read.asked, (40, 30), strict=True):
        assert len({(piece.side, piece.part) for piece in pieces}) == len(pieces)
        for side in (0, 1):
            assert sum(len(piece.rows) for piece in pieces if piece.side == side) == rows


def test_few_parts_are_read_before_they_are_needed(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_STREAMS", 2)
    read = Watched()
    store = StreamedRows(pairs.vision, pairs.language, CPU, STORAGE, read)
    batches = PairBatches(pairs, 10, 0, CPU, order="parts", store=store)
    seen = []
    for _ in batches.prefetch(range(12), 0, 1):
        seen.append(read.read)
    # Two parts of ten pairs at first, on either side, and a batch ahead; the last ones near the end.
    assert seen[0] <= 10
    assert seen[5] <= 14
    assert seen[-1] == len(read.asked[0]) == 17


@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_share_the_parts_among_them(pairs: Pairs, monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    monkeypatch.setattr(batches_module, "_STREAMS", 4)
    parts = []
    for rank in range(world_size):
        read = Watched()
        store = StreamedRows(pairs.vision, pairs.language, CPU, STORAGE, read)
        list(PairBatches(pairs, 40, 0, CPU, order="parts", store=store).prefetch(range(3), rank, world_size))
        parts += [piece.part for piece in read.asked[0] if piece.side == 0]
    assert sorted(parts) == list(range(12))


def test_a_sweep_reads_once_however_often_it_is_asked_for(pairs: Pairs) -> None:
    read = Watched()
    store = StreamedRows(pairs.vision, pairs.language, CPU, STORAGE, read)
    streamed, mapped = PairBatches(pairs, 32, 0, CPU, store=store), PairBatches(pairs, 32, 0, CPU)
    for rank in (0, 1, 0, 1):
        texts = [batch.text.clone() for batch in streamed.sweep(rank, 2)]
        expected = [batch.text.clone() for batch in mapped.sweep(rank, 2)]
        assert all(torch.equal(a, b) for a, b in zip(texts, expected, strict=True))
    assert len(read.asked) == 2


def test_a_damaged_part_reaches_whoever_asks(tmp_path: Path) -> None:
    sets = [open_features(uri) for uri in support.write_feature_sets(tmp_path, 120, parts=(12, 5))]
    (tmp_path / "vision" / "part-00003.parquet").write_bytes(b"")
    gathered = StreamedRows(*sets, CPU, STORAGE, read_here).gather([random_batches([120])], max_rows=120)
    with pytest.raises(RunError, match=r"part-00003\.parquet is not what its manifest says"):
        next(gathered)
