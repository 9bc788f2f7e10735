"""Every setting of an alignment that changes its result. Needs no torch, so that recipes are read quickly."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sharelock_ray.config import Config


class ProjectionSpec(Config):
    """A projection from a frozen encoder's space into the shared one. Depth 0 is the identity: that side is locked.

    The paper's text projection is depth 4, width 4096, batch norm, ReLU, dropout 0.2 (paper.md, 3.1).
    """

    depth: Annotated[int, Field(ge=0, le=16)] = 0
    """Linear layers; all but the last are followed by norm, activation and dropout."""
    width: Annotated[int, Field(ge=1)] = 1024
    """Of the hidden layers."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["batch", "layer", "none"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class AlignmentSpec(Config):
    """Both projections, and how they are trained. Steps are optimizer steps."""

    vision: ProjectionSpec = ProjectionSpec()
    language: ProjectionSpec = ProjectionSpec(depth=4, width=4096, dropout=0.2)
    dim: Annotated[int, Field(ge=1)] | None = None
    """Width of the shared space where both sides are projected; else it is the locked side's."""
    global_batch_size: Annotated[int, Field(ge=2)] = 16384
    """Pairs of one step over all workers; each is contrasted with all others."""
    steps: Annotated[int, Field(ge=1)] = 5000
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Coupled (L2), as in Adam."""
    warmup_steps: Annotated[int, Field(ge=0)] = 150
    """Linear warm-up; cosine to zero follows."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Of the global gradient."""
    logit_scale: Annotated[float, Field(gt=0, le=100)] = math.exp(2.6592)
    """1 / temperature; where it is learned, its start."""
    learn_logit_scale: bool = False
    """Clamped to 100, as CLIP does."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the pairs, chosen by a hash of their keys, that is never trained on."""
    evaluate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations, each of which also writes the checkpoint that a later run continues from."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Validations in a row without a gain of `min_delta` after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if not self.vision.depth and not self.language.depth:
            raise ValueError("both sides are locked (depth 0), so there is nothing to train: give one of them depth")
        if (self.dim is not None) != bool(self.vision.depth and self.language.depth):
            raise ValueError("`dim` says the width of the shared space where both sides have depth, and only there")
        return self
