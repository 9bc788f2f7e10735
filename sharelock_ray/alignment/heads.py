"""The trained part of a model: both projections and the logit scale."""

import math
from typing import Any

import torch
from torch import nn

from sharelock_ray.alignment.projection import Projection
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec

MAX_LOGIT_SCALE = 100.0
"""CLIP's clamp (arXiv 2103.00020, section 2.5)."""


class Heads(nn.Module):
    """A projection for each side, into one shared space.

    Args:
        spec: what they are like.
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

    @property
    def logit_scale(self) -> torch.Tensor:
        """Scalar that multiplies cosines, at most `MAX_LOGIT_SCALE`."""
        return self.log_logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()


def _projection(spec: ProjectionSpec, in_dim: int, out_dim: int) -> Projection:
    settings: dict[str, Any] = spec.model_dump()
    return Projection(in_dim, out_dim, **settings)
