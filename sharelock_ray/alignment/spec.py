"""Settings of an alignment that change its result. Imports no torch, so that recipes are read quickly."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sharelock_ray.config import Config

PRESETS: dict[str, dict[str, Any]] = {
    "sail": {
        "depth": 2,
        "width_factor": 8,
        "activation": "relu6",
        "norm": "none",
        "input_norm": True,
        "gated": True,
        "init": "xavier",
    },
}
"""Heads by name. `sail`: the head of SAIL (arXiv 2412.04616) in its released code, for both sides."""


class ProjectionSpec(Config):
    """A projection from a frozen encoder's space to the shared space. Depth 0 is the identity: a locked side.

    The paper's text projection has depth 4, width 4096, batch norm, ReLU and dropout 0.2 (section 3.1).
    """

    _always_hashed = "preset depth width width_factor activation norm dropout input_norm gated residual init"

    preset: Literal["sail"] | None = None
    """Sets the fields listed in `PRESETS`."""
    depth: Annotated[int, Field(ge=0, le=16)] = 0
    """Number of linear layers; norm, activation and dropout follow all but the last."""
    width: Annotated[int, Field(ge=1)] = 1024
    """Width of the hidden layers."""
    width_factor: Annotated[int, Field(ge=1)] | None = None
    """Width of the hidden layers as a multiple of the input width; replaces `width`."""
    activation: Literal["relu", "relu6", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["batch", "layer", "none"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    input_norm: bool = False
    """Applies layer norm to the frozen embedding."""
    gated: bool = False
    """Makes hidden layers gated linear units (arXiv 2002.05202): activation(norm(W x)) times V x."""
    residual: bool = False
    """Adds the input to hidden layers with equal input and output widths."""
    init: Literal["torch", "xavier"] = "torch"
    """Initial weights: torch's default for linear layers, or Xavier uniform with zero biases."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        preset = PRESETS.get(str(given.get("preset")), {}) if isinstance(given, dict) else {}
        for field, value in preset.items():
            # A different value would have no effect, which must not go unnoticed in a grid of presets.
            if given.get(field, value) != value:
                raise ValueError(f"the preset {given['preset']} has {field} {value}: leave out `{field}` or `preset`")
        return {**given, **preset} if preset else given

    def effective(self, in_dim: int) -> "ProjectionSpec":
        """An equivalent spec for inputs of width `in_dim`, with fields without effect at their defaults."""
        if not self.depth:
            return ProjectionSpec()
        if self.depth == 1:
            # All other fields concern hidden layers.
            return ProjectionSpec(depth=1, input_norm=self.input_norm, init=self.init)
        width = self.width_factor * in_dim if self.width_factor else self.width
        adds_input = self.residual and (self.depth > 2 or width == in_dim)
        return self.model_copy(update={"preset": None, "width": width, "width_factor": None, "residual": adds_input})


