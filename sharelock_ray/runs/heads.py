"""The trained heads of a run, applied to extracted features; needs no encoder."""

from collections.abc import Iterable

import numpy as np
import torch

from sharelock_ray.alignment.heads import Heads
from sharelock_ray.encoders.resolved import ResolvedEncoder
from sharelock_ray.encoders.spec import EncoderSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.runs.checkpoint import Checkpoint, load_heads, read_checkpoint, side_of
from sharelock_ray.runs.folder import OFFICIAL
from sharelock_ray.runs.official import read_official

# Rows projected at a time.
_ROWS = 8192


def load_trained_heads(folder: str, device: str = "cpu") -> "TrainedHeads":
    """Loads the heads of a checkpoint folder (`<run>/best`), or of a `.ckpt` of the official ShareLock code.

    Raises:
        RequestError: there is no checkpoint.
        RunError: it is damaged.
    """
    return TrainedHeads(folder, device)


class TrainedHeads:
    """Projects frozen embeddings of both modalities into a shared space; all results are unit vectors.

    The projections raise RunError if the result is non-finite.
    """

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self.folder = folder
        self.device = torch.device(device)
        # Initial weights are drawn at random; this must not change the random state of the calling process.
        with torch.random.fork_rng(devices=[]):
            self.checkpoint, heads = _read(folder)
        self._heads = heads.eval().requires_grad_(False).to(self.device)

    @property
    def logit_scale(self) -> float:
        return float(self._heads.logit_scale)

    def project_image(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Projects embeddings (N, D_vision) of the frozen vision encoder to unit vectors (N, D)."""
        return self._project(self._heads.vision, embeddings.split(_ROWS))

    def project_text(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Projects embeddings (N, D_language) of the frozen language encoder to unit vectors (N, D)."""
        return self._project(self._heads.language, embeddings.split(_ROWS))

    def project(self, features: FeatureSet, rows: np.ndarray | None = None) -> torch.Tensor:
        """Projects a feature set of either modality, or N of its rows, to unit vectors (N, D).

        Args:
            rows: indices (N,); None for all rows.

        Raises:
            RequestError: the features come from another encoder.
        """
        self.require_made_by(features)
        head = self._heads.vision if features.manifest.modality == "vision" else self._heads.language
        if rows is None:
            return self._project(head, features.embeddings.split(_ROWS))
        # Memory-mapped features are read one block at a time.
        return self._project(head, (features.embeddings[some] for some in torch.from_numpy(rows).split(_ROWS)))

    def require_made_by(self, features: FeatureSet) -> None:
        """Raises RequestError if the features come from another encoder than the training features."""
        made_by = side_of(features.manifest)
        self._require(made_by.encoder, made_by.weights_sha256, f"{features.uri} was made by")

    def require_encoder(self, encoder: ResolvedEncoder) -> None:
        """Raises RequestError if a recipe's encoder differs from that of the training features."""
        self._require(encoder.spec, encoder.weights_sha256, f"the recipe's {encoder.modality} encoder is")

    def _require(self, encoder: EncoderSpec, weights_sha256: str | None, what: str) -> None:
        side = self.checkpoint.vision if encoder.modality == "vision" else self.checkpoint.language
        identity = encoder.identity(weights_sha256)
        if identity != side.identity:
            theirs, ours = encoder.model_dump(exclude={"name"}), side.encoder.model_dump(exclude={"name"})
            differs = [f"`{name}` {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]
            raise RequestError(
                f"{what} {encoder.name}-{identity}, but {self.folder} was trained on "
                f"{side.encoder.name}-{side.identity} ({'; '.join(differs) or 'other weights'}): "
                f"extract with that encoder, or train again"
            )

    def _project(self, head: torch.nn.Module, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        projected = [head(rows.to(self.device, torch.float32)).cpu() for rows in blocks]
        if not all(rows.isfinite().all() for rows in projected):
            raise RunError(f"{self.folder} gives non-finite embeddings: its weights, or its encoders', are damaged")
        return torch.cat(projected)


def _read(place: str) -> tuple[Checkpoint, Heads]:
    if place.endswith(OFFICIAL):
        return read_official(place)
    checkpoint = read_checkpoint(place)
    return checkpoint, load_heads(place, checkpoint)
