"""Settings of extraction on a cluster. Imports no Ray, so that recipes are read quickly."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sharelock_ray.config import Config


class ExtractionOptions(Config):
    """Settings of extraction on a cluster. They change speed, not embeddings."""

    min_actors: Annotated[int, Field(ge=1)] = 1
    max_actors: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1
    """Logical CPUs per actor."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs per actor; a fraction shares one."""
    chunk_size: Annotated[int, Field(ge=1)] = 512
    """Samples per staged chunk: the most that a killed actor loses. Captions are sorted within a chunk."""
    image_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images per forward pass; null: a default for the device. Halved, as is `token_budget`, when memory runs out."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Padded tokens per forward pass of a language model; null: a default for the device."""
    compile: bool = False
    """Compiles encoders with `torch.compile`, which pays off in long runs."""
    channels_last: bool = False
    """Uses the channels-last memory format for vision encoders: faster for ResNets (`sharelock bench encoders`)."""

    @model_validator(mode="after")
    def _valid_pool_size(self) -> Self:
        if self.min_actors > self.max_actors:
            raise ValueError(
                f"`min_actors` {self.min_actors} exceeds `max_actors` {self.max_actors}: raise `max_actors` too"
            )
        return self

    @property
    def least_resources(self) -> dict[str, float]:
        """What the smallest pool of actors needs, with one CPU that stays free to read."""
        return {"CPU": self.min_actors * self.num_cpus + 1, "GPU": self.min_actors * self.num_gpus}

    @property
    def actors_read(self) -> bool:
        """Whether actors read for themselves: Ray fuses reading and encoding if both need exactly one CPU."""
        return self.num_cpus == 1 and not self.num_gpus

    def actors(self, shards: int) -> int:
        """Maximum useful number of actors for `shards` shards; an actor that reads for itself takes one at a time."""
        return min(self.max_actors, shards) if self.actors_read else self.max_actors
