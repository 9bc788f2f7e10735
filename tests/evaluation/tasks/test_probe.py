"""A probe is scikit-learn's logistic regression, and its penalty is chosen on images that it did not see."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sharelock_ray.evaluation import ranks as ranks_module
from sharelock_ray.evaluation.tasks.probe import fit_probe, fit_probes, linear_probe, probe_ranks

NAMES = [f"class {c}" for c in range(5)]


def data(images: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Features of length 3 near the centres of their classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, images)
    features = np.random.default_rng(99).normal(size=(5, 12))[labels] + noise * generator.normal(size=(images, 12))
    return torch.from_numpy(3 * features / np.linalg.norm(features, axis=1, keepdims=True)).float(), labels


@pytest.mark.parametrize("penalty", [1e-2, 1e-4])
def test_is_logistic_regression_of_unit_vectors(penalty: float) -> None:
    features, labels = data(300, 0)
    probe = fit_probe(features, labels, 5, [penalty])
    oracle = LogisticRegression(C=1 / (penalty * 300), tol=1e-8, max_iter=5000).fit(features.numpy() / 3, labels)
    shares = torch.softmax(probe.logits(features), 1).numpy()
    np.testing.assert_allclose(shares, oracle.predict_proba(features.numpy() / 3), atol=5e-3)
    np.testing.assert_allclose(probe.weight, oracle.coef_, atol=1e-2 * np.abs(oracle.coef_).max())
    assert probe.held_out_accuracy is None
    assert probe.iterations > 3


def test_probes_that_are_fitted_together_are_those_that_are_fitted_alone() -> None:
    features, labels = data(300, 0)
    others = (labels + np.arange(300) % 2) % 3
    together = fit_probes(features, np.stack([labels, others], 1), (5, 3), [1e-3])
    alone = fit_probe(features, labels, 5, [1e-3]), fit_probe(features, others, 3, [1e-3])
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(
            torch.softmax(one.logits(features), 1), torch.softmax(other.logits(features), 1), atol=5e-3, rtol=0
        )


def test_penalty_of_several_probes_is_the_best_of_all_together() -> None:
    features, labels = data(200, 0, noise=2.0)
    first, second = fit_probes(features, np.stack([labels, labels % 2], 1), (5, 2), (1.0, 1e-2, 1e-8), seed=3)
    assert first.penalty == second.penalty
    assert None not in (first.held_out_accuracy, second.held_out_accuracy)


def test_penalty_is_the_best_on_held_out_images() -> None:
    features, labels = data(200, 0, noise=2.0)
    penalties = (1.0, 1e-2, 1e-8)
    probe = fit_probe(features, labels, 5, penalties, seed=3)
    order = np.random.default_rng(3).permutation(200)
    held_out, fitted = order[:20], order[20:]
    accuracies = {}
    for penalty in penalties:
        found = fit_probe(features[fitted], labels[fitted], 5, [penalty])
        accuracies[penalty] = np.mean(probe_ranks(found, features[held_out], labels[held_out]).ahead == 0)
    assert accuracies[probe.penalty] == max(accuracies.values()) == pytest.approx(probe.held_out_accuracy)
    # All images are in the final fit.
    whole = fit_probe(features, labels, 5, [probe.penalty])
    torch.testing.assert_close(probe.logits(features), whole.logits(features), atol=5e-2, rtol=0)


def test_is_scored_on_other_images() -> None:
    (training, known), (features, labels) = data(120, 0), data(100, 1)
    found, samples = linear_probe(training, known, features, labels, NAMES)
    predicted = fit_probe(training, known, 5).logits(features).argmax(1).numpy()
    assert samples.predicted.tolist() == predicted.tolist()
    assert found.top_1.value == np.mean(samples.ahead == 0) == np.mean(predicted == labels)
    assert 0.5 < found.top_1.value < 1
    assert (found.images, found.training_images, found.candidates, found.tied) == (100, 120, 5, 0)
    assert found.held_out_accuracy is not None
    assert found.seed == 0
    assert linear_probe(training, known, features, labels, NAMES, [1.0])[0].seed is None


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = data(100, 0)
    whole = fit_probe(features, labels, 5, [1e-3])
    monkeypatch.setattr(ranks_module, "_BLOCK", 7)
    torch.testing.assert_close(fit_probe(features, labels, 5, [1e-3]).weight, whole.weight, atol=1e-2, rtol=0)


def test_a_class_without_training_images_is_not_predicted() -> None:
    features, labels = data(100, 0)
    probe = fit_probe(features[labels < 4], labels[labels < 4], 5, [1e-3])
    assert not (probe.logits(features).argmax(1) == 4).any()


def test_too_few_images_are_refused() -> None:
    features, labels = data(1, 0)
    with pytest.raises(ValueError, match="another to hold out"):
        fit_probe(features, labels, 5)
    probe = fit_probe(features, labels, 5, [1.0])
    with pytest.raises(ValueError, match="at least one image to score"):
        probe_ranks(probe, features[:0], labels[:0])
