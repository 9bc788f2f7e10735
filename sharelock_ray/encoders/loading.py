"""Weights from a file into a model: what names mean, what a file lacks, and one line where it is not to be used."""

import pickle
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sharelock_ray.encoders.passes import is_out_of_memory
from sharelock_ray.errors import RequestError, is_resource_fault

WRAPPERS = {r"^module\.": "", r"_orig_mod\.": "", r"_fsdp_wrapped_module\.": "", r"_checkpoint_wrapped_module\.": ""}
"""Patterns of what training adds to the names of weights (DDP, `torch.compile`, FSDP), each with what is meant."""

PICKLED = "it is a pickled file, which may run code of its author, and is not read: convert it to safetensors"


def unwrapped(name: str) -> str:
    """The name of a weight without those of the wrappers that its model was trained in."""
    for pattern, meant in WRAPPERS.items():
        name = re.sub(pattern, meant, name)
    return name


def listed(names: Collection[str], most: int = 3) -> str:
    """How many names there are, and the first of them."""
    few = ", ".join(sorted(names)[:most])
    return f"{len(names)} ({few}{', …' if len(names) > most else ''})"


@contextmanager
def loading(what: str) -> Iterator[None]:
    """For the time of the block a library reads a user's model, and each of its many errors is one line.

    Raises:
        RequestError: it cannot be loaded, for another reason than want of memory and the like.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RequestError) or is_resource_fault(error) or is_out_of_memory(error):
            raise
        said = PICKLED if isinstance(error, pickle.UnpicklingError) else _line(error)
        raise RequestError(f"cannot load {what}: {said}") from None


def _line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    # What is raised for a missing field or attribute is often a bare name.
    plain = isinstance(error, (OSError, ValueError)) and line
    return line if plain else f"{type(error).__name__}: {line}".removesuffix(": ")
