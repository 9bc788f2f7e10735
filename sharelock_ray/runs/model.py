"""An aligned model: two frozen encoders and the trained heads between them."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from sharelock_ray.alignment.prompts import DEFAULT_TEMPLATES, checked_templates
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import EncoderSpec, LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError
from sharelock_ray.progress import Progress
from sharelock_ray.runs.checkpoint import Side
from sharelock_ray.runs.heads import TrainedHeads
from sharelock_ray.sources.prompts import prompts_of

# Prompts that are embedded at a time.
_PROMPTS = 1024


_T = TypeVar("_T")
_Encoder = TypeVar("_Encoder", VisionEncoder, LanguageEncoder)


def load_model(folder: str, device: str = "cpu", *, trust_remote_code: bool = False) -> "AlignedModel":
    """Loads the model of a checkpoint folder (`<run>/best`), or of a `.ckpt` of the official ShareLock code.

    Encoders are loaded on first use.

    Args:
        trust_remote_code: whether Python code in the language model's repository may run, with all rights of this
            process. The setting in the checkpoint is not enough; the user must consent.

    Raises:
        RequestError: there is no checkpoint.
        RunError: it is damaged.
    """
    return AlignedModel(folder, device, trust_remote_code=trust_remote_code)


class AlignedModel(TrainedHeads):
    """Embeds images and texts into a shared space; all embeddings are unit vectors.

    Methods that load an encoder raise RequestError if the encoder is missing, differs from that of the training, or
    needs to run code without the user's consent. Methods that embed raise RunError if an embedding is non-finite.
    """

    def __init__(self, folder: str, device: str = "cpu", *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, device)
        self._trusts = trust_remote_code

    def encode_image(self, images: Image.Image | Iterable[Image.Image]) -> torch.Tensor:
        """Embeds Pillow images as unit vectors (N, D); a single image gives N = 1.

        Raises:
            TypeError: an item is not a Pillow image.
        """
        return self.project_image(torch.from_numpy(self._vision.encode_images(_listed(images, Image.Image))))

    def encode_pixels(self, pixels: np.ndarray) -> torch.Tensor:
        """Embeds preprocessed images as unit vectors (N, D).

        Args:
            pixels: (N, image_size, image_size, 3) uint8, as `encoders.images.decode_image` returns them.
        """
        return self.project_image(torch.from_numpy(self._vision.encode(pixels)))

    def encode_text(self, texts: str | Iterable[str]) -> torch.Tensor:
        """Embeds texts as unit vectors (N, D); a single string gives N = 1.

        Raises:
            TypeError: an item is not a string.
        """
        return self.project_text(torch.from_numpy(self._language.encode(_listed(texts, str))))

    def prototypes(
        self, class_names: str | Iterable[str], templates: str | Iterable[str] = DEFAULT_TEMPLATES
    ) -> torch.Tensor:
        """Embeds classes as unit vectors (C, D): normalised means over templates (CLIP, arXiv 2103.00020, 3.1.4).

        Raises:
            TypeError: an item is not a string.
            TemplateError: there is no template, or one does not contain `{}` exactly once.
        """
        names, prompts = _listed(class_names, str), _listed(templates, str)
        checked_templates(prompts)
        found, step = [self.encode_text([])], max(1, _PROMPTS // len(prompts))
        with Progress("prompts", "classes", len(names)) as progress:
            for start in range(0, len(names), step):
                block = names[start : start + step]
                texts = [text for name in block for text in prompts_of(name, prompts)]
                embedded = self.encode_text(texts).view(len(block), len(prompts), -1)
                found.append(torch.nn.functional.normalize(embedded.mean(1), dim=-1))
                progress.update(len(block))
        return torch.cat(found)

    def classify(
        self,
        images: Image.Image | Iterable[Image.Image],
        labels: str | Iterable[str],
        templates: str | Iterable[str] = DEFAULT_TEMPLATES,
    ) -> torch.Tensor:
        """Probabilities (N, C) of `labels`: softmax over the scaled cosine similarities.

        Raises:
            TypeError, TemplateError: as `encode_image` and `prototypes`.
        """
        prototypes = self.prototypes(labels, templates)
        return (self.logit_scale * self.encode_image(images) @ prototypes.T).softmax(-1)

    @cached_property
    def _vision(self) -> VisionEncoder:
        spec = self._verified_spec(self.checkpoint.vision)
        assert isinstance(spec, VisionSpec)
        with _preserved_random_state():
            return self._require_dim(self.checkpoint.vision, VisionEncoder(spec, str(self.device)))

    @cached_property
    def _language(self) -> LanguageEncoder:
        spec = self._verified_spec(self.checkpoint.language)
        assert isinstance(spec, LanguageSpec)
        if spec.trust_remote_code and not self._trusts:
            raise RequestError(
                f"{self.folder} needs to run code from {spec.model}: if you trust its author, "
                f"pass load_model(..., trust_remote_code=True) or --trust-remote-code"
            )
        with _preserved_random_state():
            return self._require_dim(self.checkpoint.language, LanguageEncoder(spec, str(self.device)))

    def _verified_spec(self, side: Side) -> EncoderSpec:
        """The spec of a side's encoder; raises RequestError if its weights differ from those of the training."""
        if side.weights_sha256 is not None and side.encoder.weights_digest() != side.weights_sha256:
            path = getattr(side.encoder, side.encoder.path_field)
            raise RequestError(f"{path} is not the encoder that {self.folder} was trained on: its weights differ")
        return side.encoder

    def _require_dim(self, side: Side, encoder: _Encoder) -> _Encoder:
        """Returns `encoder`; raises RequestError if its width differs from that of the training."""
        if encoder.dim != side.dim:
            raise RequestError(
                f"{side.encoder.model} is not the encoder that {self.folder} was trained on: "
                f"its embeddings have {encoder.dim} dimensions, not {side.dim}"
            )
        return encoder


def _preserved_random_state() -> AbstractContextManager[None]:
    """Initial weights are drawn at random; this must not change the random state of the calling process."""
    return torch.random.fork_rng(devices=[])


def _listed(values: _T | Iterable[_T], kind: type[_T]) -> list[_T]:
    """`values` as a list; a single value becomes a list of one.

    Raises:
        TypeError: a value is not a `kind`.
    """
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, kind) else [values]
    for value in found:
        if not isinstance(value, kind):
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}: {value!r:.80}")
    return found
