"""The training of one alignment, from feature sets to a finished run folder, on one process or on each of several.

best/  last/       checkpoints; `last` is where an interrupted training goes on
metrics.jsonl      one JSON object a line: losses of steps and validations
training.json      written last: the result of a finished training
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from sharelock_ray.alignment.batches import PairBatches, split_validation
from sharelock_ray.alignment.checkpoint import (
    Checkpoint,
    Position,
    has_checkpoint,
    read_checkpoint,
    restore,
    save_checkpoint,
    side_of,
)
from sharelock_ray.alignment.distributed import Group, rank, world_size
from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.run import RunFolder, TrainingResult
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.alignment.step import Optimization, learning_rate
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import Pairs, join, open_features

_LOG_EVERY = 10
_WRITE_METRICS_EVERY_S = 2.0


@dataclass
class _Metrics:
    """The rows of `metrics.jsonl`; only the main rank writes them."""

    run: RunFolder
    writes: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    _written_at: float = 0.0

    def resume(self, step: int) -> None:
        """Takes back the rows up to `step`; later ones come again."""
        self.rows = [row for row in self.run.metrics() if row["step"] <= step]

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if time.monotonic() - self._written_at > _WRITE_METRICS_EVERY_S:
            self.write()

    def write(self) -> None:
        if self.writes:
            self.run.write_metrics(self.rows)
            self._written_at = time.monotonic()


def train(
    run: RunFolder,
    vision: str,
    language: str,
    spec: AlignmentSpec,
    device: str = "cpu",
    group: Group = None,
    compiled: bool = False,
) -> None:
    """Trains, or goes on training, until `training.json` is written.

    Every rank calls it with the same arguments. After the same number of steps the result is the same on any number
    of ranks, up to rounding, and after any interruption.

    Args:
        vision, language: URIs of feature sets of one dataset split.
        compiled: whether the projections are compiled by `torch.compile`.

    Raises:
        RequestError: the sets do not belong together, hold too few pairs, or lack the labels that are asked for.
        RunError: the loss is not finite any more.
    """
    pairs = join(open_features(vision), open_features(language))
    training, validation = split_validation(pairs, spec.validation_fraction)
    if len(training) < 2 or len(validation) < 2:
        raise RequestError(
            f"{len(pairs)} pairs leave {len(training)} to train on and {len(validation)} to validate: "
            f"give more data or another `alignment.validation_fraction`"
        )
    vision_side, language_side = side_of(pairs.vision.manifest), side_of(pairs.language.manifest)
    torch.manual_seed(spec.seed)
    heads = Heads(spec, vision_side.dim, language_side.dim).to(device)
    optimization = Optimization(heads, spec, group, compiled)
    position = Position(step=0)
    metrics = _Metrics(run, optimization.is_main)
    if has_checkpoint(run.last):
        checkpoint = read_checkpoint(run.last)
        restore(run.last, checkpoint, heads, optimization.optimizer, optimization.average)
        position = checkpoint.position
        metrics.resume(position.step)
    batches, held_out = (
        PairBatches(of, spec.contrast_size, spec.seed, torch.device(device), spec.positives)
        for of in (training, validation)
    )
    ranks = rank(group), world_size(group)
    started = time.monotonic() - position.seconds
    while position.step < spec.steps and not _is_stale(spec, position):
        step = position.step
        parts = range(step * spec.accumulation, (step + 1) * spec.accumulation)
        taken = optimization.step((batches.batch(part, *ranks) for part in parts), step)
        position = position.model_copy(update={"step": step + 1, "seconds": time.monotonic() - started})
        if (step + 1) % _LOG_EVERY == 0 or step == 0:
            row = {name: float(value) for name, value in taken.items()}
            if not math.isfinite(row["loss"]):
                raise RunError(f"the loss is {row['loss']} at step {step + 1}: lower `alignment.learning_rate`")
            metrics.add({"step": step + 1, **row, "learning_rate": learning_rate(spec, step)})
        if (step + 1) % spec.evaluate_every == 0 or step + 1 == spec.steps:
            values = optimization.validate(held_out.sweep(*ranks))
            position = _judged(position, values, spec)
            metrics.add({"step": step + 1, **values, "logit_scale": float(heads.logit_scale.detach())})
            metrics.write()
            if optimization.is_main:
                checkpoint = Checkpoint(
                    spec=spec, vision=vision_side, language=language_side, position=position, metrics=values
                )
                if position.best_step == step + 1:
                    save_checkpoint(run.best, checkpoint, optimization.evaluated)
                save_checkpoint(run.last, checkpoint, heads, optimization.optimizer, optimization.average)
    if optimization.is_main:
        run.finish(_result(position, metrics.rows, pairs, len(training), len(validation), heads, spec))


def _is_stale(spec: AlignmentSpec, position: Position) -> bool:
    return spec.patience is not None and position.stale >= spec.patience


def _judged(position: Position, values: dict[str, float], spec: AlignmentSpec) -> Position:
    """The best value of what is monitored; patience starts anew only at `min_delta` beyond where it last did."""
    value, sign = (values["recall_at_1"], -1) if spec.monitor == "recall" else (values["validation_loss"], 1)
    changes: dict[str, Any] = {"stale": position.stale + 1}
    if position.patience_value is None or sign * (value - position.patience_value) < -spec.min_delta:
        changes = {"stale": 0, "patience_value": value}
    if position.best_value is None or sign * (value - position.best_value) < 0:
        changes |= {"best_value": value, "best_step": position.step}
    return position.model_copy(update=changes)


def _result(
    position: Position,
    rows: list[dict[str, Any]],
    pairs: Pairs,
    training: int,
    validation: int,
    heads: Heads,
    spec: AlignmentSpec,
) -> TrainingResult:
    losses = [row["loss"] for row in rows if "loss" in row]
    best = next(row for row in rows if row["step"] == position.best_step and "validation_loss" in row)
    return TrainingResult(
        steps=position.step,
        stopped_early=position.step < spec.steps,
        first_loss=losses[0],
        last_loss=losses[-1],
        best_validation_loss=best["validation_loss"],
        best_step=position.best_step,
        training_pairs=training,
        validation_pairs=validation,
        lost=pairs.lost,
        parameters=sum(p.numel() for p in heads.parameters() if p.requires_grad),
        seconds=round(position.seconds, 2),
    )
