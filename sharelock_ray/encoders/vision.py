"""Frozen vision encoders, through timm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load

from sharelock_ray import storage
from sharelock_ray.encoders.images import crop_image, upright
from sharelock_ray.encoders.provenance import device_name, hub_commit
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.errors import RequestError

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class VisionEncoder:
    """A frozen timm model on one device.

    Args:
        spec: what to load and how to prepare its input.
        device: where the model runs.
        batch_size: images of one forward pass; changes the speed, not the embeddings beyond rounding.

    Raises:
        RequestError: timm does not know the model, or the weights do not fit it.
    """

    def __init__(self, spec: VisionSpec, device: str = "cpu", batch_size: int = 64) -> None:
        self.spec = spec.resolved()
        self.batch_size = batch_size
        self._device = torch.device(device)
        self._dtype = getattr(torch, spec.dtype)
        self._model = _load(self.spec).eval().requires_grad_(False).to(self._device, self._dtype)
        hub = self._model.pretrained_cfg.get("hf_hub_id") if spec.weights == "pretrained" else None
        self.revision = hub_commit(hub, *_HUB_FILES) if hub else None
        """Commit of the weights on the hub; None for local ones."""
        mean, std = (
            torch.tensor(value, device=self._device).view(3, 1, 1) for value in (self.spec.mean, self.spec.std)
        )
        self._mean, self._std = mean * 255, std * 255

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds decoded images.

        Args:
            pixels: (N, image_size, image_size, 3) uint8, as `decode_image` gives them.

        Returns:
            (N, D) float32, not normalised.
        """
        batches = [
            self._forward(torch.tensor(pixels[start : start + self.batch_size]))
            for start in range(0, len(pixels), self.batch_size)
        ]
        return torch.cat(batches).float().cpu().numpy() if batches else np.empty((0, self.dim), np.float32)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeds Pillow images; (N, D) float32."""
        size = self.spec.preprocessing.image_size
        pixels = [crop_image(upright(image), self.spec.preprocessing) for image in images]
        return self.encode(np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8))

    @property
    def device(self) -> str:
        """Name of the device."""
        return device_name(self._device)

    @property
    def dim(self) -> int:
        """Width D of an embedding."""
        # Some models widen what they pool, and say so by another name.
        pooled = getattr(self._model, "head_hidden_size", None) if self.spec.pooling == "model" else None
        return int(pooled or self._model.num_features) * (2 if self.spec.pooling == "cls_mean" else 1)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        images = ((images.float() - self._mean) / self._std).to(self._dtype)
        if self.spec.pooling == "model":
            return self._model(images)
        tokens = self._model.forward_features(images)
        prefix = self._model.num_prefix_tokens
        cls, mean = tokens[:, 0], tokens[:, prefix:].mean(1)
        return {"cls": cls, "mean": mean, "cls_mean": torch.cat([cls, mean], 1)}[self.spec.pooling]


def _load(spec: VisionSpec) -> Any:
    if not timm.is_model(spec.model.partition(".")[0]):
        raise RequestError(f"timm knows no model {spec.model!r}: see timm.list_models()")
    pretrained = spec.weights == "pretrained"
    try:
        model = timm.create_model(spec.model, pretrained=pretrained, num_classes=0, img_size=spec.image_size)
    except TypeError:  # Only models with a fixed grid of positions take the size.
        model = timm.create_model(spec.model, pretrained=pretrained, num_classes=0)
    prefix = getattr(model, "num_prefix_tokens", None)
    if spec.pooling != "model" and (prefix is None or (prefix == 0 and spec.pooling != "mean")):
        raise RequestError(f"{spec.model} has no tokens for pooling {spec.pooling!r}: use `pooling: model`")
    if not pretrained:
        try:
            model.load_state_dict(load(storage.read_bytes(spec.weights)))
        except (RuntimeError, SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RequestError(f"{spec.weights} does not hold weights of {spec.model}: {reason} …") from None
    return model
