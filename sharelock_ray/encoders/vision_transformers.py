"""Vision models and vision towers of transformers."""

import inspect
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from sharelock_ray.encoders.automodel import layers_of, load_model
from sharelock_ray.encoders.backends import Tower
from sharelock_ray.encoders.images import Interpolation, Preprocessing, crop_image
from sharelock_ray.encoders.loading import loading
from sharelock_ray.encoders.norms import find_norm
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.weights import local_weights
from sharelock_ray.errors import RequestError, is_resource_fault

# Where models of several towers have that of images.
_TOWERS = ("vision_model", "vision_tower", "visual")
_NORMS = ("layernorm", "post_layernorm", "norm")
# Parameters, beside the class token, that are tokens before those of the patches.
_TOKENS = ("distillation_token", "register_tokens")
_RESAMPLING = {int(getattr(Image.Resampling, name.upper())): name for name in get_args(Interpolation)}
# Grey levels by which a resize by torchvision may differ from Pillow's.
_LEVELS = 3


def preprocessing(spec: VisionSpec) -> dict[str, Any]:
    """See `Backend`."""
    with loading(f"the image processor of {spec.model!r}"):
        processor = AutoImageProcessor.from_pretrained(_source(spec), revision=spec.revision)
    stated = _stated(processor.to_dict())
    if stated is None or not _agrees(processor, stated):
        raise RequestError(
            f"{type(processor).__name__} of {spec.model} does more than resize, crop and normalise: set `image_size`, "
            f"`resize`, `crop_mode`, `interpolation`, `mean` and `std`"
        )
    if spec.image_size:
        stated["resize"] = stated["resize"] * spec.image_size // stated["image_size"]
    return stated


def hub_id(spec: VisionSpec) -> str | None:
    """See `Backend`."""
    return None if spec.is_local else spec.model


def load(spec: VisionSpec) -> Tower:
    """See `Backend`."""
    with loading(repr(spec.model)):
        whole, lacks = load_model(_source(spec), spec.dtype, revision=spec.revision)
        model = next((getattr(whole, name) for name in _TOWERS if hasattr(whole, name)), whole).eval()
        run = _Run(model, spec)
        shape = run.probe()
    parameters = {name.rpartition(".")[2]: value for name, value in model.named_parameters()}
    has_cls = "cls_token" in parameters or "class_embedding" in parameters
    extra = (parameters[name].shape for name in _TOKENS if name in parameters)
    prefix = has_cls + sum(each[1] for each in extra)
    # Patches form a square. What is left of other tokens is not known.
    side = (shape[1] - prefix) ** 0.5 if len(shape) == 3 else 0.0
    has_tokens = side >= 1 and side == int(side)
    return Tower(
        module=model,
        forward=run,
        pooled=run.pooled,
        tokens=(lambda output: output.tokens) if has_tokens else None,
        prefix=prefix,
        has_cls=has_cls,
        layers=tuple(layers_of(model, model.config.num_hidden_layers) or ()) if has_tokens else (),
        norm=run.norm if has_tokens else None,
        pooled_norm=None if has_tokens else run.norm,
        lacks=lacks,
    )


class _Output(NamedTuple):
    tokens: torch.Tensor
    """(B, T, D) after the final norm, or (B, D, H, W) where the model has a map."""
    pooled: torch.Tensor | None


class _Run:
    """The forward pass of a model."""

    def __init__(self, model: Any, spec: VisionSpec) -> None:
        self.norm = find_norm(model, *_NORMS)
        self._model, self._spec = model, spec
        self._norms_pooled = False
        takes = inspect.signature(model.forward).parameters
        resized = spec.image_size != getattr(model.config, "image_size", spec.image_size)
        self._options = {"interpolate_pos_encoding": True} if resized and "interpolate_pos_encoding" in takes else {}
        # ViT-MAE keeps patches by chance, and shuffles them; the patches with the least noise come first.
        self._orders = "noise" in takes
        if self._orders:
            model.config.mask_ratio = 0.0

    def probe(self) -> torch.Size:
        """Runs one image, and returns the shape of its tokens or map."""
        seen: list[int] = []
        norm = self.norm or torch.nn.Identity()
        hook = norm.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0].ndim))
        size = self._spec.preprocessing.image_size
        with torch.inference_mode():
            shape = self(torch.zeros(1, 3, size, size, dtype=self._model.dtype)).tokens.shape
        hook.remove()
        # CLIP norms the class token alone.
        self._norms_pooled = seen == [2] and len(shape) == 3
        return shape

    def __call__(self, images: torch.Tensor) -> _Output:
        options: dict[str, Any] = dict(self._options)
        if self._orders:
            patches = (images.shape[-1] // self._model.config.patch_size) ** 2
            options["noise"] = torch.arange(patches, device=images.device).expand(len(images), -1)
        output = self._model(pixel_values=images, **options)
        tokens = output.last_hidden_state
        if self._norms_pooled and self.norm is not None:
            tokens = self.norm(tokens)
        return _Output(tokens, getattr(output, "pooler_output", None))

    def pooled(self, output: _Output) -> torch.Tensor:
        if output.pooled is None:
            raise RequestError(f"{self._spec.model} has no pooled output of its own: set another `pooling`")
        return output.pooled.flatten(1)


def _source(spec: VisionSpec) -> str:
    return str(local_weights(spec.model)) if spec.is_local else spec.model


def _stated(processor: dict[str, Any]) -> dict[str, Any] | None:
    """Returns what a processor's configuration says as fields of a spec; None if they cannot say it."""
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    crops = processor.get("do_center_crop", False)
    short, share = size.get("shortest_edge"), processor.get("crop_pct")
    if short and share:
        # ConvNeXt: small images are cropped, others squashed.
        image_size, mode = short, "center_floor" if short < 384 else "squash"
        resize = int(short / share) if short < 384 else short
    elif short:
        image_size, resize, mode = crop.get("height") if crops else None, short, "center_floor"
    else:
        resize, mode = size.get("height"), "squash"
        image_size = crop.get("height") if crops else resize
    interpolation = _RESAMPLING.get(int(processor.get("resample") or 0))
    if not (image_size and resize and interpolation and processor.get("do_resize")):
        return None
    normalises = processor.get("do_normalize")
    return {
        "image_size": image_size,
        "resize": resize,
        "crop_mode": mode,
        "interpolation": interpolation,
        "mean": tuple(processor["image_mean"]) if normalises else (0.0, 0.0, 0.0),
        "std": tuple(processor["image_std"]) if normalises else (1.0, 1.0, 1.0),
    }


def _agrees(processor: Any, stated: dict[str, Any]) -> bool:
    """Whether a processor does what it states, and nothing else, to a made-up image."""
    # As smooth as a photograph, larger than any model's images, not square.
    y, x, channel = np.ogrid[:700, :901, :3]
    image = Image.fromarray((127.5 + 127 * np.sin(x / 60 + channel) * np.cos(y / 70)).astype(np.uint8))
    try:
        theirs = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])
    # Processors of other inputs than one image fail in any way.
    except Exception as error:
        if is_resource_fault(error):
            raise
        return False
    fields = Preprocessing(**{name: stated[name] for name in Preprocessing.model_fields if name in stated})
    ours = (crop_image(image, fields) / 255 - stated["mean"]) / stated["std"]
    if theirs.shape != ours.transpose(2, 0, 1).shape:
        return False
    return bool((np.abs(theirs.transpose(1, 2, 0) - ours) * stated["std"] * 255).max() <= _LEVELS)
