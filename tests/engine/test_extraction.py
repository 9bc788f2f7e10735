"""Extraction through Ray Data: every input ends in exactly one place, also after repeats and interruptions."""

import dataclasses
import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import support
from sharelock_ray import storage
from sharelock_ray.encoders.images import decode_image
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.resolved import resolve
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.engine.extraction import ExtractionJob, extract
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.extraction.chunks import cut, decode, encode_vision
from sharelock_ray.extraction.report import ChunkReport
from sharelock_ray.features.soundness import audit
from sharelock_ray.features.state import read_live
from sharelock_ray.features.writer import FeatureSetWriter
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.sample import Sample
from sharelock_ray.sources.webdataset import WebDatasetSource

OPTIONS = ExtractionOptions(chunk_size=4)


@pytest.fixture
def job(tmp_path: Path, vision_spec: VisionSpec, language_spec: LanguageSpec) -> ExtractionJob:
    source = WebDatasetSource(urls=support.write_pairs(tmp_path / "data", shards=2, samples=10, bad=True))
    return ExtractionJob(
        str(tmp_path / "features"), "pairs", "train", source, (resolve(vision_spec), resolve(language_spec))
    )


def inputs(job: ExtractionJob) -> list[Sample]:
    return [sample for shard in job.source.shards() for sample in job.source.read(shard)]


