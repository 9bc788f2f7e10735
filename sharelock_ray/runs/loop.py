"""Training loop of one alignment, which runs on every rank. It reads feature sets and fills a run folder:

best/  last/       checkpoints; an interrupted training resumes from `last`
metrics.jsonl      one JSON object per line: losses of steps and validations
tensorboard/       the same metrics for TensorBoard
non-finite.json    keys of the batch with a non-finite loss or gradient, if that ended the training
training.json      result of a finished training, written last
"""

import math
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Any

import torch

from sharelock_ray import storage
from sharelock_ray.alignment.distributed import Group, rank, same_on_ranks, wait_for_all, world_size
from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.alignment.step import Optimization, learning_rate
from sharelock_ray.batches.placement import DeviceCache, MappedRows, Placement, RowStore, placement
from sharelock_ray.batches.sampling import PairBatches, drawn, split_validation
from sharelock_ray.batches.streaming import Reader, StreamedRows, read_here
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import Pairs, open_features
from sharelock_ray.features.pairing import Pairing
from sharelock_ray.memory import keep_freed_memory
from sharelock_ray.runs.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Position,
    has_checkpoint,
    read_checkpoint,
    restore,
    side_of,
)
from sharelock_ray.runs.folder import RunFolder, TrainingResult
from sharelock_ray.runs.metrics import Metrics

_LOG_EVERY = 10
_KEYS_SHOWN = 3
_ALL_PAIRS = Pairing()


def train(
    run: RunFolder,
    vision: str,
    language: str,
    spec: AlignmentSpec,
    device: str = "cpu",
    group: Group = None,
    compiled: bool = False,
    streams: bool = False,
    read: Reader = read_here,
    device_cache: DeviceCache | None = None,
    validated: Callable[[dict[str, Any]], None] = lambda row: None,
    all_have_opened: Callable[[], object] = lambda: None,
    pairing: Pairing = _ALL_PAIRS,
) -> None:
    """Starts or resumes a training, and runs it until `training.json` is written.

    Every rank calls this function with the same arguments. The result does not depend on the number of ranks, up to
    rounding, nor on interruptions.

    Args:
        vision, language: URIs of the feature sets of one dataset split; or `language` of the texts of classes.
        group: process group of the ranks; None for a single process.
        compiled: whether to compile the projections with `torch.compile`.
        streams: whether to stream features from storage even if they fit on the node.
        read: reader of streamed features.
        device_cache: feature sets on the device, shared by the trainings of this process.
        validated: callback for each validation; receives its row of `metrics.jsonl`.
        all_have_opened: barrier of all ranks, for the places where opening features may take longer than the group's
            time-out.
        pairing: which images and texts are paired.

    Raises:
        RequestError: the folder holds another training; or the feature sets do not match, have too few pairs, lack the
            requested labels, or cannot be streamed in the spec's order.
        RunError: the loss is non-finite, or the features neither fit on the node nor can be streamed.
    """
    joined = pairing.joined(open_features(vision), open_features(language))
    run.begin(spec, joined.vision.manifest, joined.language.manifest, pairing.identity)
    if not len(joined):
        raise RequestError(f"there is no pair to train on: {_why_no_pairs(joined)}")
    pairs = pairing.kept(joined)
    training, validation = split_validation(pairs, spec.validation_fraction)
    if len(training) < 2 or len(validation) < 2:
        raise RequestError(
            f"{len(pairs)} pairs leave {len(training)} to train on and {len(validation)} to validate: "
            f"give more data or another `alignment.validation_fraction`"
        )
    training = drawn(training, spec.training_pairs, spec.seed)
    vision_side, language_side = side_of(pairs.vision.manifest), side_of(pairs.language.manifest)
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    torch.manual_seed(spec.seed)
    heads = Heads(spec, vision_side.dim, language_side.dim).to(device)
    optimization = Optimization(heads, spec, group, compiled)
    position = Position(step=0)
    all_have_opened()
    last = _last_checkpoint(run, torch.device(device), group)
    if last is not None:
        restore(run.last, last, heads, optimization.optimizer, optimization.average)
        position = last.position
    store = _store(pairs, torch.device(device), spec, streams, read, device_cache or DeviceCache())
    all_have_opened()
    batches, held_out = (
        PairBatches(of, spec.contrast_size, spec.seed, store.device, spec.positives, spec.order, store)
        for of in (training, validation)
    )
    if optimization.is_main:
        run.write_data_placement(f"batches come from the {store.placement.kind} ({store.placement.reason})")
    ranks = rank(group), world_size(group)
    started = time.monotonic() - position.seconds
    finite = _Finite(run, batches, spec, group)
    feed = batches.prefetch(range(position.step * spec.accumulation, spec.steps * spec.accumulation), *ranks)
    metrics = Metrics(run, optimization.is_main, position.step)
    with closing(feed), metrics, CheckpointWriter(run) as checkpoints:
        while not _is_over(spec, position):
            step = position.step
            taken = optimization.step(islice(feed, spec.accumulation), step)
            finite.watch(step, taken)
            position = position.model_copy(update={"step": step + 1, "seconds": time.monotonic() - started})
            logs = (step + 1) % _LOG_EVERY == 0 or step == 0
            evaluates = (step + 1) % spec.evaluate_every == 0 or step + 1 == spec.steps
            if logs or evaluates:
                finite.require(checkpoints, optimization.is_main)
            if logs:
                pairs_seen = (step + 1) * spec.accumulation * batches.global_batch_size
                values = {name: float(value) for name, value in taken.items()}
                metrics.add(
                    {"step": step + 1, **values, "learning_rate": learning_rate(spec, step), "pairs": pairs_seen}
                )
            metrics.alive()
            if evaluates:
                values = optimization.validate(metrics.alive_over(held_out.sweep(*ranks)))
                finite.require_validation(step, values, held_out, checkpoints)
                position = _after_validation(position, values, spec)
                row = {"step": step + 1, **values, "logit_scale": float(heads.logit_scale.detach())}
                metrics.add(row)
                validated(row)
                if optimization.is_main:
                    checkpoint = Checkpoint(
                        spec=spec,
                        vision=vision_side,
                        language=language_side,
                        position=position,
                        metrics=values,
                        pairing=pairing.identity,
                    )
                    if position.best_step == position.step:
                        checkpoints.keep_best(checkpoint, optimization.evaluated)
                    if _is_over(spec, position) or checkpoints.is_due:
                        written = metrics.publish()
                        checkpoints.save(checkpoint, heads, optimization.optimizer, optimization.average, after=written)
    if optimization.is_main:
        run.finish(_result(run, position, metrics.rows, joined, len(training), len(validation), heads, spec))


