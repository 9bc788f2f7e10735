"""Training on one process: it learns, goes on after an interruption as if there had been none, and stops in time."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ranks
import support
from sharelock_ray.alignment.batches import PairBatches, split_validation
from sharelock_ray.alignment.checkpoint import load_heads, read_checkpoint
from sharelock_ray.alignment.optimizer import Adam
from sharelock_ray.alignment.run import RunFolder
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.alignment.step import learning_rate
from sharelock_ray.alignment.train import train
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import join, open_features

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
    return support.write_feature_sets(tmp_path_factory.mktemp("features"), pairs=300)


def final_weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_heads(run.last, read_checkpoint(run.last)).state_dict()


def on_rank(rank: int, world_size: int, folder: str, features: tuple[str, str], specs: list[dict]) -> int:
    for index, spec in enumerate(specs):
        train(RunFolder(f"{folder}/{index}"), *features, AlignmentSpec.model_validate(spec))
    return rank


def test_learns_what_pairs_have_in_common(tmp_path: Path, features: tuple[str, str]) -> None:
    run = RunFolder(str(tmp_path))
    train(run, *features, SPEC)
    result = run.result()
    assert result.last_loss < result.first_loss - 1
    assert result.steps == 30
    assert result.training_pairs + result.validation_pairs == 300
    validated = [row["validation_loss"] for row in run.metrics() if "validation_loss" in row]
    assert result.best_validation_loss == min(validated)
    assert read_checkpoint(run.best).position.step == result.best_step


def test_goes_on_at_the_exact_step_with_the_same_losses(tmp_path: Path, features: tuple[str, str]) -> None:
    whole, broken = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "broken"))
    train(whole, *features, SPEC)

    class KilledError(Exception):
        pass

    # Dies in the middle of step 15, after the checkpoint of step 10.
    original = Adam.step
    calls = iter(range(100))

    def dying(self, *args, **kwargs):
        if next(calls) == 15:
            raise KilledError
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adam, "step", dying)
        with pytest.raises(KilledError):
            train(broken, *features, SPEC)
    assert read_checkpoint(broken.last).position.step == 10
    assert broken.result() is None
    train(broken, *features, SPEC)
    assert broken.metrics() == whole.metrics()
    for name, value in final_weights(whole).items():
        assert torch.equal(final_weights(broken)[name], value)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_gives_the_same_curve(tmp_path: Path, features: tuple[str, str], world_size: int) -> None:
    # Gaussian units: a ReLU at zero turns rounding into different curves.
    norms = ["batch", "layer", "none"]
    specs = [
        SPEC.model_copy(
            update={
                "language": ProjectionSpec(depth=2, width=32, dropout=0.1, norm=norm, activation="gelu"),
                "steps": 50,
                "evaluate_every": 50,
            }
        )
        for norm in norms
    ]
    for index, spec in enumerate(specs):
        train(RunFolder(str(tmp_path / "one" / str(index))), *features, spec)
    dumped = [spec.model_dump(mode="json") for spec in specs]
    ranks.on_ranks(world_size, on_rank, str(tmp_path / "several"), features, dumped)
    for index in range(len(norms)):
        one, several = (RunFolder(str(tmp_path / name / str(index))) for name in ("one", "several"))
        for ours, theirs in zip(several.metrics(), one.metrics(), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
        for name, value in final_weights(one).items():
            torch.testing.assert_close(final_weights(several)[name], value, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, features: tuple[str, str]) -> None:
    with pytest.raises(RunError, match=r"the loss is nan at step 10: lower `alignment\.learning_rate`"):
        train(RunFolder(str(tmp_path)), *features, SPEC.model_copy(update={"learning_rate": 1e30}))


def test_stops_early_without_a_gain(tmp_path: Path, features: tuple[str, str]) -> None:
    run = RunFolder(str(tmp_path))
    train(run, *features, SPEC.model_copy(update={"patience": 1, "min_delta": 100.0}))
    result = run.result()
    assert (result.stopped_early, result.steps) == (True, 20)


def test_validation_pairs_follow_from_their_keys_alone(tmp_path: Path, features: tuple[str, str]) -> None:
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


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    few = support.write_feature_sets(tmp_path / "features", pairs=3)
    with pytest.raises(RequestError, match="3 pairs leave"):
        train(RunFolder(str(tmp_path / "run")), *few, SPEC)


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    rates = [learning_rate(SPEC, step) for step in range(31)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[5] == pytest.approx(1e-3)
    assert rates[30] == pytest.approx(0, abs=1e-12)
    assert rates[5:] == sorted(rates[5:], reverse=True)
