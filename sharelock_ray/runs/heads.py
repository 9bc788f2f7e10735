"""The trained heads of a run, applied to extracted features; needs no encoder."""

from collections.abc import Iterable

import numpy as np
import torch

from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.runs.checkpoint import Side, load_heads, read_checkpoint, side_of

# Rows projected at a time.
_ROWS = 8192


def load_trained_heads(folder: str, device: str = "cpu") -> "TrainedHeads":
    """Loads the heads of a checkpoint folder (`<run>/best`).

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
        self.checkpoint = read_checkpoint(folder)
        self.device = torch.device(device)
        # Initial weights are drawn at random; this must not change the random state of the calling process.
        with torch.random.fork_rng(devices=[]):
            self._heads = load_heads(folder, self.checkpoint).eval().requires_grad_(False).to(self.device)

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
        side = self.checkpoint.vision if features.manifest.modality == "vision" else self.checkpoint.language
        theirs = side_of(features.manifest)
        if theirs.identity != side.identity:
            raise RequestError(
                f"{features.uri} was made by {_describe(theirs)}, but {self.folder} was trained on {_describe(side)}: "
                f"extract with that encoder, or train again"
            )

    def _project(self, head: torch.nn.Module, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        projected = [head(rows.to(self.device, torch.float32)).cpu() for rows in blocks]
        if not all(rows.isfinite().all() for rows in projected):
            raise RunError(f"{self.folder} gives non-finite embeddings: its weights, or its encoders', are damaged")
        return torch.cat(projected)


def _describe(side: Side) -> str:
    return f"{side.encoder.name}-{side.identity}"
