"""Checkpoints of the official ShareLock code, read as models of ours.

Its training script writes Lightning checkpoints: pickled files with weights, the optimizer's state, and settings as
objects of OmegaConf. What this module says of them was read in github.com/JonaRuthardt/ShareLock at e7b464d
(`models/model.py`, `models/projection.py`, `utils/misc.py`, `train.py`).
"""

import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from sharelock_ray import storage
from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.encoders.loading import listed, loading
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.runs.checkpoint import Checkpoint, Position, Side

# Its preprocessing of images (torchvision's default resize, ImageNet's mean and deviation); it stores features as
# float32.
_IMAGES: dict[str, Any] = {
    "image_size": 224,
    "resize": 256,
    "crop_mode": "center",
    "reduced_scale": False,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "stored_dtype": "float32",
}
# Preset and width of the vision encoders by their names there. It also lists CLIP, which it cannot load, and models of
# torchvision, whose logits do not have the width that it expects.
_VISION = {
    f"dinov2_vit{size}14{with_registers}": (f"sharelock-dinov2-{size}{with_registers.replace('_', '-')}", width)
    for size, width in {"s": 384, "b": 768, "l": 1024, "g": 1536}.items()
    for with_registers in ("", "_reg")
} | {"dino_vitb16": ("dino-b-16", 768)}
# The last token's hidden state, in float32. It truncates to the model's maximum; captions and prompts are far shorter
# than this one, of Llama 3.
_TEXTS: dict[str, Any] = {"pooling": "last", "max_length": 8192, "dtype": "float32", "stored_dtype": "float32"}

# A layer is four modules in a row: linear, batch norm, ReLU, dropout. The last layer is linear only.
_MODULES = 4
_LINEAR = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_DROPOUT = 0.2

# Fields of our spec and of its `training` section.
_TRAINING = {
    "steps": "max_steps",
    "warmup_steps": "lr_warmup_steps",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "clip_norm": "max_grad_norm",
    "accumulation": "accumulate_grad_batches",
}


class _Inert:
    """Stands for a class of OmegaConf: keeps the state of an object and does nothing."""


# All that a pickled setting consists of, by the name in the file.
_KNOWN: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((_Inert, f"omegaconf.{name}") for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *((_Inert, name) for name in ("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any")),
    *((kind, f"{kind.__module__}.{kind.__name__}") for kind in (dict, list, int, defaultdict)),
]


class _Projector(BaseModel):
    num_layers: Annotated[int, Field(ge=0)]
    hidden_size: int
    normalize: Literal[True]

    @property
    def spec(self) -> ProjectionSpec:
        if not self.num_layers:
            return ProjectionSpec()
        return ProjectionSpec(depth=self.num_layers, width=self.hidden_size, dropout=_DROPOUT)


class _Model(BaseModel):
    vision_encoder: str
    language_encoder: str
    vision_projector: _Projector
    language_projector: _Projector
    embedding_space_dim: int


class _Settings(BaseModel):
    """`hyper_parameters`: the configuration of the training."""

    model: _Model
    training: dict[str, Any] = {}
    seed: int = 0


