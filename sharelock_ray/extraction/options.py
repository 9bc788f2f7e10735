"""How extraction uses a cluster. Needs no Ray, so that recipes are read quickly."""

from typing import Annotated

from pydantic import Field

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
