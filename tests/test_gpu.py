"""What only a GPU can show; CPU and GPU give the same, and several processes share one."""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import support
from sharelock_ray.alignment.distributed import Rows
from sharelock_ray.alignment.projection import GlobalBatch, dropout_scales
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.batches import placement as placement_module
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.resolved import resolve
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.engine.extraction import ExtractionJob, extract
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.engine.training import train
from sharelock_ray.engine.training_options import TrainingOptions
from sharelock_ray.engine.tuning import tune
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.soundness import audit
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train as train_alone
from sharelock_ray.sources.webdataset import WebDatasetSource
from sharelock_ray.study.queue import StudyQueue
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.study.trial_job import TrialJob
from sharelock_ray.study.trials import Trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Without dropout, because a GPU draws other masks than a CPU.
SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=3, width=32, activation="gelu"),
    global_batch_size=64,
    steps=40,
    warmup_steps=5,
    evaluate_every=10,
    validation_fraction=0.2,
    learn_logit_scale=True,
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return support.write_feature_sets(tmp_path_factory.mktemp("features"), pairs=300, parts=(20, 7))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A process that may take 64 MiB more than it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def near(metrics: list[dict[str, Any]], others: list[dict[str, Any]], tolerance: float) -> bool:
    return all(ours == pytest.approx(theirs, abs=tolerance) for ours, theirs in zip(metrics, others, strict=True))


class TestEncoders:
    @pytest.mark.parametrize("compiled", [False, True])
    def test_give_what_they_give_on_a_cpu(
        self, vision_spec: VisionSpec, language_spec: LanguageSpec, compiled: bool
    ) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
        texts = [" ".join(support.WORDS[: 1 + i % 9]) for i in range(50)]
        ways = [("cpu", False), ("cuda", compiled)]
        images = [VisionEncoder(vision_spec, device, 16, compiled=each).encode(pixels) for device, each in ways]
        captions = [LanguageEncoder(language_spec, device, 64, compiled=each).encode(texts) for device, each in ways]
        for on_cpu, on_gpu in (images, captions):
            np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)

    @pytest.mark.usefixtures("little_memory")
    def test_halve_their_batches_where_memory_does_not_suffice(self, vision_spec: VisionSpec) -> None:
        size = 96
        spec = vision_spec.model_copy(update={"image_size": size, "resize": size})
        pixels = np.random.default_rng(0).integers(0, 256, (1024, size, size, 3), dtype=np.uint8)
        encoder = VisionEncoder(spec, "cuda", 1024)
        encoded = encoder.encode_each(pixels)
        assert encoded.batch_reductions > 0
        assert encoder.batch_size < 1024
        alone = VisionEncoder(spec, "cuda", 16).encode(pixels)
        np.testing.assert_allclose(encoded.only(), alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cuts", [(2048,), (1, 4095, 4097)], ids=str)
def test_dropout_of_slices_is_that_of_the_whole(cuts: tuple[int, ...]) -> None:
    def scales(start: int, end: int) -> torch.Tensor:
        rows = Rows(start, end - start, 5000, (5000,))
        return dropout_scales(24, 0, GlobalBatch(rows, seed=0, step=3), 0.25, torch.device("cuda"))

    whole = scales(0, 5000)
    assert torch.equal(torch.cat([scales(a, b) for a, b in pairwise((0, *cuts, 5000))]), whole)
    assert whole.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float((whole == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory, features: tuple[str, str]) -> RunFolder:
    run = RunFolder(str(tmp_path_factory.mktemp("cpu")))
    train_alone(run, *features, SPEC)
    return run


class TestTraining:
    @pytest.mark.parametrize("kind", ["device", "host", "disk"])
    def test_has_the_curve_of_a_cpu_from_wherever_batches_come(
        self, tmp_path: Path, features: tuple[str, str], on_cpu: RunFolder, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(placement_module, "_DEVICE_SHARE", 1.0 if kind == "device" else 0.0)
        monkeypatch.setattr(placement_module, "_HOST_SHARE", 0.0 if kind == "disk" else 1.0)
        run = RunFolder(str(tmp_path))
        train_alone(run, *features, SPEC, "cuda")
        assert f"from the {kind}" in str(run.data_placement())
        assert near(run.metrics(), on_cpu.metrics(), 1e-3)

    def test_finds_what_the_one_before_left_on_the_gpu(self, tmp_path: Path, features: tuple[str, str]) -> None:
        device_cache = placement_module.DeviceCache()
        runs = [RunFolder(str(tmp_path / name)) for name in ("first", "second")]
        for run in runs:
            train_alone(run, *features, SPEC, "cuda", device_cache=device_cache)
            sets = [open_features(uri) for uri in features]
            assert device_cache.missing_nbytes(*sets) == 0
            assert device_cache.table(sets[0], torch.device("cuda")).is_cuda
        assert near(runs[0].metrics(), runs[1].metrics(), 1e-6)

    def test_streamed_has_the_curve_of_what_is_mapped(self, tmp_path: Path, features: tuple[str, str]) -> None:
        spec = SPEC.model_copy(update={"order": "parts"})
        streamed, mapped = RunFolder(str(tmp_path / "streamed")), RunFolder(str(tmp_path / "mapped"))
        train_alone(streamed, *features, spec, "cuda", streams=True)
        train_alone(mapped, *features, spec, "cuda")
        assert near(streamed.metrics(), mapped.metrics(), 1e-5)

    @pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"loss": "sigmoid"}, {"accumulation": 4}], ids=str)
    @pytest.mark.parametrize("compiled", [False, True])
    def test_learns(
        self, tmp_path: Path, features: tuple[str, str], changes: dict[str, object], compiled: bool
    ) -> None:
        language = SPEC.language.model_copy(update={"dropout": 0.1})
        spec = SPEC.model_copy(update=changes | {"language": language})
        run = RunFolder(str(tmp_path))
        train_alone(run, *features, spec, "cuda", compiled=compiled)
        result = run.result()
        assert result is not None
        assert result.last_loss < 0.7 * result.first_loss

    @pytest.mark.usefixtures("local_ray")
    def test_through_ray_with_nccl_is_the_same(self, tmp_path: Path, features: tuple[str, str]) -> None:
        alone, through_ray = RunFolder(str(tmp_path / "alone")), RunFolder(str(tmp_path / "ray"))
        train_alone(alone, *features, SPEC, "cuda")
        train(through_ray, *features, SPEC, TrainingOptions(use_gpu=True))
        assert near(through_ray.metrics(), alone.metrics(), 1e-5)


