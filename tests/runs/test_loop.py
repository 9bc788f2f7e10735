"""The training loop: it learns, resumes exactly after an interruption, and stops early or on non-finite values."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ranks
import support
from curves import (
    CURVES,
    train_curves,
    train_on_two_and_four,
    train_short,
    train_to_a_bad_row,
    train_with_a_slow_reader,
)
from sharelock_ray import storage
from sharelock_ray.alignment.optimizer import Adam
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.batches import placement as placement_module
from sharelock_ray.batches.sampling import PairBatches, split_validation
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.cache import folder_of
from sharelock_ray.features.featureset import Pairs, join, open_features
from sharelock_ray.runs.checkpoint import load_heads, read_checkpoint
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train
from sharelock_ray.sources.sample import Reject

SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=2, width=32, dropout=0.1),
    global_batch_size=64,
    steps=30,
    warmup_steps=5,
    evaluate_every=10,
    validation_fraction=0.2,
    learn_logit_scale=True,
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return support.write_feature_sets(tmp_path_factory.mktemp("features"), pairs=300, parts=(20, 7))


def weights(checkpoint: str) -> dict[str, torch.Tensor]:
    return load_heads(checkpoint, read_checkpoint(checkpoint)).state_dict()


@contextmanager
def killed_in(step: int) -> Iterator[None]:
    """Kills the training of the block during step `step` (counted from 0)."""

    class KilledError(Exception):
        pass

    original, calls = Adam.step, iter(range(step + 1))

    def dying(self, *args, **kwargs):
        if next(calls) == step:
            raise KilledError
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adam, "step", dying)
        with suppress(KilledError):
            yield
            pytest.fail("the training was not killed")


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory, features: tuple[str, str]) -> Path:
    """Folder with the runs of all curves on one, two and four workers: `<workers>/<curve>`."""
    folder = tmp_path_factory.mktemp("curves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARELOCK_CACHE", str(tmp_path_factory.mktemp("cache")))
        train_curves(str(folder), features, 1)
        ranks.on_ranks(4, train_on_two_and_four, str(folder), features)
    return folder


def test_the_loss_decreases(tmp_path: Path, features: tuple[str, str]) -> None:
    run = RunFolder(str(tmp_path))
    train(run, *features, SPEC)
    result = run.result()
    assert result.last_loss < result.first_loss - 1
    assert result.steps == 30
    assert result.training_pairs + result.validation_pairs == 300
    validated = [row["validation_loss"] for row in run.metrics() if "validation_loss" in row]
    assert result.best_validation_loss == min(validated)
    assert read_checkpoint(run.best).position.step == result.best_step


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema_decay": 0.9, "accumulation": 2, "positives": "text"}, {"order": "parts", "positives": "label"}],
    ids=str,
)
def test_a_resumed_training_has_the_same_losses_and_weights(
    tmp_path: Path, features: tuple[str, str], changes: dict[str, Any]
) -> None:
    whole, broken = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "broken"))
    spec = AlignmentSpec.model_validate(SPEC.model_dump() | changes)
    streams = spec.order == "parts"
    train(whole, *features, spec)

    with killed_in(15):
        train(broken, *features, spec, streams=streams)
    assert read_checkpoint(broken.last).position.step == 10
    assert broken.result() is None
    train(broken, *features, spec, streams=streams)
    assert broken.metrics() == whole.metrics()
    for folder in ("best", "last"):
        resumed, unbroken = (weights(getattr(run, folder)) for run in (broken, whole))
        assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())


def test_a_slow_store_gets_fewer_checkpoints_and_the_result_is_equal(
    tmp_path: Path, features: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, slow = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "slow"))
    spec = SPEC.model_copy(update={"evaluate_every": 1})
    train(whole, *features, spec)
    written, write = [], storage.write_bytes

    def slowly(uri: str, data: bytes) -> None:
        if uri.endswith(".safetensors"):
            written.append(uri)
            time.sleep(0.2)
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", slowly)
    with killed_in(25):
        train(slow, *features, spec)
    train(slow, *features, spec)
    assert len(written) < 20
    assert slow.metrics() == whole.metrics()
    for folder in ("best", "last"):
        ours, theirs = (weights(getattr(run, folder)) for run in (slow, whole))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("index", range(len(CURVES)), ids=map(str, CURVES))
def test_any_number_of_workers_gives_the_same_curve(curves: Path, world_size: int, index: int) -> None:
    one, several = (RunFolder(str(curves / str(workers) / str(index))) for workers in (1, world_size))
    assert len(one.metrics()) == 8
    for ours, theirs in zip(several.metrics(), one.metrics(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    for folder in ("best", "last"):
        ours, theirs = (weights(getattr(run, folder)) for run in (several, one))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_workers_that_read_different_checkpoints_read_again(tmp_path: Path, features: tuple[str, str]) -> None:
    alone, run = RunFolder(str(tmp_path / "alone")), RunFolder(str(tmp_path / "run"))
    train_short(alone, features)
    with killed_in(15):
        train_short(run, features)
    shutil.copytree(run.last, tmp_path / "run" / "earlier")
    with killed_in(15):
        train_short(run, features)
    ranks.on_ranks(2, train_with_a_slow_reader, run.uri, features)
    for ours, theirs in zip(run.metrics(), alone.metrics(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_best_contains_the_average_and_the_last_the_weights(curves: Path) -> None:
    averaged, plain = (RunFolder(str(curves / "1" / index)) for index in ("1", "0"))
    for run, differ in ((averaged, True), (plain, False)):
        assert read_checkpoint(run.best).position.step == read_checkpoint(run.last).position.step == 50
        best, last = weights(run.best), weights(run.last)
        assert any(not torch.equal(best[name], last[name]) for name in best) == differ


def test_a_training_resumes_from_an_object_store(tmp_path: Path, features: tuple[str, str], bucket: str) -> None:
    whole, broken = RunFolder(str(tmp_path)), RunFolder(f"{bucket}/run")
    train(whole, *features, SPEC)
    # Stops early at step 20, which stands for an interruption there.
    train(broken, *features, SPEC.model_copy(update={"patience": 1, "min_delta": 100.0}))
    for written in ("training.json", "training-request.json"):
        storage.remove(f"{bucket}/run/{written}")
    assert read_checkpoint(broken.last).position.step == 20
    train(broken, *features, SPEC)
    assert broken.metrics() == whole.metrics()
    for checkpoint in ("best", "last"):
        ours, theirs = (weights(f"{run.uri}/{checkpoint}") for run in (broken, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(storage.names(broken.tensorboard)) == 2


def test_a_non_finite_loss_ends_the_run(tmp_path: Path, features: tuple[str, str]) -> None:
    run = RunFolder(str(tmp_path))
    spec = SPEC.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(
        RunError, match=r"the loss is nan and its gradient nan at step 2, over .* last good .* none yet"
    ):
        train(run, *features, spec)
    report = storage.read_json(run.non_finite)
    batches = PairBatches(split_validation(join(*map(open_features, features)), 0.2)[0], 64, 0, torch.device("cpu"))
    assert (report["step"], report["keys"]) == (2, batches.keys(1))


def spoil(vision: str, row: int) -> None:
    """Writes a NaN into the node's copy, as faulty memory might. Extraction never stores such a row."""
    feature_set = open_features(vision)
    _ = feature_set.embeddings
    with (folder_of(feature_set.manifest) / "embeddings.bin").open("r+b") as stream:
        stream.seek(row * 24 * 4)
        stream.write(np.float32("nan").tobytes())


