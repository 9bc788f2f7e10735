"""The optimizer step over the global batch, and validation."""

import copy
import math
from collections.abc import Iterable, Iterator

import torch

from sharelock_ray.alignment.distributed import Group, Rows, gather_rows, rank, sum_over_ranks, world_size
from sharelock_ray.alignment.heads import UNDECAYED, Heads
from sharelock_ray.alignment.loss import contrastive_loss, sigmoid_loss
from sharelock_ray.alignment.optimizer import optimizer_of
from sharelock_ray.alignment.projection import GlobalBatch
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.batches.sampling import Batch

_ROWS = 1024


class Optimization:
    """The heads with their optimizer and weight average, replicated on every rank.

    Args:
        heads: on the training device; rank 0's values are broadcast.
        group: process group; None: the default group, or this process alone.
        compiled: whether to compile the projections with `torch.compile`.
    """

    def __init__(self, heads: Heads, spec: AlignmentSpec, group: Group = None, compiled: bool = False) -> None:
        self.heads, self.spec, self.group = heads, spec, group
        trained = {name: p for name, p in heads.named_parameters() if p.requires_grad}
        self._trained = list(trained.values())
        self.optimizer = optimizer_of(spec, trained, UNDECAYED)
        if world_size(group) > 1:
            for tensor in heads.state_dict().values():
                torch.distributed.broadcast(tensor, group_src=0, group=group)
        self.average = copy.deepcopy(heads).requires_grad_(False) if spec.ema_decay else None
        if compiled:
            heads.vision.compile()
            heads.language.compile()

    @property
    def evaluated(self) -> Heads:
        """The heads to validate and to keep as the best: the weight average if there is one."""
        return self.heads if self.average is None else self.average

    def step(self, micro_batches: Iterable[Batch], step: int) -> dict[str, torch.Tensor]:
        """Updates the heads with one global batch.

        Args:
            micro_batches: this rank's share of each of the `accumulation` micro-batches.
            step: step number, from 0.

        Returns:
            `loss`, the mean over micro-batches, and `grad_norm` before clipping: scalars, the same on every rank.

        Raises:
            ValueError: the number of micro-batches is not `accumulation`.
        """
        heads, parts = self.heads.train(), self.spec.accumulation
        heads.zero_grad()
        losses = []
        for index, batch in enumerate(micro_batches):
            image, text = self._projected(heads, batch, step * parts + index)
            loss = self._loss(heads, image, text, batch.positives)
            (loss / parts).backward()
            losses.append(loss.detach())
        if len(losses) != parts:
            raise ValueError(f"a step takes {parts} micro-batches (`accumulation`), not {len(losses)}")
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self.spec.clip_norm or math.inf)
        self.optimizer.step(learning_rate(self.spec, step))
        heads.clamp_logit_scale()
        self._update_ema(step)
        return {"loss": torch.stack(losses).mean(), "grad_norm": norm}

    def _loss(
        self, heads: Heads, image: torch.Tensor, text: torch.Tensor, positives: torch.Tensor | None
    ) -> torch.Tensor:
        if heads.logit_bias is None:
            return contrastive_loss(image, text, heads.logit_scale, self.group, positives=positives)
        return sigmoid_loss(image, text, heads.logit_scale, heads.logit_bias, self.group, positives=positives)

    def _projected(
        self, heads: Heads, batch: Batch, micro_step: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, D) unit vectors of images and texts; in training, `micro_step` counts micro-batches over all steps."""
        rows = Rows.of(len(batch.image), batch.image.device, self.group)
        projected = []
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            for side, head, given in (("vision", heads.vision, batch.image), ("language", heads.language, batch.text)):
                about = None
                if micro_step is not None:
                    about = GlobalBatch(rows, self.spec.seed, micro_step, self.group, side)
                projected.append(head(given.to(heads.log_logit_scale.dtype), about))
        if self.spec.precision == "bfloat16" and batch.image.is_cuda:
            # The loss's products then use tensor cores; its logits and statistics remain float32.
            projected = [features.to(torch.bfloat16) for features in projected]
        return projected[0], projected[1]

    def _sum_gradients(self) -> None:
        if world_size(self.group) == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._trained]
        flat = sum_over_ranks(torch.cat([g.reshape(-1) for g in gradients]), self.group)
        for parameter, total in zip(self._trained, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = total.view_as(parameter)

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        """Updates the weight average; the decay is lower at first, so that the initial weights are soon forgotten."""
        if self.average is None or self.spec.ema_decay is None:
            return
        # The rule of TensorFlow's ExponentialMovingAverage with `num_updates`.
        share = 1 - min(self.spec.ema_decay, (1 + step) / (10 + step))
        for own, value in zip(self.average.state_dict().values(), self.heads.state_dict().values(), strict=True):
            if value.is_floating_point():
                own.lerp_(value, share)
            else:
                own.copy_(value)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Means over `batches`: `validation_loss`, and `recall_at_1` of images among a batch's texts.

        If a batch has ids of positives, every text with an image's id is correct.
        """
        heads = self.evaluated.eval()
        losses, hits, count = [], 0.0, 0
        for batch in batches:
            image, text = self._projected(heads, batch)
            losses.append(float(self._loss(heads, image, text, batch.positives)))
            rows = Rows.of(len(image), image.device, self.group)
            ids = rows.start + torch.arange(rows.count, device=image.device)
            own = ids if batch.positives is None else batch.positives
            texts, ids = gather_rows(text, rows, self.group), gather_rows(own, rows, self.group)
            # In float32, since 16-bit products have many ties.
            texts = texts.float()
            hit = [(ids[(some.float() @ texts.T).argmax(1)] == of).sum() for some, of in _blocks(image, own)]
            hits += float(sum_over_ranks(torch.stack(hit).sum().double(), self.group))
            count += rows.total
        return {"validation_loss": sum(losses) / len(losses), "recall_at_1": hits / count}

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return rank(self.group) == 0


def learning_rate(spec: AlignmentSpec, step: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up to `learning_rate`, then the schedule.

    The cosine reaches zero at `steps` (arXiv 1608.03983, without restarts). `wsd` (warm-up, stable, decay; arXiv
    2404.06395) decays linearly, as in arXiv 2405.18392.
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.learning_rate
    if spec.decay_steps is not None:
        return spec.learning_rate * min(1.0, (spec.steps - step) / spec.decay_steps)
    progress = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _blocks(image: torch.Tensor, ids: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Splits rows into blocks, so that their similarities with all texts of a batch fit in memory."""
    yield from zip(image.split(_ROWS), ids.split(_ROWS), strict=True)