class AlignmentSpec(Config):
    """Both projections and their training. Steps are optimizer steps."""

    _always_hashed = (
        "vision language dim loss positives global_batch_size accumulation order steps optimizer learning_rate "
        "weight_decay schedule warmup_steps decay_steps clip_norm ema_decay precision logit_scale learn_logit_scale "
        "logit_bias validation_fraction evaluate_every monitor patience min_delta seed"
    )

    vision: ProjectionSpec = ProjectionSpec()
    language: ProjectionSpec = ProjectionSpec(depth=4, width=4096, dropout=0.2)
    dim: Annotated[int, Field(ge=1)] | None = None
    """Width of the shared space if both sides are projected; otherwise it is the locked side's width."""
    loss: Literal["infonce", "sigmoid"] = "infonce"
    positives: Literal["pair", "text", "label"] = "pair"
    """Positives in a batch: an image's own text; all pairs with the same text; or all with the same label of the vision
    set."""
    global_batch_size: Annotated[int, Field(ge=2)] = 16384
    """Pairs per step over all workers. Without accumulation, each pair has all others as negatives."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches per step. Loss and batch norm are computed within each, and losses are averaged: with 16, a batch
    of 16,384 has 1,023 negatives per pair, as in the released code."""
    order: Literal["global", "parts"] = "global"
    """Order of pairs in an epoch. `global`: a permutation of all pairs. `parts`: batches come from 16 parts of the
    vision set at a time, in random order, so that features too large for a node can be streamed from storage."""
    steps: Annotated[int, Field(ge=1)] = 5000
    optimizer: Literal["adam", "adamw", "lion"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Applied to all weights, biases and norms, not to the logit scale and bias: coupled (L2) for Adam, decoupled for
    AdamW and Lion."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up: cosine to zero; constant; or constant, then linear to zero over
    `decay_steps`."""
    warmup_steps: Annotated[int, Field(ge=0)] = 150
    """Steps of linear warm-up."""
    decay_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of linear decay; only with the schedule `wsd`."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Maximum norm of the global gradient; None: no clipping."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is validated and kept as the best; None: no
    average."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the projections' products. Weights, normalisation and the loss's statistics are always float32."""
    logit_scale: Annotated[float, Field(gt=0, le=100)] = math.exp(2.6592)
    """1 / temperature; the initial value if it is learned."""
    learn_logit_scale: bool = False
    """Learns the logit scale, clamped to 100 as in CLIP."""
    logit_bias: float = -10.0
    """Initial value of the sigmoid loss's learned bias (SigLIP, arXiv 2303.15343, section 3.2)."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the pairs held out for validation, chosen by a hash of their keys."""
    training_pairs: Annotated[int, Field(ge=2)] | None = None
    """Number of the other pairs to train on, drawn by `seed`; a smaller number draws a subset of a larger one's pairs.
    None: all of them."""
    evaluate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations. A checkpoint to resume from is written after each validation, or after fewer if
    writing would take more than a tenth of the time."""
    monitor: Literal["loss", "recall"] = "loss"
    """Criterion of the best checkpoint and of early stopping: validation loss, or recall at 1."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Consecutive validations without an improvement of `min_delta` after which training stops; None: never."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0

    @property
    def contrast_size(self) -> int:
        """Pairs per micro-batch, which are contrasted with each other."""
        return self.global_batch_size // self.accumulation

    def effective(self, vision_dim: int, language_dim: int) -> "AlignmentSpec":
        """An equivalent spec for inputs of these widths, with fields without effect at their defaults.

        Specs with equal results train the same model.
        """
        heads = {"vision": self.vision.effective(vision_dim), "language": self.language.effective(language_dim)}
        idle: dict[str, Any] = {}
        if self.loss != "sigmoid":
            idle["logit_bias"] = AlignmentSpec.model_fields["logit_bias"].default
        if self.patience is None:
            idle["min_delta"] = 0.0
        if self.optimizer == "adamw" and not self.weight_decay:
            # Adam and AdamW differ only in weight decay.
            idle["optimizer"] = "adam"
        return self.model_copy(update=heads | idle)

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if not self.vision.depth and not self.language.depth:
            raise ValueError("both sides are locked (depth 0), so there is nothing to train: set `depth` of one side")
        if (self.dim is not None) != bool(self.vision.depth and self.language.depth):
            raise ValueError("set `dim`, the width of the shared space, if and only if both sides have depth")
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.global_batch_size % self.accumulation or self.contrast_size < 2:
            raise ValueError(
                f"`global_batch_size` {self.global_batch_size} cannot be split into {self.accumulation} equal "
                f"micro-batches (`accumulation`) of at least two pairs"
            )
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if (self.decay_steps is not None) != (self.schedule == "wsd"):
            raise ValueError("set `decay_steps` if and only if the schedule is `wsd`")
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"`warmup_steps` plus `decay_steps` exceed the {self.steps} `steps`")
        return self