@pytest.mark.usefixtures("local_ray")
def test_two_actors_share_a_gpu_and_store_what_a_cpu_gives(
    tmp_path: Path, vision_spec: VisionSpec, language_spec: LanguageSpec
) -> None:
    source = WebDatasetSource(urls=support.write_pairs(tmp_path / "data", shards=4, samples=20, bad=True))
    job = ExtractionJob(str(tmp_path / "gpu"), "pairs", "train", source, (resolve(vision_spec), resolve(language_spec)))
    shared = ExtractionOptions(chunk_size=4, num_gpus=0.5, min_actors=2, max_actors=2)
    on_gpu = extract(job, shared)
    on_cpu = extract(dataclasses.replace(job, root=str(tmp_path / "cpu")), ExtractionOptions(chunk_size=4))
    keys = [sample.key for shard in source.shards() for sample in source.read(shard)]
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert audit(ours, keys).problems == []
        assert ours.manifest.joules is not None
        assert theirs.manifest.joules is None
        assert ours.keys.tolist() == theirs.keys.tolist()
        torch.testing.assert_close(ours.embeddings, theirs.embeddings, rtol=2e-3, atol=1e-3)


def study(folder: Path, features: tuple[str, str], gpus: float, **points: dict[str, int]) -> dict[str, Trial]:
    """The ended trials of a study of these heads, by name, each on a share of the GPU."""
    asked = TuningSpec.model_validate({"space": {"head": points}, "gpus_per_trial": gpus})

    def prepare(point: dict[str, Any], seed: int) -> TrialJob:
        trial = Trial(point=point, seed=seed, run=str(folder / point["head"]), state="running", gpus=gpus)
        return TrialJob(trial=trial, vision=features[0], language=features[1], spec=headed(point), device="cuda")

    def headed(point: dict[str, Any]) -> AlignmentSpec:
        return SPEC.model_copy(update={"language": SPEC.language.model_copy(update=points[point["head"]])})

    queue = StudyQueue("study", asked, str(folder), str(folder / "optuna.journal"), prepare)
    return {trial.point["head"]: trial for trial in tune(queue, asked, SPEC.steps, SPEC.evaluate_every)}


@pytest.mark.usefixtures("local_ray")
def test_trials_share_a_gpu_and_count_its_energy(tmp_path: Path, features: tuple[str, str]) -> None:
    heads = {f"of {depth}": {"depth": depth} for depth in (2, 3, 4, 5)}
    trials = study(tmp_path / "trials", features, 0.25, **heads)
    assert {trial.state for trial in trials.values()} == {"finished"}
    for name, head in heads.items():
        assert trials[name].device == torch.cuda.get_device_name()
        assert trials[name].joules > 0
        alone = RunFolder(str(tmp_path / name))
        spec = SPEC.model_copy(update={"language": SPEC.language.model_copy(update=head)})
        train_alone(alone, *features, spec, "cuda")
        assert near(RunFolder(trials[name].run).metrics(), alone.metrics(), 1e-4)


@pytest.fixture
def gpu_in_use() -> Iterator[None]:
    """Someone else leaves 6 GB of the GPU."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - 6 * 10**9), dtype=torch.uint8, device="cuda")
    yield
    del held
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("local_ray", "gpu_in_use")
def test_a_trial_too_large_for_a_gpu_is_recorded_and_the_study_goes_on(
    tmp_path: Path, features: tuple[str, str]
) -> None:
    # Two layers of 1.1 GB, thrice that for gradients and the optimizer.
    trials = study(tmp_path, features, 1, large={"depth": 4, "width": 16384}, small={"depth": 2})
    assert {name: trial.state for name, trial in trials.items()} == {"large": "out of memory", "small": "finished"}
