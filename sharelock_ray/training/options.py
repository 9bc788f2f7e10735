"""How training uses a cluster. Needs no Ray, so that recipes are read quickly."""

from typing import Annotated

from pydantic import Field

from sharelock_ray.config import Config


class TrainingOptions(Config):
    """How training uses the cluster. Changes speed, not the result beyond rounding."""

    num_workers: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs of a worker; also its threads where it has no GPU."""
    use_gpu: bool = False
    """One GPU for each worker."""
    compile: bool = False
    """Compiles the projections by `torch.compile`: half a minute at the start, and slower on CPUs."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Lost workers after which training gives up."""