def _why_no_pairs(pairs: Pairs) -> str:
    for side in (pairs.vision, pairs.language):
        if not side.manifest.rows and side.manifest.rejects:
            return (
                f"none of its {side.manifest.rejects:,} inputs gave {side.manifest.modality} features "
                f"({side.first_reject}): each image needs a caption, such as 1.txt beside 1.jpg"
            )
    return f"no key of {pairs.vision.uri} is in {pairs.language.uri}"


def _last_checkpoint(run: RunFolder, device: torch.device, group: Group) -> Checkpoint | None:
    """The last checkpoint, equal on all ranks; repeats the read if a worker of a dead driver writes another one."""
    while True:
        checkpoint = read_checkpoint(run.last) if has_checkpoint(run.last) else None
        if same_on_ranks(checkpoint.position.step if checkpoint else 0, device, group):
            return checkpoint


def _store(
    pairs: Pairs, device: torch.device, spec: AlignmentSpec, streams: bool, read: Reader, device_cache: DeviceCache
) -> RowStore:
    sets = pairs.vision, pairs.language
    device_cache.evict_except(*sets)
    where = Placement("storage", "as asked") if streams else placement(*sets, device, device_cache)
    if where.kind != "storage":
        return MappedRows(*sets, device, where, device_cache)
    if spec.order == "parts":
        return StreamedRows(*sets, device, where, read)
    remedy = "set `alignment.order: parts`, which streams features from storage"
    if streams:
        raise RequestError(f"features cannot be streamed in the order `{spec.order}`: {remedy}")
    raise RunError(
        f"{where.reason}: free space there, set the environment variable SHARELOCK_CACHE to a "
        f"folder on another disk, or {remedy}"
    )


