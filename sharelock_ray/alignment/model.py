"""An aligned model: two frozen encoders and the trained heads between them."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from sharelock_ray.alignment.checkpoint import Side, load_heads, read_checkpoint, side_of
from sharelock_ray.alignment.prompts import DEFAULT_TEMPLATES, checked_templates, prompts_of
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import EncoderSpec, LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.progress import Progress

_ROWS = 8192
# Embeddings of prompts that are held at a time.
_PROMPTS = 1024


def load_model(folder: str, device: str = "cpu") -> "AlignedModel":
    """Loads the model of a checkpoint folder (`<run>/best`). Its encoders are loaded when they are first needed.

    Raises:
        RequestError: there is no checkpoint.
    """
    return AlignedModel(folder, device)


class AlignedModel:
    """Embeds images and texts into one space, where a dot product is their cosine."""

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self.folder = folder
        self.checkpoint = read_checkpoint(folder)
        self.device = torch.device(device)
        self._heads = load_heads(folder, self.checkpoint).eval().requires_grad_(False).to(self.device)

    @property
    def logit_scale(self) -> float:
        return float(self._heads.logit_scale)

    def encode_image(self, images: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """(N, D) unit vectors of Pillow images; one image gives N = 1."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        return self.project_image(torch.from_numpy(self._vision.encode_images(images)))

    def encode_text(self, texts: str | Sequence[str]) -> torch.Tensor:
        """(N, D) unit vectors of texts; one string gives N = 1."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.project_text(torch.from_numpy(self._language.encode(texts)))

    def project_image(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, D) unit vectors from embeddings (N, D_vision) of the frozen vision encoder."""
        return self._project(self._heads.vision, embeddings.split(_ROWS))

    def project_text(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, D) unit vectors from embeddings (N, D_language) of the frozen language encoder."""
        return self._project(self._heads.language, embeddings.split(_ROWS))

    def project(self, features: FeatureSet, rows: np.ndarray | None = None) -> torch.Tensor:
        """(N, D) unit vectors of a feature set of either modality: of all of it, or of N rows.

        Raises:
            RequestError: another encoder made the features.
        """
        head = self._heads.vision if self._is_vision(features) else self._heads.language
        if rows is None:
            return self._project(head, features.embeddings.split(_ROWS))
        # What is mapped into memory is read a block at a time.
        return self._project(head, (features.embeddings[some] for some in torch.from_numpy(rows).split(_ROWS)))

    def prototypes(self, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> torch.Tensor:
        """(C, D) unit vectors of classes: each the normalised mean over templates (CLIP, arXiv 2103.00020, 3.1.4).

        Raises:
            TemplateError: there is no template, or one has not `{}` once, in place of the name.
        """
        checked_templates(templates)
        found, step = [], max(1, _PROMPTS // len(templates))
        with Progress("prompts", "classes", len(class_names)) as progress:
            for start in range(0, len(class_names), step):
                names = class_names[start : start + step]
                texts = [text for name in names for text in prompts_of(name, templates)]
                embedded = self.encode_text(texts).view(len(names), len(templates), -1)
                found.append(torch.nn.functional.normalize(embedded.mean(1), dim=-1))
                progress.update(len(names))
        return torch.cat(found)

    def classify(
        self,
        images: Image.Image | Sequence[Image.Image],
        labels: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> torch.Tensor:
        """(N, C) probabilities of `labels`: softmax of the scaled cosines.

        Raises:
            TemplateError: see `prototypes`.
        """
        prototypes = self.prototypes(labels, templates)
        return (self.logit_scale * self.encode_image(images) @ prototypes.T).softmax(-1)

    @cached_property
    def _vision(self) -> VisionEncoder:
        spec = self._verified(self.checkpoint.vision)
        assert isinstance(spec, VisionSpec)
        return VisionEncoder(spec, str(self.device))

    @cached_property
    def _language(self) -> LanguageEncoder:
        spec = self._verified(self.checkpoint.language)
        assert isinstance(spec, LanguageSpec)
        return LanguageEncoder(spec, str(self.device))

    def _verified(self, side: Side) -> EncoderSpec:
        """What loads a side's encoder, once its weights on disk are known to be those of the training."""
        if side.weights_sha256 is not None and side.encoder.weights_digest() != side.weights_sha256:
            path = getattr(side.encoder, side.encoder.path_field)
            raise RequestError(f"{path} is not the encoder that {self.folder} was trained on: its weights differ")
        return side.encoder

    def _project(self, head: torch.nn.Module, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([head(rows.to(self.device, torch.float32)).cpu() for rows in blocks])

    def _is_vision(self, features: FeatureSet) -> bool:
        is_vision = features.manifest.modality == "vision"
        side = self.checkpoint.vision if is_vision else self.checkpoint.language
        theirs = side_of(features.manifest)
        if theirs.identity != side.identity:
            raise RequestError(
                f"{features.uri} was made by {_describe(theirs)}, but {self.folder} was trained on {_describe(side)}: "
                f"extract with that encoder, or train anew"
            )
        return is_vision


def _describe(side: Side) -> str:
    return f"{side.encoder.name}-{side.identity}"
