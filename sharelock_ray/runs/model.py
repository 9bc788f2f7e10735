"""An aligned model: two frozen encoders and the trained heads between them."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from sharelock_ray.alignment.prompts import DEFAULT_TEMPLATES, checked_templates, prompts_of
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import EncoderSpec, LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.progress import Progress
from sharelock_ray.runs.checkpoint import Side, load_heads, read_checkpoint, side_of

_ROWS = 8192
# Embeddings of prompts that are held at a time.
_PROMPTS = 1024


_T = TypeVar("_T")
_Encoder = TypeVar("_Encoder", VisionEncoder, LanguageEncoder)


def load_model(folder: str, device: str = "cpu", *, trust_remote_code: bool = False) -> "AlignedModel":
    """Loads the model of a checkpoint folder (`<run>/best`). Its encoders are loaded when they are first needed.

    Args:
        trust_remote_code: whether Python code that the language model brings may run, with all rights of this process.
            A checkpoint can ask for it, but only its user can consent.

    Raises:
        RequestError: there is no checkpoint.
        RunError: it is damaged.
    """
    return AlignedModel(folder, device, trust_remote_code=trust_remote_code)


class AlignedModel:
    """Embeds images and texts into one space, where a dot product is their cosine.

    What loads an encoder raises RequestError where the encoder is not there, is not the one of the training, or wants
    to run code without the user's consent. What embeds raises RunError where weights give non-finite numbers.
    """

    def __init__(self, folder: str, device: str = "cpu", *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.checkpoint = read_checkpoint(folder)
        self.device = torch.device(device)
        self._trusts = trust_remote_code
        with _random_state_kept():
            self._heads = load_heads(folder, self.checkpoint).eval().requires_grad_(False).to(self.device)

    @property
    def logit_scale(self) -> float:
        return float(self._heads.logit_scale)

    def encode_image(self, images: Image.Image | Iterable[Image.Image]) -> torch.Tensor:
        """(N, D) unit vectors of Pillow images; one image gives N = 1.

        Raises:
            TypeError: something is no Pillow image.
        """
        return self.project_image(torch.from_numpy(self._vision.encode_images(_listed(images, Image.Image))))

    def encode_text(self, texts: str | Iterable[str]) -> torch.Tensor:
        """(N, D) unit vectors of texts; one string gives N = 1.

        Raises:
            TypeError: something is no string.
        """
        return self.project_text(torch.from_numpy(self._language.encode(_listed(texts, str))))

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

    def prototypes(
        self, class_names: str | Iterable[str], templates: str | Iterable[str] = DEFAULT_TEMPLATES
    ) -> torch.Tensor:
        """(C, D) unit vectors of classes: each the normalised mean over templates (CLIP, arXiv 2103.00020, 3.1.4).

        Raises:
            TypeError: something is no string.
            TemplateError: there is no template, or one has not `{}` once, in place of the name.
        """
        names, prompts = _listed(class_names, str), _listed(templates, str)
        checked_templates(prompts)
        found, step = [self.encode_text([])], max(1, _PROMPTS // len(prompts))
        with Progress("prompts", "classes", len(names)) as progress:
            for start in range(0, len(names), step):
                some = names[start : start + step]
                texts = [text for name in some for text in prompts_of(name, prompts)]
                embedded = self.encode_text(texts).view(len(some), len(prompts), -1)
                found.append(torch.nn.functional.normalize(embedded.mean(1), dim=-1))
                progress.update(len(some))
        return torch.cat(found)

    def classify(
        self,
        images: Image.Image | Iterable[Image.Image],
        labels: str | Iterable[str],
        templates: str | Iterable[str] = DEFAULT_TEMPLATES,
    ) -> torch.Tensor:
        """(N, C) probabilities of `labels`: softmax of the scaled cosines; the errors of what it is made of."""
        prototypes = self.prototypes(labels, templates)
        return (self.logit_scale * self.encode_image(images) @ prototypes.T).softmax(-1)

    @cached_property
    def _vision(self) -> VisionEncoder:
        spec = self._verified(self.checkpoint.vision)
        assert isinstance(spec, VisionSpec)
        with _random_state_kept():
            return self._fitting(self.checkpoint.vision, VisionEncoder(spec, str(self.device)))

    @cached_property
    def _language(self) -> LanguageEncoder:
        spec = self._verified(self.checkpoint.language)
        assert isinstance(spec, LanguageSpec)
        if spec.trust_remote_code and not self._trusts:
            raise RequestError(
                f"{self.folder} wants to run code that comes with {spec.model}: if you trust who wrote it, "
                f"say so by load_model(..., trust_remote_code=True) or --trust-remote-code"
            )
        with _random_state_kept():
            return self._fitting(self.checkpoint.language, LanguageEncoder(spec, str(self.device)))

    def _verified(self, side: Side) -> EncoderSpec:
        """What loads a side's encoder, once its weights on disk are known to be those of the training."""
        if side.weights_sha256 is not None and side.encoder.weights_digest() != side.weights_sha256:
            path = getattr(side.encoder, side.encoder.path_field)
            raise RequestError(f"{path} is not the encoder that {self.folder} was trained on: its weights differ")
        return side.encoder

    def _fitting(self, side: Side, encoder: _Encoder) -> _Encoder:
        """The loaded encoder of a side, once it is known to be as wide as that of the training."""
        if encoder.dim != side.dim:
            raise RequestError(
                f"{side.encoder.model} is not the encoder that {self.folder} was trained on: "
                f"it gives {encoder.dim} numbers and not {side.dim}"
            )
        return encoder

    def _project(self, head: torch.nn.Module, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        projected = [head(rows.to(self.device, torch.float32)).cpu() for rows in blocks]
        if not all(rows.isfinite().all() for rows in projected):
            raise RunError(f"{self.folder} gives non-finite numbers: its weights, or its encoders', are damaged")
        return torch.cat(projected)

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


def _random_state_kept() -> AbstractContextManager[None]:
    """Modules draw first weights as they are made, which must not change what the host draws next."""
    return torch.random.fork_rng(devices=[])


def _describe(side: Side) -> str:
    return f"{side.encoder.name}-{side.identity}"


def _listed(values: _T | Iterable[_T], kind: type[_T]) -> list[_T]:
    """`values` as a list; one alone is a list of one."""
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, kind) else [values]
    for value in found:
        if not isinstance(value, kind):
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}: {value!r:.80}")
    return found
