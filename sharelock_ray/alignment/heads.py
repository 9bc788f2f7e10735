"""The trained part of a model: both projections, the logit scale, and the sigmoid loss's bias."""

import math
from typing import Any

import torch
from torch import nn

from sharelock_ray.alignment.projection import Projection
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec

MAX_LOGIT_SCALE = 100.0
"""CLIP's clamp (arXiv 2103.00020, section 2.5)."""
UNDECAYED = ("log_logit_scale", "logit_bias")
"""Parameters without weight decay, since zero is not a neutral value for them."""


class Heads(nn.Module):
    """One projection per side into a shared space, the logit scale, and the sigmoid loss's bias.

    Args:
        spec: settings of both projections.
        vision_dim: width of the frozen image embedding.
        language_dim: width of the frozen text embedding.
    """

    def __init__(self, spec: AlignmentSpec, vision_dim: int, language_dim: int) -> None:
        super().__init__()
        dim = spec.dim or (language_dim if spec.vision.depth else vision_dim)
        self.vision = _projection(spec.vision, vision_dim, dim)
        self.language = _projection(spec.language, language_dim, dim)
        self.log_logit_scale = nn.Parameter(
            torch.tensor(math.log(spec.logit_scale)), requires_grad=spec.learn_logit_scale
        )
        self.logit_bias: nn.Parameter | None
        bias = nn.Parameter(torch.tensor(spec.logit_bias)) if spec.loss == "sigmoid" else None
        self.register_parameter("logit_bias", bias)

    @property
    def logit_scale(self) -> torch.Tensor:
        """Scalar that multiplies the cosines."""
        return self.log_logit_scale.exp()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamps the logit scale to `MAX_LOGIT_SCALE`.

        Clamps the parameter itself, as in CLIP: a clamp within the loss would have zero gradient beyond the limit.
        """
        self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def _projection(spec: ProjectionSpec, in_dim: int, out_dim: int) -> Projection:
    settings: dict[str, Any] = spec.model_dump()
    return Projection(in_dim, out_dim, **settings)
