"""Streaming: parts are read from storage when batches need them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import support
from sharelock_ray.batches import sampling as batches_module
from sharelock_ray.batches.placement import MappedRows, PairRows, Placement
from sharelock_ray.batches.sampling import PairBatches
from sharelock_ray.batches.streaming import Piece, StreamedRows, read_here
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet, Pairs, join, open_features

CPU = torch.device("cpu")
STORAGE, HOST = Placement("storage", "set by the test"), Placement("host", "set by the test")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, FeatureSet]:
    """120 pairs in 12 vision parts and 5 language parts."""
    return tuple(map(open_features, support.write_feature_sets(tmp_path_factory.mktemp("sets"), 120, parts=(12, 5))))


@pytest.fixture(scope="module")
def pairs(sets: tuple[FeatureSet, FeatureSet]) -> Pairs:
    return join(*sets)


class RecordingReader:
    """Reads pieces and records the requests and the number of pieces read."""

    def __init__(self) -> None:
        self.requests: list[list[Piece]] = []
        self.read = 0

    def __call__(self, sets: tuple[FeatureSet, FeatureSet], pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
        self.requests.append(list(pieces))
        for values in read_here(sets, pieces):
            self.read += 1
            yield values


def random_batches(sizes: list[int], seed: int = 0) -> list[PairRows]:
    """Random batches of these sizes; no pair occurs twice."""
    shuffled = [np.random.default_rng([seed, side]).permutation(120) for side in (0, 1)]
    ends = np.cumsum(sizes)
    return [(shuffled[0][end - n : end], shuffled[1][end - n : end]) for n, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", [[120], [30, 30, 30], [1, 17, 0, 40], []], ids=str)
def test_rows_equal_those_of_mapped_files_in_any_order(sets: tuple[FeatureSet, FeatureSet], sizes: list[int]) -> None:
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


def test_images_may_share_texts(sets: tuple[FeatureSet, FeatureSet]) -> None:
    batches = [(images, np.arange(60) % 7) for images, _ in random_batches([60, 60])]
    reader = RecordingReader()
    streamed = StreamedRows(*sets, CPU, STORAGE, reader).gather([batches], max_rows=60)
    for (rows, ours), (_, theirs) in zip(
        streamed, MappedRows(*sets, CPU, HOST).gather([batches], max_rows=60), strict=True
    ):
        assert torch.equal(ours[1], theirs[1]), rows
    assert sum(len(piece.rows) for piece in reader.requests[0] if piece.side == 1) == 7


def test_a_part_is_read_once_per_pass_and_only_the_rows_needed(sets: tuple[FeatureSet, FeatureSet]) -> None:
    read = RecordingReader()
    list(StreamedRows(*sets, CPU, STORAGE, read).gather([random_batches([20, 20]), random_batches([30])], max_rows=30))
    assert len(read.requests) == 2
    for pieces, rows in zip(read.requests, (40, 30), strict=True):
        assert len({(piece.side, piece.part) for piece in pieces}) == len(pieces)
        for side in (0, 1):
            assert sum(len(piece.rows) for piece in pieces if piece.side == side) == rows


def test_few_parts_are_read_before_they_are_needed(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_STREAMS", 2)
    read = RecordingReader()
    store = StreamedRows(pairs.vision, pairs.language, CPU, STORAGE, read)
    batches = PairBatches(pairs, 10, 0, CPU, order="parts", store=store)
    seen = []
    for _ in batches.prefetch(range(12), 0, 1):
        seen.append(read.read)
    # Two parts of ten pairs on each side for the first batch, plus one prefetched batch; the last parts near the end.
    assert seen[0] <= 10
    assert seen[5] <= 14
    assert seen[-1] == len(read.requests[0]) == 17


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_part_is_read_by_one_worker(pairs: Pairs, monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    monkeypatch.setattr(batches_module, "_STREAMS", 4)
    parts = []
    for rank in range(world_size):
        read = RecordingReader()
        store = StreamedRows(pairs.vision, pairs.language, CPU, STORAGE, read)
        list(PairBatches(pairs, 40, 0, CPU, order="parts", store=store).prefetch(range(3), rank, world_size))
        parts += [piece.part for piece in read.requests[0] if piece.side == 0]
    assert sorted(parts) == list(range(12))


def test_repeated_sweeps_read_once(pairs: Pairs) -> None:
    read = RecordingReader()
    store = StreamedRows(pairs.vision, pairs.language, CPU, STORAGE, read)
    streamed, mapped = PairBatches(pairs, 32, 0, CPU, store=store), PairBatches(pairs, 32, 0, CPU)
    for rank in (0, 1, 0, 1):
        texts = [batch.text.clone() for batch in streamed.sweep(rank, 2)]
        expected = [batch.text.clone() for batch in mapped.sweep(rank, 2)]
        assert all(torch.equal(a, b) for a, b in zip(texts, expected, strict=True))
    assert len(read.requests) == 2


def test_a_damaged_part_is_an_error_for_the_consumer(tmp_path: Path) -> None:
    sets = [open_features(uri) for uri in support.write_feature_sets(tmp_path, 120, parts=(12, 5))]
    (tmp_path / "vision" / "part-00003.parquet").write_bytes(b"")
    gathered = StreamedRows(*sets, CPU, STORAGE, read_here).gather([random_batches([120])], max_rows=120)
    with pytest.raises(RunError, match=r"part-00003\.parquet is not what its manifest says"):
        next(gathered)
