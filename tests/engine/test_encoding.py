"""The actor of an extraction, without Ray: encoders share models, and each stages only missing chunks."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

import support
from sharelock_ray.documents import read_document
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.energy import EnergyMeter
from sharelock_ray.engine.encoding import ChunkReport, _Encode, _Work
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.engine.stream import packed
from sharelock_ray.extraction.chunks import Chunk, cut, decode
from sharelock_ray.features.writer import FeatureSetWriter, PartRecord
from sharelock_ray.sources.webdataset import WebDatasetSource


@pytest.fixture
def specs(vision_spec: VisionSpec, language_spec: LanguageSpec, models: Path) -> list[VisionSpec | LanguageSpec]:
    """A vision encoder, three encoders of one language model, and another language model."""
    changes = [{}, {"layer": 1, "name": "layer"}, {"final_norm": False, "pooling": "mean", "name": "raw"}]
    return [
        vision_spec,
        *(language_spec.model_copy(update=change) for change in changes),
        support.tiny_language(models, "encoder"),
    ]


@pytest.fixture
def chunk(tmp_path: Path, vision_spec: VisionSpec) -> Chunk:
    source = WebDatasetSource(urls=support.write_pairs(tmp_path / "data", shards=1, samples=6, bad=True))
    return decode(next(cut(source, source.shards()[0], 6)), {vision_spec.preprocessing})


def run(
    folder: Path,
    specs: Sequence[VisionSpec | LanguageSpec],
    chunk: Chunk,
    missing: list[int],
    energy: EnergyMeter | None = None,
) -> tuple[_Encode, list[FeatureSetWriter], ChunkReport]:
    writers = [FeatureSetWriter(str(folder / spec.name), spec.modality, spec.stored_dtype) for spec in specs]
    actor = _Encode(specs, writers, ExtractionOptions())
    actor._energy = energy or actor._energy
    table = actor(packed(_Work(chunk, list(range(len(specs))), missing, 0.0), arrays=1))
    return actor, writers, pickle.loads(table["report"][0].as_py())


def staged(writer: FeatureSetWriter) -> dict[str, object]:
    """The sealed part's content, without fields that differ between runs."""
    writer.seal(0)
    (part,) = Path(writer.uri).glob("part-*.parquet")
    return {"data": part.read_bytes(), "rejects": [p.read_bytes() for p in Path(writer.uri).glob("rejects/*")]}


def test_encoders_that_differ_in_their_reading_share_one_model(
    tmp_path: Path, specs: list[VisionSpec | LanguageSpec], chunk: Chunk
) -> None:
    actor, writers, report = run(tmp_path / "together", specs, chunk, missing=[0, 1, 2, 3, 4])
    assert [group.members for group in actor._groups] == [(0,), (1, 2, 3), (4,)]
    assert report.rejects == 5
    assert report.tokens == sum(run(tmp_path / "each", [specs[i]], chunk, missing=[0])[2].tokens for i in (1, 4))
    for i, writer in enumerate(writers):
        _, (alone,), _ = run(tmp_path / "alone", [specs[i]], chunk, missing=[0])
        assert staged(writer) == staged(alone)


def test_stages_only_missing_chunks(tmp_path: Path, specs: list[VisionSpec | LanguageSpec], chunk: Chunk) -> None:
    _, writers, report = run(tmp_path, specs, chunk, missing=[2])
    assert [writer.staged_part(0).chunks for writer in writers] == [set(), set(), {0}, set(), set()]
    assert (report.encoders, report.rejects) == ((0, 1, 2, 3, 4), 1)


def test_encoders_of_one_model_share_its_energy(
    tmp_path: Path, specs: list[VisionSpec | LanguageSpec], chunk: Chunk
) -> None:
    # Each model takes 12 J, and the actor's half GPU is charged 6 J; three encoders share the second model.
    counter = iter([100.0, 112.0, 112.0, 124.0, 124.0, 136.0])
    _, writers, _ = run(tmp_path / "gpu", specs, chunk, [0, 1, 2, 3, 4], EnergyMeter(0.5, lambda: next(counter)))
    assert [joules_of(writer) for writer in writers] == [6, 2, 2, 2, 6]
    _, (writer,), _ = run(tmp_path / "cpu", specs[:1], chunk, missing=[0])
    assert joules_of(writer) is None


def joules_of(writer: FeatureSetWriter) -> float | None:
    writer.seal(0)
    return read_document(PartRecord, f"{writer.uri}/staging/00000.json").joules
