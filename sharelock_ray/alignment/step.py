"""One optimizer step over the global batch, and the validation between steps."""

import math
from collections.abc import Iterable

import torch

from sharelock_ray.alignment.batches import Batch
from sharelock_ray.alignment.distributed import Group, Rows, gather_rows, rank, sum_over_ranks, world_size
from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.loss import contrastive_loss
from sharelock_ray.alignment.optimizer import Adam
from sharelock_ray.alignment.projection import GlobalBatch
from sharelock_ray.alignment.spec import AlignmentSpec


class Optimization:
    """The heads with their optimizer. Every rank holds the same; `step` keeps it so.

    Args:
        heads: on the device they are trained on; rank 0's values are used by all.
        group: process group; None is the default one, or this process alone.
    """

    def __init__(self, heads: Heads, spec: AlignmentSpec, group: Group = None) -> None:
        self.heads, self.spec, self.group = heads, spec, group
        trained = {name: p for name, p in heads.named_parameters() if p.requires_grad}
        self._trained = list(trained.values())
        self.optimizer = Adam(trained, spec.weight_decay, undecayed=["log_logit_scale"])
        if world_size(group) > 1:
            for tensor in heads.state_dict().values():
                torch.distributed.broadcast(tensor, group_src=0, group=group)

    def step(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """Updates the heads by one global batch, of which `batch` is this rank's share.

        Returns:
            `loss` of the global batch and `grad_norm` before clipping: scalars, the same on every rank.
        """
        rows = Rows.of(len(batch.image), batch.image.device, self.group)
        about = GlobalBatch(rows, self.spec.seed, step, self.group)
        heads = self.heads.train()
        loss = contrastive_loss(
            heads.vision(batch.image, about), heads.language(batch.text, about), heads.logit_scale, self.group
        )
        heads.zero_grad()
        loss.backward()
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self.spec.clip_norm or math.inf)
        self.optimizer.step(learning_rate(self.spec, step))
        return {"loss": loss.detach(), "grad_norm": norm}

    def _sum_gradients(self) -> None:
        if world_size(self.group) == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._trained]
        flat = sum_over_ranks(torch.cat([g.reshape(-1) for g in gradients]), self.group)
        for parameter, total in zip(self._trained, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = total.view_as(parameter)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Means over `batches`: `validation_loss`, and `recall_at_1` of images among a batch's texts."""
        heads = self.heads.eval()
        losses, hits, count = [], 0.0, 0
        for batch in batches:
            image, text = heads.vision(batch.image), heads.language(batch.text)
            losses.append(float(contrastive_loss(image, text, heads.logit_scale, self.group)))
            rows = Rows.of(len(image), image.device, self.group)
            nearest = (image @ gather_rows(text, rows, self.group).T).argmax(1)
            own = rows.start + torch.arange(rows.count, device=image.device)
            hits += float(sum_over_ranks((nearest == own).sum().double(), self.group))
            count += rows.total
        return {"validation_loss": sum(losses) / len(losses), "recall_at_1": hits / count}

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes."""
        return rank(self.group) == 0


def learning_rate(spec: AlignmentSpec, step: int) -> float:
    """Of `step` (from 0): linear warm-up to `learning_rate`, then a cosine that would reach zero at `steps`."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
