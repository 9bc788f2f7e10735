"""Linear probe: logistic regression on frozen vision features, as in CLIP (arXiv 2103.00020, A.3).

On unit vectors x_i of class y_i it minimises

    mean over i of -log softmax(W x_i + b)[y_i]  +  penalty / 2 |W|^2

by L-BFGS of SciPy, which is the objective of scikit-learn's `LogisticRegression(C=1 / (penalty N))`. The penalty is the
one of a grid with the highest accuracy on held-out training images; the probe is then fitted to all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize

from sharelock_ray.evaluation.accuracy import Predictions, accuracies, label_ranks
from sharelock_ray.evaluation.ranks import blocks, units
from sharelock_ray.evaluation.result import ProbeResult, Ties
from sharelock_ray.progress import Progress

PENALTIES = tuple(10.0**power for power in range(-2, -8, -1))
"""From strong to weak: each fit starts from the one before."""
_HELD_OUT = 0.1
_ITERATIONS = 1000
_GRADIENT, _DECREASE = 1e-5, 1e-9
"""Largest element of the gradient, and relative decrease of a step, at which a fit ends: about those of float32."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe of unit vectors: `weight` is (C, D), `bias` is (C,)."""

    weight: torch.Tensor
    bias: torch.Tensor
    penalty: float
    iterations: int
    held_out_accuracy: float | None = None
    """Top-1 accuracy on held-out training images. None if there was nothing to choose."""

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C) logits of (N, D) features."""
        return torch.cat([units(features[rows]) @ self.weight.T + self.bias for rows in blocks(len(features))])


def linear_probe(
    training: torch.Tensor,
    training_labels: np.ndarray,
    features: torch.Tensor,
    labels: np.ndarray,
    class_names: Sequence[str],
    penalties: Sequence[float] = PENALTIES,
    ties: Ties = "strict",
    seed: int = 0,
) -> tuple[ProbeResult, Predictions]:
    """Fits a probe to training images and scores it on `features`.

    Args:
        training: (M, D) features of training images.
        training_labels: (M,)
        features: (N, D) features of test images.
        labels: (N,)
        class_names: C names.
        penalties: from strong to weak.
        seed: decides which training images are held out.

    Returns:
        The result, and what was predicted for each image.

    Raises:
        ValueError: there are no test images, or too few training images.
    """
    probe = fit_probe(training, training_labels, len(class_names), penalties, seed)
    found = probe_ranks(probe, features, labels, ties)
    fields = accuracies(found, labels, class_names, len(class_names), ties)
    result = ProbeResult(
        **fields,
        training_images=len(training),
        penalty=probe.penalty,
        held_out_accuracy=probe.held_out_accuracy,
        seed=None if probe.held_out_accuracy is None else seed,
        iterations=probe.iterations,
    )
    return result, found


def probe_ranks(probe: Probe, features: torch.Tensor, labels: np.ndarray, ties: Ties = "strict") -> Predictions:
    """Ranks the class of each image by its logits.

    Raises:
        ValueError: there are no images.
    """
    if not len(features):
        raise ValueError("a probe needs at least one image to score")
    return label_ranks(probe.logits(features).cpu(), labels, ties)


def fit_probe(
    features: torch.Tensor,
    labels: np.ndarray,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Probe:
    """Fits a probe, and chooses its penalty if there are several. It is computed on the device of `features`.

    Args:
        features: (M, D) features of training images.
        labels: (M,)
        penalties: from strong to weak.
        seed: decides which images are held out.

    Raises:
        ValueError: there are fewer than two images, or none if there is one penalty.
    """
    (probe,) = fit_probes(features, labels[:, None], (classes,), penalties, seed)
    return probe


def fit_probes(
    features: torch.Tensor,
    labels: np.ndarray,
    classes: Sequence[int],
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> list[Probe]:
    """Fits A independent probes of the same images, with one penalty, that of the highest mean accuracy.

    It takes a fraction of the time of A fits: the sum of their objectives has the same minimum, and its gradient is one
    product of matrices.

    Args:
        labels: (M, A)
        classes: A numbers of classes.

    Raises:
        ValueError: see `fit_probe`.
    """
    if len(features) < min(2, len(penalties)):
        raise ValueError("a probe needs at least one image to fit, and another to hold out")
    truth = torch.from_numpy(labels).to(features.device)
    if len(penalties) == 1:
        return _fit(features, truth, classes, penalties[0])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features))).to(features.device)
    held_out, fitted = order.tensor_split([max(1, round(_HELD_OUT * len(order)))])
    part, known = features[fitted], truth[fitted]
    found: list[list[Probe]] = []
    for penalty in penalties:
        probes = _fit(part, known, classes, penalty, found[-1] if found else None)
        found.append(
            [_checked(probe, features[held_out], of) for probe, of in zip(probes, truth[held_out].T, strict=True)]
        )
    # The strongest of equally accurate penalties.
    best = max(found, key=lambda probes: sum(probe.held_out_accuracy or 0.0 for probe in probes))
    probes = _fit(features, truth, classes, best[0].penalty, best)
    return [replace(probe, held_out_accuracy=of.held_out_accuracy) for probe, of in zip(probes, best, strict=True)]


def _checked(probe: Probe, features: torch.Tensor, labels: torch.Tensor) -> Probe:
    """The probe with its accuracy on held-out images."""
    right = probe.logits(features).argmax(1) == labels
    return replace(probe, held_out_accuracy=float(right.double().mean()))


def _fit(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[int],
    penalty: float,
    start: Sequence[Probe] | None = None,
) -> list[Probe]:
    """Fits probes of (M, A) labels from `start`, or from zeros."""
    dim, device = features.shape[1], features.device
    shape = (sum(classes), dim + 1)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective at (C, D + 1) weights, the last of which are biases, and its gradient."""
        weights = torch.from_numpy(flat.reshape(shape)).to(device, torch.float32)
        total, gradient = 0.0, torch.zeros(shape, dtype=torch.float64, device=device)
        for rows in blocks(len(features)):
            images = units(features[rows])
            error = images @ weights[:, :dim].T + weights[:, dim]
            for logits, own in zip(error.split(list(classes), 1), labels[rows].T[..., None], strict=True):
                log_shares = torch.log_softmax(logits, 1)
                total -= float(log_shares.gather(1, own).double().sum())
                logits.copy_(log_shares.exp_().scatter_add_(1, own, log_shares.new_full(own.shape, -1)))
            gradient[:, :dim] += error.T @ images
            gradient[:, dim] += error.sum(0)
        slope = (gradient / len(features)).cpu().numpy()
        penalised = flat.reshape(shape)[:, :dim]
        slope[:, :dim] += penalty * penalised
        progress.update()
        return total / len(features) + penalty / 2 * float((penalised**2).sum()), slope.reshape(-1)

    first = np.zeros(shape)
    if start is not None:
        first[:, :dim] = torch.cat([probe.weight for probe in start]).cpu().numpy()
        first[:, dim] = torch.cat([probe.bias for probe in start]).cpu().numpy()
    limits = {"maxiter": _ITERATIONS, "gtol": _GRADIENT, "ftol": _DECREASE}
    with Progress("evaluate", "steps of the linear probe") as progress:
        found = minimize(objective, first.reshape(-1), jac=True, method="L-BFGS-B", options=limits)
    weights = torch.from_numpy(found.x.reshape(shape)).to(device, torch.float32)
    return [Probe(part[:, :dim], part[:, dim], penalty, int(found.nit)) for part in weights.split(list(classes))]
