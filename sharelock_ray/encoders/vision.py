"""Frozen vision encoders, through timm."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from sharelock_ray.encoders.images import crop_image, upright
from sharelock_ray.encoders.loading import listed, loading
from sharelock_ray.encoders.norms import FinalNorm, find_norm
from sharelock_ray.encoders.passes import Arrays, Encoded, Passes, is_out_of_memory, suited
from sharelock_ray.encoders.provenance import device_name, hub_commit
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision_weights import Weights, beside_the_backbone, named_as, read_weights
from sharelock_ray.encoders.weights import local_weights
from sharelock_ray.errors import RequestError, is_resource_fault

# Images per forward pass. Larger batches leave the caches of a CPU: `sharelock bench encoders`.
_CPU_IMAGES, _GPU_IMAGES = 16, 128


class VisionEncoder:
    """A frozen timm model on one device.

    Args:
        spec: model, weights and preprocessing.
        device: where the model runs.
        batch_size: images per forward pass; None is a default for the device. Changes the speed, and the embeddings
            only by rounding. Halved after each out-of-memory error.
        others: more encoders with the same `forward_key`, read from the same forward passes.
        compiled: whether to use `torch.compile`, which slows down the first batches.
        channels_last: whether the model uses the channels-last (NHWC) memory format.

    Raises:
        RequestError: timm has no such model, the weights do not fit it, or it lacks what a spec reads.
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
        self._model = _load(self.spec).eval().requires_grad_(False).to(self._device, self._dtype)
        if channels_last:
            self._model.to(memory_format=torch.channels_last)
        for each in self.specs:
            _require_tokens(self._model, each)
        self._norms = [None if each.final_norm else _final_norm(self._model, each) for each in self.specs]
        self._features = self._model.forward_features
        self.revision = hub_commit(spec.hub_id, spec.revision) if spec.hub_id else None
        """Commit of the weights on the hub; None for other weights."""
        mean, std = (
            torch.tensor(value, device=self._device).view(3, 1, 1) for value in (self.spec.mean, self.spec.std)
        )
        self._mean, self._std = mean * 255, std * 255
        size = self.spec.preprocessing.image_size
        self._one = np.zeros((1, size, size, 3), np.uint8)
        with loading(f"{spec.model!r} for images of {size} pixels"), torch.inference_mode():
            self._dims = [each.shape[1] for each in self._forward(torch.tensor(self._one, device=self._device))]
        if compiled:
            self._features = torch.compile(self._features)

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
            features = self._features(images)
        return [self._read(features, spec, norm) for spec, norm in zip(self.specs, self._norms, strict=True)]

    def _read(self, features: torch.Tensor, spec: VisionSpec, norm: FinalNorm | None) -> torch.Tensor:
        """Returns the (B, D) embeddings of one spec from the model's features."""
        if spec.pooling == "model":
            if norm is None or norm.in_trunk:
                return self._model.forward_head(features if norm is None else norm.before)
            self._model.forward_head(features)
            return norm.before.flatten(1)
        tokens = features if norm is None else norm.before
        cls, mean = tokens[:, 0], tokens[:, self._model.num_prefix_tokens :].mean(1)
        return {"cls": cls, "mean": mean, "cls_mean": torch.cat([cls, mean], 1)}[spec.pooling]


