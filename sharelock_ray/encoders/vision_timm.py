"""Vision models of timm."""

import sys
from typing import Any, get_args

import timm
import torch

from sharelock_ray.encoders.backends import Tower
from sharelock_ray.encoders.images import CropMode
from sharelock_ray.encoders.loading import listed, loading
from sharelock_ray.encoders.norms import find_norm
from sharelock_ray.encoders.passes import is_out_of_memory
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision_weights import Weights, beside_the_backbone, named_as, read_weights
from sharelock_ray.encoders.weights import local_weights
from sharelock_ray.errors import RequestError, is_resource_fault


def preprocessing(spec: VisionSpec) -> dict[str, Any]:
    """See `Backend`."""
    model = _config(spec)
    if model is None:
        raise RequestError(f"timm knows no model {spec.model!r}: see timm.list_models()")
    _, height, width = model.input_size
    if spec.image_size is None and height != width:
        raise RequestError(f"{spec.model} expects images of {width} x {height} pixels: set `image_size`")
    if spec.crop_mode is None and model.crop_mode not in get_args(CropMode):
        raise RequestError(f"the crop mode {model.crop_mode!r} of {spec.model} is not supported: set `crop_mode`")
    return {
        "image_size": width,
        "resize": int((spec.image_size or width) / model.crop_pct),
        "crop_mode": model.crop_mode,
        "interpolation": model.interpolation,
        "mean": tuple(model.mean),
        "std": tuple(model.std),
    }


def hub_id(spec: VisionSpec) -> str | None:
    """See `Backend`."""
    model = _config(spec) if spec.weights == "pretrained" else None
    return model.hf_hub_id if model else None


def load(spec: VisionSpec) -> Tower:
    """See `Backend`."""
    return tower_of(_load(spec))


def tower_of(model: Any, wrapper: Any = None) -> Tower:
    """Returns the parts of a timm model.

    Args:
        wrapper: module that maps the model's output to its own by its `head`, if the model is a part of another.
    """
    prefix = getattr(model, "num_prefix_tokens", None)
    # A head that widens does so after its norm, so the norm's input is not the embedding.
    pools = wrapper is None and getattr(model, "head_hidden_size", None) == model.num_features

    def head(features: torch.Tensor) -> torch.Tensor:
        pooled = model.forward_head(features)
        return pooled if wrapper is None else wrapper.head(pooled)

    return Tower(
        module=wrapper or model,
        forward=model.forward_features,
        pooled=head,
        tokens=None if prefix is None else lambda features: features,
        head=head,
        prefix=prefix or 0,
        has_cls=getattr(model, "cls_token", None) is not None,
        layers=() if prefix is None else tuple(getattr(model, "blocks", ())),
        norm=find_norm(model, "norm"),
        pooled_norm=find_norm(model, "fc_norm", "head.norm") if pools else None,
    )


def _config(spec: VisionSpec) -> Any:
    """Returns timm's configuration of the model; None if timm has no such model."""
    try:
        return timm.get_pretrained_cfg(spec.model)
    except RuntimeError:  # timm has the model, but not its tag.
        return None


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
        model = timm.create_model(spec.model, img_size=image_size, **settings)
    except TypeError:  # Only models with a fixed grid of positions accept the size.
        model = timm.create_model(spec.model, **settings)
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
