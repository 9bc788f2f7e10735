"""Every setting of an alignment that changes its result. Needs no torch, so that recipes are read quickly."""

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
"""Heads by name. `sail`: that of SAIL (arXiv 2412.04616), as its released code has it; for both sides."""


class ProjectionSpec(Config):
    """A projection from a frozen encoder's space into the shared one. Depth 0 is the identity: that side is locked.

    The paper's text projection is depth 4, width 4096, batch norm, ReLU, dropout 0.2 (paper.md, 3.1).
    """

    _always_hashed = "preset depth width width_factor activation norm dropout input_norm gated residual init"

    preset: Literal["sail"] | None = None
    """Says the fields that `PRESETS` lists for it; they may be left out."""
    depth: Annotated[int, Field(ge=0, le=16)] = 0
    """Linear layers; all but the last are followed by norm, activation and dropout."""
    width: Annotated[int, Field(ge=1)] = 1024
    """Of the hidden layers."""
    width_factor: Annotated[int, Field(ge=1)] | None = None
    """Width of the hidden layers in widths of the input, in place of `width`."""
    activation: Literal["relu", "relu6", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["batch", "layer", "none"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    input_norm: bool = False
    """Layer norm of the frozen embedding."""
    gated: bool = False
    """Hidden layers are gated linear units (arXiv 2002.05202): activation(norm(W x)) times V x."""
    residual: bool = False
    """Hidden layers of which input and output are equally wide add their input."""
    init: Literal["torch", "xavier"] = "torch"
    """Of the weights: torch's own for linear layers, or Xavier's uniform one with biases of zero."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        preset = PRESETS.get(str(given.get("preset")), {}) if isinstance(given, dict) else {}
        for field, value in preset.items():
            # An error, because in a grid of presets every other field has been given a value too.
            if given.get(field, value) != value:
                raise ValueError(f"the preset {given['preset']} has {field} {value}: leave out `{field}` or `preset`")
        return {**given, **preset} if preset else given

    def effective(self, in_dim: int) -> "ProjectionSpec":
        """The same head for inputs `in_dim` wide, with fields that change nothing of it at their defaults."""
        if not self.depth:
            return ProjectionSpec()
        if self.depth == 1:
            # All else is of hidden layers.
            return ProjectionSpec(depth=1, input_norm=self.input_norm, init=self.init)
        width = self.width_factor * in_dim if self.width_factor else self.width
        adds_input = self.residual and (self.depth > 2 or width == in_dim)
        return self.model_copy(update={"preset": None, "width": width, "width_factor": None, "residual": adds_input})


class AlignmentSpec(Config):
    """Both projections, and how they are trained. Steps are optimizer steps."""

    _always_hashed = (
        "vision language dim loss positives global_batch_size accumulation order steps optimizer learning_rate "
        "weight_decay schedule warmup_steps decay_steps clip_norm ema_decay precision logit_scale learn_logit_scale "
        "logit_bias validation_fraction evaluate_every monitor patience min_delta seed"
    )

    vision: ProjectionSpec = ProjectionSpec()
    language: ProjectionSpec = ProjectionSpec(depth=4, width=4096, dropout=0.2)
    dim: Annotated[int, Field(ge=1)] | None = None
    """Width of the shared space where both sides are projected; else it is the locked side's."""
    loss: Literal["infonce", "sigmoid"] = "infonce"
    positives: Literal["pair", "text", "label"] = "pair"
    """What belongs together in a batch: an image and its own text; also all that have the same text; or the same label
    of the vision set."""
    global_batch_size: Annotated[int, Field(ge=2)] = 16384
    """Pairs of one step over all workers; each is contrasted with all others, unless they are accumulated."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches of a step. Contrast and batch norm are within each, and their losses are averaged: with 16, a batch
    of 16,384 has 1,023 negatives a pair, as in the released code."""
    order: Literal["global", "parts"] = "global"
    """Of the pairs in an epoch: any may follow any other; or a batch is of 16 parts of the vision set at a time, in
    random order, so that features which no node can hold are streamed from storage."""
    steps: Annotated[int, Field(ge=1)] = 5000
    optimizer: Literal["adam", "adamw", "lion"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of every weight, bias and norm, not of the logit scale: coupled (L2) for Adam, decoupled for AdamW and Lion."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warm-up: a cosine to zero; none; or none until the last `decay_steps`, which fall linearly to zero."""
    warmup_steps: Annotated[int, Field(ge=0)] = 150
    """Linear."""
    decay_steps: Annotated[int, Field(ge=1)] | None = None
    """Of the schedule `wsd`."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Of the global gradient."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Also keeps an exponential moving average of the weights, which is what is validated and kept as the best."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the projections' products. Weights, normalisation and the loss's statistics are float32 in any case."""
    logit_scale: Annotated[float, Field(gt=0, le=100)] = math.exp(2.6592)
    """1 / temperature; where it is learned, its start."""
    learn_logit_scale: bool = False
    """Clamped to 100, as CLIP does."""
    logit_bias: float = -10.0
    """Start of the sigmoid loss's bias, which is learned (SigLIP, arXiv 2303.15343, section 3.2)."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the pairs, chosen by a hash of their keys, that is never trained on."""
    evaluate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations, after which the checkpoint is written that a later run continues from; after fewer of
    them where writing would take more than a tenth of the time."""
    monitor: Literal["loss", "recall"] = "loss"
    """What decides on the best checkpoint and on early stopping: the validation loss, or recall at 1."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Validations in a row without a gain of `min_delta` after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0

    @property
    def contrast_size(self) -> int:
        """Pairs that are contrasted with each other."""
        return self.global_batch_size // self.accumulation

    def effective(self, vision_dim: int, language_dim: int) -> "AlignmentSpec":
        """The same training on inputs so wide, with fields that change nothing of it at their defaults.

        Equal ones train the same model.
        """
        heads = {"vision": self.vision.effective(vision_dim), "language": self.language.effective(language_dim)}
        idle: dict[str, Any] = {}
        if self.loss != "sigmoid":
            idle["logit_bias"] = AlignmentSpec.model_fields["logit_bias"].default
        if self.patience is None:
            idle["min_delta"] = 0.0
        if self.optimizer == "adamw" and not self.weight_decay:
            # They differ in how weights decay.
            idle["optimizer"] = "adam"
        return self.model_copy(update=heads | idle)

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if not self.vision.depth and not self.language.depth:
            raise ValueError("both sides are locked (depth 0), so there is nothing to train: give one of them depth")
        if (self.dim is not None) != bool(self.vision.depth and self.language.depth):
            raise ValueError("`dim` says the width of the shared space where both sides have depth, and only there")
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.global_batch_size % self.accumulation or self.contrast_size < 2:
            raise ValueError(
                f"`global_batch_size` {self.global_batch_size} does not make {self.accumulation} equal "
                f"micro-batches (`accumulation`) of two pairs or more"
            )
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if (self.decay_steps is not None) != (self.schedule == "wsd"):
            raise ValueError("`decay_steps` says how long the schedule `wsd` falls, and is of no other")
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"`warmup_steps` and `decay_steps` together are more than the {self.steps} `steps`")
        return self
