"""Runs one trial: trains, scores, and records its end."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from sharelock_ray import storage
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.batches.placement import DeviceCache
from sharelock_ray.batches.sampling import split_validation
from sharelock_ray.config import Config
from sharelock_ray.energy import joules
from sharelock_ray.errors import SharelockError
from sharelock_ray.evaluation.scoring import Classes, recall_at_1, zero_shot_accuracy
from sharelock_ray.features.featureset import Pairs, open_features
from sharelock_ray.features.pairing import Pairing
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.heads import load_trained_heads
from sharelock_ray.runs.loop import train
from sharelock_ray.study.trials import Trial, write_trial

# Shared by the trials of a process, which use the same feature sets.
_device_cache = DeviceCache()


class TrialJob(Config):
    """Everything that a process needs to run a trial. `trial` is its record in the state `running`."""

    trial: Trial
    vision: str
    language: str
    """URIs of the feature sets to train on."""
    spec: AlignmentSpec
    device: str = "cpu"
    threads: int = 1
    test: str | None = None
    """URI of the vision set for zero-shot classification."""
    prompts: str | None = None
    """URI of the language set of the class prompts."""
    class_names: tuple[str, ...] = ()
    pairing: Pairing = Pairing()
    unseen: tuple[int, ...] | None = None
    """Labels of the unseen classes of a split of concepts, for zero-shot classification; None: all classes."""


def run_trial(job: TrialJob, report: Callable[[dict[str, Any]], None]) -> Trial:
    """Trains, or resumes, and scores a trial, and writes its record; errors are recorded too.

    Args:
        report: called with the row in `metrics.jsonl` of each validation. If it raises `SystemExit`, the trial ends
            without a record.
    """
    torch.set_num_threads(job.threads)
    before = joules() if job.device == "cuda" else None
    try:
        ended = _trained(job, report)
    except SharelockError as error:
        # Training writes this file when its loss becomes non-finite.
        kind = "diverged" if storage.exists(RunFolder(job.trial.run).non_finite) else "failed"
        ended = {"state": kind, "reason": str(error)}
    # An error in one trial must not end the study.
    except Exception as error:
        kind = "out of memory" if _wanted_memory(error) else "failed"
        ended = {"state": kind, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if job.device == "cuda":
        # Frees cached memory for other trials on this GPU.
        torch.cuda.empty_cache()
    after = joules() if before is not None else None
    used = None if before is None or after is None else (after - before) * min(job.trial.gpus, 1.0)
    trial = job.trial.model_copy(update={**ended, "device": _name(job.device), "joules": used})
    write_trial(trial)
    return trial


def ended_early(trial: Trial, rows: list[dict[str, Any]], state: str, reason: str) -> Trial:
    """The record of a trial that was stopped, with the last values of its metrics."""
    validated = [row for row in rows if "validation_loss" in row]
    values = {name: validated[-1][name] for name in ("validation_loss",) if validated}
    steps = int(rows[-1]["step"]) if rows else 0
    return trial.model_copy(update={"state": state, "reason": reason, "values": values, "steps": steps})


def _trained(job: TrialJob, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The fields of a finished trial's record."""
    run = RunFolder(job.trial.run)
    manifests = open_features(job.vision).manifest, open_features(job.language).manifest
    run.begin(job.spec, *manifests, job.pairing.identity)
    if run.result() is None:
        train(
            run,
            job.vision,
            job.language,
            job.spec,
            job.device,
            device_cache=_device_cache,
            validated=report,
            pairing=job.pairing,
        )
    result = run.result()
    assert result is not None
    heads = load_trained_heads(run.best, job.device)
    validation = _validation_pairs(job.vision, job.language, job.spec.validation_fraction, job.pairing)
    values = {
        "validation_loss": result.best_validation_loss,
        "recall_at_1": recall_at_1(heads, validation),
        "parameters": float(result.parameters),
        "seconds": result.seconds,
    }
    if job.test is not None and job.prompts is not None:
        values["zero_shot"] = zero_shot_accuracy(heads, _classes(job.test, job.prompts, job.class_names), job.unseen)
    return {"state": "finished", "values": values, "steps": result.steps}


# Embeddings are memory-mapped, so the caches hold only rows and keys.
@lru_cache(maxsize=4)
def _validation_pairs(vision: str, language: str, fraction: float, pairing: Pairing) -> Pairs:
    return split_validation(pairing.pairs(open_features(vision), open_features(language)), fraction)[1]


@lru_cache(maxsize=4)
def _classes(test: str, prompts: str, names: tuple[str, ...]) -> Classes:
    return Classes(open_features(test), open_features(prompts), names)


def _wanted_memory(error: Exception) -> bool:
    # On a CPU, torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
