"""Settings of training on a cluster. Imports no Ray, so that recipes are read quickly."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sharelock_ray.config import Config


class TrainingOptions(Config):
    """Settings of training on a cluster. They change speed, and results by rounding only."""

    num_workers: Annotated[int, Field(ge=1)] = 1
    min_workers: Annotated[int, Field(ge=1)] | None = None
    """Minimum number of workers while the cluster has no room for `num_workers`; None: always `num_workers`."""
    num_cpus: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs per worker; also its number of threads."""
    use_gpu: bool = False
    """One GPU per worker."""
    stream: bool = False
    """Streams features from storage even if the node could hold them, for nodes with a slow disk. Requires
    `alignment.order: parts`."""
    compile: bool = False
    """Compiles the projections with `torch.compile`: half a minute to start; slower on CPUs."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Number of lost workers after which training fails."""

    @model_validator(mode="after")
    def _valid_bounds(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"`min_workers` {self.min_workers} exceeds `num_workers` {self.num_workers}")
        return self

    def least_resources(self, order: str) -> dict[str, float]:
        """What the fewest workers need. With the order `parts`, one CPU stays free to read."""
        fewest = self.min_workers or self.num_workers
        return {"CPU": fewest * self.num_cpus + (order == "parts"), "GPU": fewest * self.use_gpu}
