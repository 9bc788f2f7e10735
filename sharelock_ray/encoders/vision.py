"""Frozen vision encoders: what is read of the models of any backend."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from sharelock_ray.encoders.backends import Tower, backend
from sharelock_ray.encoders.images import crop_image, upright
from sharelock_ray.encoders.linear import accelerate
from sharelock_ray.encoders.loading import loading
from sharelock_ray.encoders.norms import FinalNorm, HiddenStates
from sharelock_ray.encoders.passes import Arrays, Encoded, Passes, suited
from sharelock_ray.encoders.provenance import device_name, hub_commit
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.errors import RequestError

# Images per forward pass. Larger batches leave the caches of a CPU: `sharelock bench encoders`.
_CPU_IMAGES, _GPU_IMAGES = 16, 128


class VisionEncoder:
    """A frozen vision model on one device.

    Args:
        spec: model, weights and preprocessing.
        device: where the model runs.
        batch_size: images per forward pass; None is a default for the device. Changes the speed, and the embeddings
            only by rounding. Halved after each out-of-memory error.
        others: more encoders with the same `forward_key`, read from the same forward passes.
        compiled: whether to use `torch.compile`, which slows down the first batches.
        channels_last: whether the model uses the channels-last (NHWC) memory format.

    Raises:
        RequestError: the backend has no such model, the weights do not fit it, or it lacks what a spec reads.
    """

    def __init__(
        self,
        spec: VisionSpec,
        device: str = "cpu",
        batch_size: int | None = None,
        *,
        others: Sequence[VisionSpec] = (),
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.spec = spec.resolved()
        self.specs = [self.spec, *(other.resolved() for other in others)]
        self._device = torch.device(device)
        self._dtype = getattr(torch, spec.dtype)
        self._passes = Passes(self._device, batch_size or suited(self._device, _CPU_IMAGES, _GPU_IMAGES))
        tower = backend(self.spec.backend).load(self.spec)
        self._model = tower.module.eval().requires_grad_(False).to(self._device, self._dtype)
        if channels_last:
            self._model.to(memory_format=torch.channels_last)
        if not compiled:
            accelerate(self._model)
        self._output = tower.forward
        self._readings = [_reading(tower, each) for each in self.specs]
        self.revision = hub_commit(spec.hub_id, spec.revision) if spec.hub_id else None
        """Commit of the weights on the hub; None for other weights."""
        mean, std = (
            torch.tensor(value, device=self._device).view(3, 1, 1) for value in (self.spec.mean, self.spec.std)
        )
        self._mean, self._std = mean * 255, std * 255
        size = self.spec.preprocessing.image_size
        self._one = np.zeros((1, size, size, 3), np.uint8)
        with loading(f"{spec.model!r} for images of {size} pixels"), torch.inference_mode():
            probed = self._forward(torch.tensor(self._one, device=self._device))
        if tower.lacks and not all(each.isfinite().all() for each in probed):
            raise RequestError(f"{spec.model} is incomplete: {tower.lacks}")
        self._dims = [each.shape[1] for each in probed]
        if compiled:
            self._output = torch.compile(self._output)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds decoded images.

        Args:
            pixels: (N, image_size, image_size, 3) uint8, as `decode_image` returns them.

        Returns:
            (N, D) float32, not normalised.

        Raises:
            RunError: an image does not fit into the device's memory.
        """
        return self.encode_each(pixels).only()

    @torch.inference_mode()
    def encode_each(self, pixels: np.ndarray) -> Encoded:
        """Embeds decoded images for `spec` and each of `others`; see `encode`."""

        def load(rows: list[int]) -> Arrays:
            return (pixels[rows[0] : rows[-1] + 1],)

        return self._passes.run(len(pixels), self._dims, _cut, load, self._forward, (self._one,))

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeds Pillow images; (N, D) float32."""
        pixels = [crop_image(upright(image), self.spec.preprocessing) for image in images]
        return self.encode(np.stack(pixels) if pixels else self._one[:0])

    @property
    def device(self) -> str:
        """Name of the device."""
        return device_name(self._device)

    @property
    def batch_size(self) -> int:
        """Current number of images per forward pass."""
        return self._passes.limit

    @property
    def dim(self) -> int:
        """Width D of an embedding."""
        return self._dims[0]

    def _forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        # The permuted pixels are channels-last in memory.
        images = ((pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std).to(self._dtype)
        # TF32 would round float32 convolutions to 10 bits of mantissa on a GPU.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            output = self._output(images)
        return [reading(output) for reading in self._readings]


def _reading(tower: Tower, spec: VisionSpec) -> Callable[[Any], torch.Tensor]:
    """Returns the function that reads the (B, D) embeddings of one spec from the output of a forward pass.

    Raises:
        RequestError: the model lacks what the spec reads.
    """
    if spec.pooling == "model":
        return tower.pooled if spec.final_norm else _pooled_without_norm(tower, spec)
    tokens = tower.tokens
    if tokens is None:
        raise RequestError(f"{spec.model} has no tokens for pooling {spec.pooling!r}: use `pooling: model`")
    if "cls" in spec.pooling and not tower.has_cls:
        raise RequestError(f"{spec.model} has no class token for pooling {spec.pooling!r}: use `pooling: mean`")
    if spec.layer is not None:
        layers = len(tower.layers)
        if not -layers - 1 <= spec.layer <= layers or not layers:
            remedy = f"set `layer` from {-layers - 1} to {layers}" if layers else "omit `layer`"
            raise RequestError(f"{spec.model} has {layers} layers of tokens: {remedy}")
        hidden = HiddenStates(tower.layers, spec.layer)
        return lambda output: _pool(hidden.states, spec.pooling, tower.prefix)
    if spec.final_norm:
        return lambda output: _pool(tokens(output), spec.pooling, tower.prefix)
    if tower.norm is None:
        raise _no_norm(spec)
    norm = FinalNorm(tower.norm)
    return lambda output: _pool(norm.before, spec.pooling, tower.prefix)


def _pooled_without_norm(tower: Tower, spec: VisionSpec) -> Callable[[Any], torch.Tensor]:
    """As `_reading`, for the model's own pooling of what its final norm is given: tokens, or the pooled vector."""
    head = tower.head
    if tower.norm is not None and head is not None:
        tokens = FinalNorm(tower.norm)
        return lambda output: head(tokens.before)
    if tower.norm is not None or tower.pooled_norm is None:
        raise _no_norm(spec)
    norm = FinalNorm(tower.pooled_norm)

    def read(output: Any) -> torch.Tensor:
        tower.pooled(output)
        return norm.before.flatten(1)

    return read


def _no_norm(spec: VisionSpec) -> RequestError:
    return RequestError(f"{spec.model} has no final norm for pooling {spec.pooling!r}: omit `final_norm`")


def _pool(tokens: torch.Tensor, pooling: str, prefix: int) -> torch.Tensor:
    """Pools (B, T, D) tokens to (B, D) or (B, 2 D). The first `prefix` tokens belong to no patch."""
    parts = {"cls": tokens[:, 0], "mean": tokens[:, prefix:].mean(1)}
    return torch.cat([parts[part] for part in pooling.split("_")], 1)


def _cut(rows: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Cuts consecutive rows into batches."""
    for start in range(0, len(rows), batch_size):
        yield list(rows[start : start + batch_size])