@pytest.mark.usefixtures("local_ray")
class TestExtract:
    def test_stores_the_embeddings_of_each_encoder_alone(self, job: ExtractionJob) -> None:
        vision, language = extract(job, OPTIONS)
        spec_v, spec_l = (encoder.spec for encoder in job.encoders)
        samples = {sample.key: sample for sample in inputs(job)}
        pixels = np.stack([decode_image(samples[key].image, spec_v.preprocessing) for key in vision.keys])
        alone = VisionEncoder(spec_v).encode(pixels)
        np.testing.assert_allclose(vision.embeddings.float(), alone, rtol=2e-3, atol=1e-4)
        texts = [samples[key].captions[0] for key in language.keys]
        alone = LanguageEncoder(spec_l).encode(texts)
        np.testing.assert_allclose(language.embeddings.float(), alone, rtol=2e-3, atol=1e-4)
        assert language.columns["text"].tolist() == texts
        assert vision.columns["label"].tolist() == [samples[key].label for key in vision.keys]

    def test_bad_inputs_become_rejects_and_the_run_continues(self, job: ExtractionJob) -> None:
        vision, language = extract(job, OPTIONS)
        assert [(r["key"], r["stage"], r["error"]) for r in vision.rejects.to_pylist()] == [
            ("00000/0000", "decode", "UnidentifiedImageError"),
            ("00001/0000", "decode", "UnidentifiedImageError"),
        ]
        assert [(r["key"], r["stage"], r["error"]) for r in language.rejects.to_pylist()] == [
            ("00000/0001", "read", "MissingCaption"),
            ("00001/0001", "read", "MissingCaption"),
        ]
        keys = [sample.key for sample in inputs(job)]
        for feature_set in (vision, language):
            assert audit(feature_set, keys).problems == []
            assert (feature_set.manifest.rows, feature_set.manifest.rejects) == (18, 2)

    def test_another_layout_of_the_same_pairs_gives_the_same_embeddings(
        self, job: ExtractionJob, tmp_path: Path
    ) -> None:
        samples = [sample for sample in inputs(job) if sample.captions]
        columns = {
            "key": [sample.key.replace("/", "-") for sample in samples],
            "jpg": [sample.image for sample in samples],
            "caption": [sample.captions[0] for sample in samples],
        }
        pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
        parquet = dataclasses.replace(job, source=ParquetSource(urls=str(tmp_path / "*.parquet")), dataset="parquet")
        for ours, theirs in zip(extract(parquet, OPTIONS), extract(job, OPTIONS), strict=True):
            rows = {key: row for row, key in enumerate(theirs.keys)}
            same = [rows[key.removeprefix("pairs/").replace("-", "/")] for key in ours.keys]
            torch.testing.assert_close(ours.embeddings, theirs.embeddings[same], rtol=2e-3, atol=1e-3)

    def test_a_second_run_changes_no_file(self, job: ExtractionJob) -> None:
        first = extract(job, OPTIONS)
        before = {path: path.stat().st_mtime_ns for path in Path(job.root).rglob("*") if path.is_file()}
        assert [s.manifest for s in extract(job, OPTIONS)] == [s.manifest for s in first]
        assert {path: path.stat().st_mtime_ns for path in Path(job.root).rglob("*") if path.is_file()} == before

    def test_an_encoder_added_later_changes_no_other_set(self, job: ExtractionJob, models: Path) -> None:
        first = extract(job, OPTIONS)
        other = support.tiny_language(models, "encoder")
        more = ExtractionJob(job.root, job.dataset, job.split, job.source, (*job.encoders, resolve(other)))
        sets = extract(more, OPTIONS)
        assert [s.manifest for s in sets[:2]] == [s.manifest for s in first]
        assert sets[2].manifest.rows == 18

    def test_a_tar_replaced_during_the_run_ends_it_and_loses_nothing(self, job: ExtractionJob, tmp_path: Path) -> None:
        tars = [tmp_path / "data" / f"0000{part}.tar" for part in (0, 1)]
        kept = [tar.read_bytes() for tar in tars]
        replaced: list[int] = []

        def replace(report: ChunkReport) -> None:
            if not replaced:
                replaced.append(report.part)
                support.write_tar(tars[report.part], {"0000.jpg": support.jpeg(), "0000.txt": b"a red circle."})

        with pytest.raises(RunError, match=r"0\.tar was changed after|1\.tar was changed after") as error:
            extract(job, OPTIONS, watch=replace)
        part = replaced[0]
        assert tars[part].name in str(error.value)
        assert "\n" not in str(error.value)
        # Its staged chunks are removed, and no file marks the part as complete.
        assert {(p.name, p.parent.name) for p in Path(job.root).rglob("*") if p.name == f"0000{part}"} == set()
        with pytest.raises(RequestError, match="begun from other inputs"):
            extract(job, OPTIONS)
        tars[part].write_bytes(kept[part])
        assert [s.manifest.rows for s in extract(job, OPTIONS)] == [18, 18]

    def test_changed_inputs_cannot_mix_with_begun_work(self, job: ExtractionJob, tmp_path: Path) -> None:
        begun = {"listing": [], "chunk_size": 4}
        storage.write_json(storage.join(job.uri(job.encoders[0]), "staging", "begun.json"), begun)
        with pytest.raises(RequestError, match="begun from other inputs"):
            extract(job, OPTIONS)

    def test_a_run_with_another_chunk_size_continues_the_first(self, job: ExtractionJob, tmp_path: Path) -> None:
        whole = extract(dataclasses.replace(job, root=str(tmp_path / "whole")), OPTIONS)
        # The state after a kill: one encoder has staged the first chunk of the first part, the other nothing.
        shards = job.source.shards()
        spec = job.encoders[0].spec
        writer = FeatureSetWriter(job.uri(job.encoders[0]), spec.modality, spec.stored_dtype)
        writer.start(shards, 4)
        chunk = decode(next(cut(job.source, shards[0], 4)), {spec.preprocessing})
        (encoded,) = encode_vision(VisionEncoder(spec), chunk, spec.preprocessing)
        writer.stage(0, 0, False, shards[0].uri, encoded)
        sets = extract(job, ExtractionOptions(chunk_size=7, image_batch_size=3, token_budget=20))
        keys = [sample.key for sample in inputs(job)]
        for ours, theirs in zip(sets, whole, strict=True):
            assert audit(ours, keys).problems == []
            assert ours.manifest.keys_sha256 == theirs.manifest.keys_sha256
            assert support.units_in_the_last_place(ours.embeddings, theirs.embeddings) <= 1
        assert sets[0].manifest.parts[0].sha256 == whole[0].manifest.parts[0].sha256

    def test_publishes_progress_before_the_first_chunk(
        self, job: ExtractionJob, tmp_path: Path, said: io.StringIO
    ) -> None:
        uris = [job.uri(encoder) for encoder in job.encoders]
        live_states = []
        extract(job, OPTIONS, watch=lambda report: live_states.append([read_live(uri) for uri in uris]))
        assert all(live is not None and live.age < 60 for live in live_states[0])
        assert "starts workers, which load tiny-resnet, tiny-decoder" in said.getvalue()

    def test_a_part_that_cannot_be_sealed_ends_the_run_early(self, job: ExtractionJob, tmp_path: Path) -> None:
        source = WebDatasetSource(urls=support.write_pairs(tmp_path / "many", shards=60, samples=2))
        job = dataclasses.replace(job, source=source)
        # A folder blocks the path of the first part.
        storage.write_bytes(storage.join(job.uri(job.encoders[0]), "part-00000.parquet", "a"), b"")
        seen = []

        def watch(report: ChunkReport) -> None:
            seen.append(report)
            time.sleep(0.2)

        with pytest.raises(RunError, match=r"^extract train failed: IsADirectoryError"):
            extract(job, OPTIONS, watch)
        assert len(seen) < 60

    def test_more_resources_than_available_fail_at_once(self, job: ExtractionJob) -> None:
        with pytest.raises(RequestError, match="needs 1 GPU"):
            extract(job, ExtractionOptions(num_gpus=1))
