"""How training uses a cluster. Needs no Ray, so that recipes are read quickly."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sharelock_ray.config import Config


class TrainingOptions(Config):
    """How training uses the cluster. Changes speed, not the result beyond rounding."""

    num_workers: Annotated[int, Field(ge=1)] = 1
    min_workers: Annotated[int, Field(ge=1)] | None = None
    """Also trains with fewer than `num_workers`, down to so many, while the cluster has no room for more."""
    num_cpus: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs of a worker; also its threads where it has no GPU."""
    use_gpu: bool = False
    """One GPU for each worker."""
    stream: bool = False
    """Streams the features from storage even where the node could hold them, as on one with a slow disk. Wants
    `alignment.order: parts`."""
    compile: bool = False
    """Compiles the projections by `torch.compile`: half a minute at the start, and slower on CPUs."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Lost workers after which training gives up."""

    @model_validator(mode="after")
    def _fewer(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"`min_workers` {self.min_workers} is more than `num_workers` {self.num_workers}")
        return self