def test_the_error_for_a_non_finite_row_names_its_step_and_the_last_good_checkpoint(
    tmp_path: Path, features: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = PairBatches(split_validation(join(*map(open_features, features)), 0.2)[0], 64, 0, torch.device("cpu"))
    bad = int(np.flatnonzero(join(*map(open_features, features)).keys == batches.keys(2)[5])[0])
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
    spoil(features[0], bad)
    run = RunFolder(str(tmp_path / "run"))
    with pytest.raises(RunError, match="last, of step 2") as error:
        train(run, *features, SPEC.model_copy(update={"evaluate_every": 2}))
    report = storage.read_json(run.non_finite)
    assert batches.keys(2)[5] in report["keys"]
    assert report["step"] == 3
    assert "nan at step 3, over" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_rank_raises_before_the_main_rank_has_written_its_checkpoints(
    tmp_path: Path, features: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = join(*map(open_features, features))
    batches = PairBatches(split_validation(pairs, 0.2)[0], 62, 0, torch.device("cpu"))
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
    spoil(features[0], int(np.flatnonzero(pairs.keys == batches.keys(2)[5])[0]))
    said = ranks.on_ranks(2, train_to_a_bad_row, str(tmp_path / "run"), features)
    assert said[0] == said[1]
    assert "nan at step 3, over" in said[0]
    assert "last good checkpoint: " + str(tmp_path / "run" / "last, of step 2") in said[0]


def test_a_non_finite_validation_ends_the_run_before_a_checkpoint(
    tmp_path: Path, features: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = join(*map(open_features, features))
    bad = str(split_validation(pairs, 0.2)[1].keys[7])
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
    run = RunFolder(str(tmp_path / "run"))
    with killed_in(15):
        train(run, *features, SPEC)
    spoil(features[0], int(np.flatnonzero(pairs.keys == bad)[0]))
    with pytest.raises(RunError, match=f"loss is nan at step 20, because of the features of {bad}; last good"):
        train(run, *features, SPEC)
    assert read_checkpoint(run.last).position.step == read_checkpoint(run.best).position.step == 10


def test_a_training_with_other_settings_cannot_resume(tmp_path: Path, features: tuple[str, str]) -> None:
    run = RunFolder(str(tmp_path))
    with killed_in(15):
        train(run, *features, SPEC)
    with pytest.raises(RequestError, match=r"learning_rate: 0\.001 there, 0\.1 now"):
        train(run, *features, SPEC.model_copy(update={"learning_rate": 0.1}))


def test_early_stopping_without_a_gain(tmp_path: Path, features: tuple[str, str]) -> None:
    run = RunFolder(str(tmp_path))
    train(run, *features, SPEC.model_copy(update={"patience": 1, "min_delta": 100.0}))
    result = run.result()
    assert (result.stopped_early, result.steps) == (True, 20)


def test_recall_as_the_monitored_metric(tmp_path: Path, features: tuple[str, str]) -> None:
    run = RunFolder(str(tmp_path))
    train(run, *features, SPEC.model_copy(update={"monitor": "recall", "patience": 2, "steps": 300, "min_delta": 0.01}))
    result, rows = run.result(), [row for row in run.metrics() if "recall_at_1" in row]
    recalls = [row["recall_at_1"] for row in rows]
    best = recalls.index(max(recalls))
    assert result.stopped_early
    assert result.best_step == rows[best]["step"]
    assert result.best_validation_loss == rows[best]["validation_loss"]
    assert read_checkpoint(run.best).metrics["recall_at_1"] == max(recalls)


def test_validation_pairs_depend_only_on_their_keys(tmp_path: Path, features: tuple[str, str]) -> None:
    more = support.write_feature_sets(tmp_path, pairs=400)
    few, many = (split_validation(join(*map(open_features, sets)), 0.2)[1].keys for sets in (features, more))
    assert set(few) < set(many)
    assert len(many) == pytest.approx(80, abs=25)


def test_an_epoch_shows_every_pair_at_most_once(features: tuple[str, str]) -> None:
    pairs = join(*map(open_features, features))
    batches = PairBatches(pairs, 64, seed=0, device=torch.device("cpu"))
    assert batches.steps_per_epoch == 4
    epochs = [torch.cat([batches.batch(4 * epoch + i, 0, 1).image for i in range(4)]).numpy() for epoch in (0, 1)]
    for images in epochs:
        assert len(np.unique(images, axis=0)) == 256
    assert not np.array_equal(*epochs)


class TestFeaturesThatDoNotFitOnTheNode:
    @pytest.fixture(autouse=True)
    def _full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(placement_module, "room", lambda: 1000)

    def test_are_streamed_in_the_order_by_parts(self, tmp_path: Path, features: tuple[str, str]) -> None:
        run = RunFolder(str(tmp_path / "run"))
        train(run, *features, SPEC.model_copy(update={"order": "parts"}))
        assert run.data_placement().startswith(
            "batches come from the storage (0.0 GB of features, 0.0 GB free for them in "
        )
        assert not list((tmp_path / "cache").rglob("embeddings.bin"))

    def test_are_a_one_line_error_in_another_order(self, tmp_path: Path, features: tuple[str, str]) -> None:
        with pytest.raises(RunError, match=r"free space there, .*SHARELOCK_CACHE.*, or set `alignment\.order: parts`"):
            train(RunFolder(str(tmp_path / "run")), *features, SPEC)


def test_only_an_order_by_parts_can_be_streamed(tmp_path: Path, features: tuple[str, str]) -> None:
    with pytest.raises(RequestError, match=r"cannot be streamed in the order `global`: set `alignment\.order: parts`"):
        train(RunFolder(str(tmp_path)), *features, SPEC, streams=True)


def test_too_few_pairs_are_an_invalid_request(tmp_path: Path) -> None:
    few = support.write_feature_sets(tmp_path / "features", pairs=3)
    with pytest.raises(RequestError, match="3 pairs leave"):
        train(RunFolder(str(tmp_path / "run")), *few, SPEC)


def test_pictures_without_captions_are_an_invalid_request(tmp_path: Path) -> None:
    vision, _ = support.write_feature_sets(tmp_path / "features", pairs=3)
    missing = Reject("00000/000000", "read", "MissingCaption", "the sample has no caption among 0.jpg")
    spec = LanguageSpec(name="signal", model="none", stored_dtype="float32")
    nothing = support.encoded("language", [], rejects=[missing])
    language = support.write_parts(str(tmp_path / "features" / "none"), spec, [[nothing]])
    with pytest.raises(RequestError, match=r"none of its 1 inputs gave language features \(00000/000000: the"):
        train(RunFolder(str(tmp_path / "run")), vision, language, SPEC)


def test_sets_without_a_common_key_are_an_invalid_request(tmp_path: Path) -> None:
    vision, _ = support.write_feature_sets(tmp_path / "features", pairs=3)
    spec = LanguageSpec(name="signal", model="none", stored_dtype="float32")
    language = support.write_parts(str(tmp_path / "other"), spec, [[support.encoded("language", ["a", "b"])]])
    with pytest.raises(RequestError, match=r"no pair to train on: no key of \S+ is in \S+other"):
        train(RunFolder(str(tmp_path / "run")), vision, language, SPEC)


class TestPositives:
    @pytest.fixture
    def pairs(self, tmp_path: Path) -> Pairs:
        """Images 0 to 5 with labels 0, 1, 2, 0, 1, None; images 0 and 3 share one of their two captions."""
        keys = [f"00000/{i}" for i in range(6)]
        columns = {"key": keys, "label": [0, 1, 2, 0, 1, None]}
        texts = [text for i in range(6) for text in (f"caption {i % 3 if i in (0, 3) else i}", f"another {i}")]
        captions = {"key": sorted(2 * keys), "caption_id": [0, 1] * 6, "text": texts}
        chunks = {
            VisionSpec(name="v", model="none"): support.encoded("vision", keys, columns=columns),
            LanguageSpec(name="l", model="none"): support.encoded("language", captions["key"], columns=captions),
        }
        sets = [support.write_parts(str(tmp_path / spec.modality), spec, [[c]]) for spec, c in chunks.items()]
        return join(*map(open_features, sets))

    def ids(self, pairs: Pairs, positives: str) -> torch.Tensor | None:
        batches = PairBatches(pairs, 6, seed=0, device=torch.device("cpu"), positives=positives)
        (batch,) = batches.sweep(0, 1)
        return batch.positives

    def test_pairs_need_no_ids(self, pairs: Pairs) -> None:
        assert self.ids(pairs, "pair") is None

    def test_equal_texts_share_an_id(self, pairs: Pairs) -> None:
        ids = self.ids(pairs, "text")
        assert ids.dtype == torch.int64
        assert ids[0] == ids[3]
        assert len(ids.unique()) == 5

    def test_equal_labels_share_an_id_and_an_unlabelled_image_has_its_own(self, pairs: Pairs) -> None:
        ids = self.ids(pairs, "label")
        assert ids[0] == ids[3]
        assert ids[1] == ids[4]
        assert len(ids.unique()) == 4

    def test_ids_follow_the_drawn_caption(self, pairs: Pairs) -> None:
        batches = PairBatches(pairs, 6, seed=0, device=torch.device("cpu"), positives="text")
        drawn = [batches.batch(epoch, 0, 1) for epoch in range(12)]
        assert {len(batch.positives.unique()) for batch in drawn} == {5, 6}

    def test_missing_labels_are_an_invalid_request(self, tmp_path: Path, pairs: Pairs) -> None:
        keys = list(pairs.keys)
        chunk = support.encoded("vision", keys, columns={"key": keys, "label": [None] * 6})
        spec = VisionSpec(name="v", model="none")
        unlabelled = open_features(support.write_parts(str(tmp_path / "unlabelled"), spec, [[chunk]]))
        with pytest.raises(RequestError, match=r"`alignment\.positives` is label, but .* has no labels: use text"):
            self.ids(join(unlabelled, pairs.language), "label")


def test_trains_on_a_number_of_pairs_and_validates_on_the_same_ones(features: tuple[str, str], tmp_path: Path) -> None:
    whole, part = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "part"))
    train(whole, *features, SPEC)
    train(part, *features, SPEC.model_copy(update={"training_pairs": 100}))
    results = [result for result in (whole.result(), part.result()) if result is not None]
    assert [result.training_pairs for result in results] == [results[0].training_pairs, 100]
    assert results[0].training_pairs > 100
    assert results[0].validation_pairs == results[1].validation_pairs
