"""How extraction uses a cluster. Needs no Ray, so that recipes are read quickly."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sharelock_ray.config import Config


class ExtractionOptions(Config):
    """How extraction uses the cluster. Changes speed, not embeddings."""

    min_actors: Annotated[int, Field(ge=1)] = 1
    max_actors: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1
    """Logical CPUs of an actor."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of an actor; a fraction shares one."""
    chunk_size: Annotated[int, Field(ge=1)] = 512
    """Samples of a staged chunk: what a kill can lose, and the pool that captions are sorted in."""
    image_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images of one forward pass, null for what suits the device; halved, as the token budget is, where its
    memory does not suffice."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Padded tokens of one forward pass of a language model, null for what suits the device."""
    compile: bool = False
    """Encoders through `torch.compile`: pays on long runs."""
    channels_last: bool = False
    """Vision encoders in the memory order that GPUs prefer for convolutions."""

    @model_validator(mode="after")
    def _pool_can_be(self) -> Self:
        if self.min_actors > self.max_actors:
            raise ValueError(
                f"`min_actors` is {self.min_actors}, above `max_actors`, {self.max_actors}: raise that too"
            )
        return self

    @property
    def actors_read(self) -> bool:
        """Each actor reads for itself: Ray runs both in one process where both ask for one CPU and no more."""
        return self.num_cpus == 1 and not self.num_gpus

    def actors(self, shards: int) -> int:
        """The largest pool that finds work in so many shards: an actor that reads for itself has one at a time."""
        return min(self.max_actors, shards) if self.actors_read else self.max_actors