def _cut(rows: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Cuts consecutive rows into batches."""
    for start in range(0, len(rows), batch_size):
        yield list(rows[start : start + batch_size])


def _load(spec: VisionSpec) -> Any:
    """Returns the model without its classifier, for images of the spec's size."""
    if not timm.is_model(spec.model.partition(".")[0]):
        raise RequestError(f"timm knows no model {spec.model!r}: see timm.list_models()")
    if spec.revision and spec.hub_id is None:
        raise RequestError(f"the weights of {spec.model} do not come from the hub: omit `revision`")
    pretrained = spec.weights == "pretrained"
    size = spec.image_size
    if pretrained and spec.position_interpolation != "timm":
        # At the size of the weights, because timm resamples while it loads.
        size = timm.get_pretrained_cfg(spec.model).input_size[-1]
    with loading(repr(spec.model)):
        model = _create(spec, size)
    if not pretrained:
        _load_file(model, spec)
    _set_image_size(model, spec)
    return model


def _create(spec: VisionSpec, image_size: int | None) -> Any:
    pretrained = spec.weights == "pretrained"
    settings: dict[str, Any] = {
        "pretrained": pretrained,
        "pretrained_cfg_overlay": {"hf_hub_id": f"{spec.hub_id}@{spec.revision}"} if spec.revision else None,
    }
    # With another classifier than that of the weights, timm does not report which of them are missing.
    settings |= {} if pretrained else {"num_classes": 0}
    try:
        try:
            model = timm.create_model(spec.model, img_size=image_size, **settings)
        except TypeError:  # Only models with a fixed grid of positions accept the size.
            model = timm.create_model(spec.model, **settings)
    except RuntimeError as error:
        # torch lists missing weights in several lines.
        raise RuntimeError(" ".join(str(error).split())[:160]) from error
    if getattr(model, "num_classes", 0):
        model.reset_classifier(0)
    return model


def _load_file(model: Any, spec: VisionSpec) -> None:
    """Loads the spec's own weights; the model then has the image size of these weights."""
    name = spec.weights
    expected = model.state_dict()
    weights = named_as(expected, read_weights(local_weights(name), name), name)
    try:
        if _has_positions(model) and "pos_embed" in weights:
            grid = int((weights["pos_embed"].shape[1] - _prefix(model)) ** 0.5)
            model.set_input_size(img_size=grid * model.patch_embed.feat_ratio())
        _require_same_patches(expected, weights)
        # Maps what the authors of the model's family call its parameters.
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert and expected.keys() - weights.keys() | weights.keys() - expected.keys():
            weights = convert(weights, model)
        found = model.load_state_dict(weights, strict=False)
    # What converts names fails in any way on the weights of another model.
    except Exception as error:
        if is_resource_fault(error) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise RequestError(f"{name} does not hold weights of {spec.model}: {reason} …") from None
    classifiers = model.pretrained_cfg.get("classifier") or ()
    # The head's module may also hold layers of the backbone.
    heads = {name.partition(".")[0] for name in ((classifiers,) if isinstance(classifiers, str) else classifiers)}
    others = [
        name for name in found.unexpected_keys if name.partition(".")[0] not in heads and not beside_the_backbone(name)
    ]
    if found.missing_keys or others:
        lacks = f"it lacks {listed(found.missing_keys)}, and has others: {listed(others)}"
        raise RequestError(f"{spec.weights} does not hold weights of {spec.model}: {lacks}")


def _require_same_patches(expected: Weights, weights: Weights) -> None:
    """Raises ValueError if the patches have another size, to which timm would resample them."""
    name = "patch_embed.proj.weight"
    shapes = [tuple(each[name].shape) for each in (expected, weights) if name in each and each[name].ndim == 4]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name} has the shape {shapes[1]} instead of {shapes[0]}")


def _has_positions(model: Any) -> bool:
    """Whether the model has a learnt position embedding for each patch of a square grid."""
    positions = getattr(model, "pos_embed", None)
    return isinstance(positions, torch.Tensor) and positions.ndim == 3 and hasattr(model, "set_input_size")


def _prefix(model: Any) -> int:
    """Number of position embeddings that belong to no patch."""
    return 0 if getattr(model, "no_embed_class", False) else int(model.num_prefix_tokens)


def _set_image_size(model: Any, spec: VisionSpec) -> None:
    """Resamples the model's position embeddings to the spec's image size."""
    if not _has_positions(model):
        if spec.position_interpolation != "timm":
            raise RequestError(f"{spec.model} does not resample position embeddings: omit `position_interpolation`")
        return
    if model.patch_embed.img_size == (spec.image_size, spec.image_size):
        return
    learnt, prefix = model.pos_embed.detach(), _prefix(model)
    model.set_input_size(img_size=spec.image_size)
    if spec.position_interpolation == "dinov2-hub":
        grid = hub_positions(learnt[:, prefix:], model.patch_embed.grid_size[0], registers=model.num_reg_tokens > 0)
        model.pos_embed = torch.nn.Parameter(torch.cat([learnt[:, :prefix], grid], 1))


def hub_positions(positions: torch.Tensor, side: int, registers: bool) -> torch.Tensor:
    """Resamples position embeddings as DINOv2's own code does (facebookresearch/dinov2, `hub/backbones.py`).

    Models without registers scale by a factor of `(side + 0.1) / M` without antialiasing, which shifts the samples
    slightly; models with registers (arXiv 2309.16588) resample to the exact size with antialiasing.

    Args:
        positions: (1, M * M, D), position embeddings of the patches only.
        side: patches per side of the new grid.
        registers: whether the model has register tokens.

    Returns:
        (1, side * side, D).
    """
    old = int(positions.shape[1] ** 0.5)
    grid = positions.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    if registers:
        grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    else:
        factor = (side + 0.1) / old
        grid = torch.nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


def _require_tokens(model: Any, spec: VisionSpec) -> None:
    has = {
        "model": True,
        "mean": getattr(model, "num_prefix_tokens", None) is not None,
        "cls": getattr(model, "cls_token", None) is not None,
    }
    if not all(has[part] for part in spec.pooling.split("_")):
        raise RequestError(f"{spec.model} has no tokens for pooling {spec.pooling!r}: use `pooling: model`")


def _final_norm(model: Any, spec: VisionSpec) -> FinalNorm:
    """Returns the norm that a spec leaves out: that of the tokens, or that of the pooled vector in the head."""
    tokens = find_norm(model, "norm")
    if tokens is not None:
        return FinalNorm(tokens, in_trunk=True)
    # A head that widens does so after its norm, so the norm's input is not the embedding.
    pools = spec.pooling == "model" and getattr(model, "head_hidden_size", None) == model.num_features
    pooled = find_norm(model, "fc_norm", "head.norm") if pools else None
    if pooled is None:
        raise RequestError(f"{spec.model} has no final norm for pooling {spec.pooling!r}: omit `final_norm`")
    return FinalNorm(pooled, in_trunk=False)
