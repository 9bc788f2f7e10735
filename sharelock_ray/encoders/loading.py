"""Loading weights into a model: names of parameters, and one-line errors."""

import pickle
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sharelock_ray.encoders.passes import is_out_of_memory
from sharelock_ray.errors import RequestError, is_resource_fault

WRAPPERS = {r"^module\.": "", r"_orig_mod\.": "", r"_fsdp_wrapped_module\.": "", r"_checkpoint_wrapped_module\.": ""}
"""Patterns of the prefixes that training wrappers add to parameter names (DDP, `torch.compile`, FSDP), and their
replacements."""

PICKLED = "it is a pickled file, which can run code when it is read: convert it to safetensors"


def unwrapped(name: str) -> str:
    """Returns a parameter's name without the prefixes of training wrappers."""
    for pattern, meant in WRAPPERS.items():
        name = re.sub(pattern, meant, name)
    return name


def listed(names: Collection[str], most: int = 3) -> str:
    """Returns the number of names and the first of them, as text."""
    few = ", ".join(sorted(names)[:most])
    return f"{len(names)} ({few}{', …' if len(names) > most else ''})"


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turns a library's errors while it loads `what` into one line.

    Raises:
        RequestError: loading failed. Resource errors, such as out of memory, pass through unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RequestError) or is_resource_fault(error) or is_out_of_memory(error):
            raise
        reason = PICKLED if isinstance(error, pickle.UnpicklingError) else line_of(error)
        raise RequestError(f"cannot load {what}: {reason}") from None


def line_of(error: Exception) -> str:
    """Returns an error's first line, after the error's class where the line alone would say too little."""
    if str(error).startswith("Error(s) in loading state_dict"):
        # The names of missing weights are in the lines after it.
        return " ".join(str(error).split())[:200]
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    # The message of a KeyError or AttributeError is often a bare name.
    plain = isinstance(error, (OSError, ValueError)) and line
    return line if plain else f"{type(error).__name__}: {line}".removesuffix(": ")


@contextmanager
def quietly() -> Iterator[None]:
    """Hides transformers' progress bar, which only clutters an actor's log, and its warnings of weights that a model
    lacks, which `load_model` returns."""
    # Imported here, because vision models load without transformers.
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
