"""Vision towers of OpenCLIP."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf

from sharelock_ray.encoders.backends import Tower
from sharelock_ray.encoders.loading import loading
from sharelock_ray.encoders.norms import find_norm
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision_timm import tower_of
from sharelock_ray.encoders.vision_weights import is_pickled
from sharelock_ray.encoders.weights import local_weights
from sharelock_ray.errors import RequestError

_HUB = "hf-hub:"
_CONFIG = "open_clip_config.json"
_CROP_MODES = {"shortest": "center", "squash": "squash"}


def preprocessing(spec: VisionSpec) -> dict[str, Any]:
    """See `Backend`."""
    with loading(repr(spec.model)):
        model, stated = _configs(spec)
    size = stated.get("size") or model["vision_cfg"].get("image_size", 224)
    sides = {size} if isinstance(size, int) else set(size[-2:])
    if spec.image_size is None and len(sides) > 1:
        raise RequestError(f"{spec.model} expects images of {size} pixels (height, width): set `image_size`")
    mode = stated.get("resize_mode", "shortest")
    if spec.crop_mode is None and mode not in _CROP_MODES:
        raise RequestError(f"the resize mode {mode!r} of {spec.model} is not supported: set `crop_mode`")
    return {
        "image_size": max(sides),
        "resize": spec.image_size or max(sides),
        "crop_mode": _CROP_MODES.get(mode),
        # As OpenCLIP does in evaluation, where training chooses by chance.
        "interpolation": "bilinear" if stated.get("interpolation") == "bilinear" else "bicubic",
        "mean": tuple(stated.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": tuple(stated.get("std") or open_clip.OPENAI_DATASET_STD),
    }


def hub_id(spec: VisionSpec) -> str | None:
    """See `Backend`."""
    return _on_hub(spec)[0] or None


def load(spec: VisionSpec) -> Tower:
    """See `Backend`."""
    with loading(repr(spec.model)):
        config, _ = _configs(spec)
        _require_activation(spec, config)
        resized = config["vision_cfg"].get("image_size", 224) != spec.image_size
        with _source(spec) as (name, weights):
            visual = open_clip.create_model(
                name,
                pretrained=weights,
                force_image_size=spec.image_size if resized else None,
                require_pretrained=True,
            ).visual
    if hasattr(visual, "trunk"):
        return tower_of(visual.trunk, visual)
    if not hasattr(visual, "transformer"):
        return Tower(module=visual, forward=visual, pooled=lambda output: output)
    # CoCa norms what its attention has pooled, in another width.
    norm = find_norm(visual, "ln_post") if visual.attn_pool is None else None
    layers = tuple(visual.transformer.resblocks)

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = visual.forward_intermediates(images, [len(layers) - 1], output_fmt="NLC", output_extra_tokens=True)
        tokens = torch.cat([output["image_intermediates_prefix"][0], output["image_intermediates"][0]], 1)
        return tokens if norm is None else norm(tokens), output["image_features"]

    return Tower(
        module=visual,
        forward=forward,
        pooled=lambda output: output[1],
        tokens=lambda output: output[0],
        prefix=1,
        has_cls=True,
        layers=layers,
        norm=norm,
    )


def _configs(spec: VisionSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the configurations of the model and of its preprocessing.

    Raises:
        RequestError: OpenCLIP has no such model or tag.
    """
    if spec.path_field == "model" and spec.is_local:
        config = json.loads((local_weights(spec.model) / _CONFIG).read_text())
    elif spec.model.startswith(_HUB):
        file = download_pretrained_from_hf(_on_hub(spec)[0], filename=_CONFIG, revision=spec.revision)
        config = json.loads(Path(file).read_text())
    else:
        model = open_clip.get_model_config(spec.model)
        if model is None:
            raise RequestError(f"open_clip knows no model {spec.model!r}: see open_clip.list_models()")
        tag = open_clip.get_pretrained_cfg(spec.model, spec.weights)
        if not tag and not spec.is_local:
            known = ", ".join(open_clip.list_pretrained_tags_by_model(spec.model)) or "none"
            raise RequestError(f"open_clip knows no weights {spec.weights!r} of {spec.model}: set `weights` ({known})")
        return model, tag
    return config.get("model_cfg", config), config.get("preprocess_cfg", {})


def _require_activation(spec: VisionSpec, config: dict[str, Any]) -> None:
    """Raises RequestError if a tag's weights were trained with another activation than the model has."""
    tag = open_clip.get_pretrained_cfg(spec.model, spec.weights)
    if tag and bool(tag.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = spec.model.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{spec.model}-quickgelu"
        raise RequestError(
            f"the weights {spec.weights!r} of {spec.model} have another activation: set `model: {other}`"
        )


@contextmanager
def _source(spec: VisionSpec) -> Iterator[tuple[str, str | None]]:
    """Gives the name and weights that `create_model` loads: both from a folder, or a model it knows and a file."""
    if spec.is_local and spec.path_field == "model":
        yield f"local-dir:{local_weights(spec.model)}", None
    elif spec.is_local:
        # OpenCLIP reads a file as its name ends; the copy of a remote one has no ending.
        path = local_weights(spec.weights).resolve()
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / ("weights.pt" if is_pickled(path) else "weights.safetensors")
            link.symlink_to(path)
            yield spec.model, str(link)
    else:
        repository, file = _on_hub(spec)
        weights = download_pretrained_from_hf(repository, filename=file or None, revision=spec.revision)
        # Its configuration is in the same snapshot.
        yield (f"local-dir:{Path(weights).parent}", None) if spec.model.startswith(_HUB) else (spec.model, weights)


def _on_hub(spec: VisionSpec) -> tuple[str, str]:
    """Returns the repository and the file of the weights, "" where OpenCLIP names none."""
    if spec.model.startswith(_HUB):
        return spec.model.removeprefix(_HUB), ""
    # `<owner>/<repository>/<file>`, where the file may be empty.
    repository, _, file = open_clip.get_pretrained_cfg(spec.model, spec.weights).get("hf_hub", "").rpartition("/")
    return repository, file