def read_official(path: str) -> tuple[Checkpoint, Heads]:
    """Reads a Lightning checkpoint of the official code: its settings as those of our checkpoints, and its projections.

    Nothing in the file is run. The logit scale is not in it: the code has a constant, which is our default.

    Raises:
        RequestError: the file is missing, is damaged, needs code to be read, or holds another model.
    """
    with loading(f"the model {path}"):
        content = _read(path)
        try:
            settings = _Settings.model_validate(_plain(content["hyper_parameters"]))
            spec = _alignment(settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = f" `{'.'.join(map(str, first['loc']))}`" if first["loc"] else "s"
            reason = first["msg"].removeprefix("Value error, ")
            raise RequestError(f"{path} is no ShareLock model: its hyper-parameter{where}: {reason}") from None
        weights = content["state_dict"]
        names = dict(_names("vision", spec.vision.depth)) | dict(_names("language", spec.language.depth))
        lacks, others = {*names.values()} - weights.keys(), weights.keys() - {*names.values()}
        if lacks or others:
            wrong = f"lacks weights: {listed(lacks)}" if lacks else f"has weights of another model: {listed(others)}"
            raise RequestError(f"{path} is no ShareLock model of its hyper-parameters: it {wrong}")
        for name, value in weights.items():
            if not value.isfinite().all():
                raise RequestError(f"{path} is damaged: {name} is not finite")
        vision, language = _vision(path, settings.model), _language(settings.model, weights)
        # Without memory of its own, since the weights of the file take its place.
        with torch.device("meta"):
            heads = Heads(spec, vision.dim, language.dim)
        ours = {name: weights[theirs] for name, theirs in names.items()}
        ours["log_logit_scale"] = torch.tensor(math.log(spec.logit_scale))
        heads.load_state_dict(ours, assign=True)
        position = Position(step=content.get("global_step", 0))
        return Checkpoint(spec=spec, vision=vision, language=language, position=position, metrics={}), heads.float()


def _read(path: str) -> dict[str, Any]:
    """The content of the file; settings are `_Inert`."""
    with storage.reading(path, "model"), storage.local_copy(path) as copy, copy.open("rb") as file:
        # torch itself does not verify the checksums.
        if not zipfile.is_zipfile(file) or zipfile.ZipFile(file).testzip():
            raise RequestError(f"{path} is damaged or cut off, or no checkpoint of Lightning: get it again")
        with safe_globals(_KNOWN):
            if unsafe := get_unsafe_globals_in_checkpoint(copy):
                raise RequestError(
                    f"{path} is not loaded, since it holds more than weights and settings, which may run code: "
                    f"{listed(unsafe)}"
                )
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not {"hyper_parameters", "state_dict"} <= content.keys():
        raise RequestError(f"{path} is no ShareLock model: it has no `hyper_parameters` beside a `state_dict`")
    return content


def _plain(setting: Any) -> Any:
    """A setting as dicts and values; OmegaConf keeps an interpolation as the text that it is."""
    state = getattr(setting, "__dict__", {})
    value = state.get("_val", state.get("_content", setting))
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def _alignment(settings: _Settings) -> AlignmentSpec:
    model, training = settings.model, settings.training
    told = {ours: training[theirs] for ours, theirs in _TRAINING.items() if theirs in training}
    if "batch_size" in training:
        told["global_batch_size"] = training["batch_size"] * told.get("accumulation", 1)
    if training.get("lr_schedule") == "constant":
        told |= {"schedule": "constant", "warmup_steps": 0}
    vision, language = model.vision_projector.spec, model.language_projector.spec
    if vision.depth and language.depth:
        told["dim"] = model.embedding_space_dim
    return AlignmentSpec.model_validate({"vision": vision, "language": language, "seed": settings.seed} | told)


def _names(side: str, depth: int) -> Iterator[tuple[str, str]]:
    """(name of ours, name in the file) of each weight of a projection."""
    for layer in range(depth):
        for kind, place, leaves in (("linears", 0, _LINEAR), ("norms", 1, _NORM if layer < depth - 1 else ())):
            for leaf in leaves:
                theirs = f"{side}_projector.projection.{_MODULES * layer + place}.{leaf}"
                yield f"{side}.{kind}.{layer}.{leaf}", theirs


def _vision(path: str, model: _Model) -> Side:
    if model.vision_encoder not in _VISION:
        known = ", ".join(_VISION)
        raise RequestError(f"{path} has the vision encoder {model.vision_encoder}, which is not one of {known}")
    preset, width = _VISION[model.vision_encoder]
    encoder = VisionSpec.model_validate({"preset": preset, **_IMAGES})
    return Side(encoder=encoder, weights_sha256=encoder.weights_digest(), dim=width)


def _language(model: _Model, weights: dict[str, torch.Tensor]) -> Side:
    """The width of the language model is in the weights only."""
    if model.language_projector.num_layers:
        width = weights["language_projector.projection.0.weight"].shape[1]
    else:
        last = _MODULES * (model.vision_projector.num_layers - 1)
        width = weights[f"vision_projector.projection.{last}.weight"].shape[0]
    name = re.sub(r"[^a-z0-9._-]", "-", model.language_encoder.rstrip("/").rpartition("/")[2].lower()).lstrip("._-")
    encoder = LanguageSpec.model_validate({"name": name, "model": model.language_encoder, **_TEXTS})
    return Side(encoder=encoder, weights_sha256=encoder.weights_digest(), dim=width)
