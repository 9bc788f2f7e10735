"""Training on features streamed from storage by Ray Data."""

from pathlib import Path

import numpy as np
import pytest
import ray
from ray.data import DataContext, ExecutionResources

import support
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.batches.streaming import Piece, read_here
from sharelock_ray.engine import feature_reads
from sharelock_ray.engine.feature_reads import read_by_tasks
from sharelock_ray.engine.training import train
from sharelock_ray.engine.training_options import TrainingOptions
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import open_features
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train as train_alone

SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=2, width=32, dropout=0.1, activation="gelu"),
    global_batch_size=64,
    order="parts",
    # Two epochs.
    steps=10,
    warmup_steps=5,
    validation_fraction=0.2,
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return support.write_feature_sets(tmp_path_factory.mktemp("features"), pairs=600, parts=(12, 5))


@ray.remote
class Busy:
    """Holds CPUs."""


@pytest.mark.usefixtures("local_ray")
class TestStreamed:
    def test_gives_the_curve_of_one_process_with_mapped_features(
        self, tmp_path: Path, features: tuple[str, str]
    ) -> None:
        run, alone = RunFolder(str(tmp_path / "run")), RunFolder(str(tmp_path / "alone"))
        train(run, *features, SPEC, TrainingOptions(stream=True))
        assert run.data_placement() == "batches come from the storage (as asked)"
        train_alone(alone, *features, SPEC)
        assert alone.data_placement().startswith("batches come from the host")
        assert run.metrics() == alone.metrics()

    def test_pieces_keep_their_order(self, features: tuple[str, str]) -> None:
        sets = tuple(map(open_features, features))
        pieces = [Piece(side, part, np.arange(part, 9)) for part in (4, 0, 3) for side in (1, 0)]
        for ours, theirs in zip(read_by_tasks(sets, pieces), read_here(sets, pieces), strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
        assert list(read_by_tasks(sets, [])) == []

    def test_a_large_piece_comes_in_blocks(self, tmp_path: Path) -> None:
        # The piece has 12.8 MB.
        sets = tuple(map(open_features, support.write_feature_sets(tmp_path, pairs=50, dims=(64_000, 8))))
        (found,) = read_by_tasks(sets, [Piece(0, 0, np.arange(50))])
        assert np.array_equal(found, sets[0].embeddings)

    def test_a_damaged_part_is_one_clear_line(self, tmp_path: Path) -> None:
        uris = support.write_feature_sets(tmp_path, pairs=60, parts=(2, 1))
        (tmp_path / "vision" / "part-00001.parquet").write_bytes(b"")
        pieces = [Piece(0, part, np.arange(5)) for part in (0, 1)]
        with pytest.raises(RunError, match=r"^\S+part-00001\.parquet is not what its manifest says"):
            list(read_by_tasks(tuple(map(open_features, uris)), pieces))

    @pytest.mark.slow
    def test_a_fault_found_by_one_of_two_workers_is_one_clear_line(self, tmp_path: Path) -> None:
        uris = support.write_feature_sets(tmp_path, pairs=600, parts=(12, 5))
        (tmp_path / "vision" / "part-00003.parquet").write_bytes(b"")
        run = RunFolder(str(tmp_path / "run"))
        with pytest.raises(RunError, match=r"^\S+part-00003\.parquet is not what its manifest says"):
            train(run, *uris, SPEC, TrainingOptions(num_workers=2, num_cpus=0.5, stream=True))

    def test_stops_waiting_if_no_cpu_becomes_free(
        self, features: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sets = tuple(map(open_features, features))
        usual = feature_reads._FREE_CPU_TIMEOUT_S
        monkeypatch.setattr(feature_reads, "_FREE_CPU_TIMEOUT_S", 1)
        busy = Busy.options(num_cpus=ray.cluster_resources()["CPU"]).remote()
        ray.get(busy.__ray_ready__.remote())
        with pytest.raises(RunError, match=r"^no CPU was free for 1 s to read features on: add a node, or lower "):
            list(read_by_tasks(sets, [Piece(0, 0, np.arange(5))]))
        ray.kill(busy)
        monkeypatch.setattr(feature_reads, "_FREE_CPU_TIMEOUT_S", usual)
        assert len(list(read_by_tasks(sets, [Piece(0, 0, np.arange(5))]))) == 1

    @pytest.mark.slow
    def test_a_paused_stream_releases_its_cpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Four parts of 60 MB exceed the object store, which is limited here.
        uris = support.write_feature_sets(tmp_path, pairs=120, dims=(500_000, 8), parts=(4, 1))
        sets = tuple(map(open_features, uris))
        pieces = [Piece(0, part, np.arange(30)) for part in range(4)]
        limits = ExecutionResources(object_store_memory=128 << 20)
        monkeypatch.setattr(DataContext.get_current().execution_options, "resource_limits", limits)
        monkeypatch.setattr(feature_reads, "_FREE_CPU_TIMEOUT_S", 60)
        busy = Busy.options(num_cpus=ray.cluster_resources()["CPU"] - 1).remote()
        ray.get(busy.__ray_ready__.remote())
        first = read_by_tasks(sets, pieces)
        found = [next(first)]
        other = list(read_by_tasks(sets, pieces[:2]))
        found += list(first)
        ray.kill(busy)
        assert (len(found), len(other)) == (4, 2)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, other, strict=False))

    def test_requires_a_free_cpu_to_read(self, tmp_path: Path, features: tuple[str, str]) -> None:
        with pytest.raises(RequestError, match=r"needs 65 CPU.*one CPU must stay free to read"):
            train(RunFolder(str(tmp_path)), *features, SPEC, TrainingOptions(num_workers=64))