class _Finite:
    """Ends a training whose loss or gradient norm is non-finite.

    The check of each step runs on the device and does not synchronise; the result is read only at steps that are logged
    anyway. All ranks find the same result. They raise after the main rank has written its checkpoints, since the first
    rank that raises may end the others.
    """

    def __init__(self, run: RunFolder, batches: PairBatches, spec: AlignmentSpec, group: Group) -> None:
        self._run, self._batches, self._spec, self._group = run, batches, spec, group
        # Number, loss and gradient norm of the first non-finite step; the number is -1 if there is none.
        self._first: torch.Tensor | None = None

    def watch(self, step: int, taken: dict[str, torch.Tensor]) -> None:
        """Records `step` (counted from 0) if it is the first with a non-finite loss or gradient norm."""
        values = torch.stack([taken["loss"], taken["grad_norm"]]).double()
        if self._first is None:
            self._first = torch.tensor([-1.0, 0, 0], dtype=values.dtype, device=values.device)
        here = torch.cat([values.new_full((1,), step), values])
        bad = (self._first[0] < 0) & ~values.isfinite().all()
        self._first = torch.where(bad, here, self._first)

    def require(self, checkpoints: CheckpointWriter, is_main: bool) -> None:
        """Raises an error if a step was non-finite, and writes `non-finite.json` on the main rank.

        Raises:
            RunError: the message names the step, some keys of its batch, the file with all keys, and the last good
                checkpoint.
        """
        assert self._first is not None
        step, loss, norm = self._first.tolist()
        if step < 0:
            return
        parts = range(int(step) * self._spec.accumulation, (int(step) + 1) * self._spec.accumulation)
        keys = [key for part in parts for key in self._batches.keys(part)]
        if is_main:
            checkpoints.wait()
            about = {"step": int(step) + 1, "loss": str(loss), "grad_norm": str(norm), "keys": keys}
            storage.write_json(self._run.non_finite, about | {"last_good": self._last_good()})
        wait_for_all(self._first.device, self._group)
        raise RunError(
            f"the loss is {loss:g} and its gradient {norm:g} at step {int(step) + 1}, over "
            f"{', '.join(keys[:_KEYS_SHOWN])}, … (all {len(keys)} keys in {self._run.non_finite}); "
            f"last good checkpoint: {self._last_good()}. Lower `alignment.learning_rate`, or look at these inputs"
        )

    def require_validation(
        self, step: int, values: dict[str, float], held_out: PairBatches, checkpoints: CheckpointWriter
    ) -> None:
        """Raises an error if a validation value is non-finite, before a checkpoint of this step is written.

        Raises:
            RunError: the message names the step, pairs with non-finite features, and the last good checkpoint.
        """
        if all(map(math.isfinite, values.values())):
            return
        bad = held_out.not_finite()
        cause = f"of the features of {', '.join(bad[:_KEYS_SHOWN])}" if bad else "the weights are non-finite"
        assert self._first is not None
        checkpoints.wait()
        wait_for_all(self._first.device, self._group)
        raise RunError(
            f"the validation loss is {values['validation_loss']:g} at step {step + 1}, because {cause}; "
            f"last good checkpoint: {self._last_good()}"
        )

    def _last_good(self) -> str:
        if not has_checkpoint(self._run.last):
            return "none yet"
        return f"{self._run.last}, of step {read_checkpoint(self._run.last).position.step}"


def _is_over(spec: AlignmentSpec, position: Position) -> bool:
    """Whether all steps are done or early stopping applies."""
    return position.step >= spec.steps or (spec.patience is not None and position.stale >= spec.patience)


def _after_validation(position: Position, values: dict[str, float], spec: AlignmentSpec) -> Position:
    """Updates the best value and the state of early stopping; only a gain above `min_delta` resets the patience."""
    value, sign = (values["recall_at_1"], -1) if spec.monitor == "recall" else (values["validation_loss"], 1)
    changes: dict[str, Any] = {"stale": position.stale + 1}
    if position.patience_value is None or sign * (value - position.patience_value) < -spec.min_delta:
        changes = {"stale": 0, "patience_value": value}
    if position.best_value is None or sign * (value - position.best_value) < 0:
        changes |= {"best_value": value, "best_step": position.step}
    return position.model_copy(update=changes)


def _result(
    run: RunFolder,
    position: Position,
    rows: list[dict[str, Any]],
    pairs: Pairs,
    training: int,
    validation: int,
    heads: Heads,
    spec: AlignmentSpec,
) -> TrainingResult:
    losses = [row["loss"] for row in rows if "loss" in row]
    return TrainingResult(
        steps=position.step,
        stopped_early=position.step < spec.steps,
        first_loss=losses[0],
        last_loss=losses[-1],
        best_validation_loss=read_checkpoint(run.best).metrics["validation_loss"],
        best_step=position.best_step,
        training_pairs=training,
        validation_pairs=validation,
        lost=pairs.lost,
        left_out=len(pairs) - training - validation,
        parameters=sum(p.numel() for p in heads.parameters() if p.requires_grad),
        seconds=round(position.seconds, 2),
    )
