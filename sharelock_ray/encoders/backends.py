"""The libraries that vision encoders are loaded with: what each provides, in a module `vision_<backend>`.

Does not import torch, so that a recipe with all fields set can be read without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from sharelock_ray.errors import RequestError

if TYPE_CHECKING:
    import torch

    from sharelock_ray.encoders.spec import VisionSpec


@dataclass(frozen=True)
class Tower:
    """A loaded vision model and its parts."""

    module: "torch.nn.Module"
    """All parameters."""
    forward: "Callable[[torch.Tensor], Any]"
    """One forward pass of normalised images (B, 3, H, W); what it returns is read by `tokens` and `pooled`."""
    pooled: "Callable[[Any], torch.Tensor]"
    """Returns the model's own output, (B, D)."""
    tokens: "Callable[[Any], torch.Tensor] | None" = None
    """Returns the tokens after the final norm, (B, T, D); None if the model has no tokens."""
    head: "Callable[[torch.Tensor], torch.Tensor] | None" = None
    """Pools given tokens as `pooled` does; None if the model cannot."""
    prefix: int = 0
    """Number of tokens before those of the patches: class token, registers."""
    has_cls: bool = False
    """Whether the first token is a class token."""
    layers: "Sequence[torch.nn.Module]" = ()
    """The layers that map tokens to tokens, in their order."""
    norm: "torch.nn.Module | None" = None
    """The final norm of all tokens."""
    pooled_norm: "torch.nn.Module | None" = None
    """The norm whose output is the model's own output, in models without `norm`."""
    lacks: str = ""
    """Description of missing weights, which are NaN."""


class Backend(Protocol):
    """A module `vision_<backend>`."""

    def preprocessing(self, spec: "VisionSpec") -> dict[str, Any]:
        """Returns `image_size`, `resize`, `crop_mode`, `interpolation`, `mean` and `std` as in the model's own
        preprocessing; `resize` is in proportion to the spec's `image_size`, if it has one.

        Raises:
            RequestError: the library has no such model, or its preprocessing needs fields that the spec omits.
        """

    def hub_id(self, spec: "VisionSpec") -> str | None:
        """Returns the repository of the weights on the hub; None for other weights."""

    def load(self, spec: "VisionSpec") -> Tower:
        """Loads the model of a resolved spec.

        Raises:
            RequestError: it cannot be loaded.
        """


def backend(name: str) -> Backend:
    """Returns the module of a backend.

    Raises:
        RequestError: its library is not installed.
    """
    try:
        return cast(Backend, import_module(f"sharelock_ray.encoders.vision_{name}"))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sharelock_ray"):
            raise
        raise RequestError(
            f"`backend: {name}` needs the package {error.name}: pip install 'sharelock-ray[{name}]' on every node"
        ) from None
