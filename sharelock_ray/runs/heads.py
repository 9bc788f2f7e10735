"""The trained heads of a run, over features that are there: needs no encoder."""

from collections.abc import Iterable

import numpy as np
import torch

from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.runs.checkpoint import Side, load_heads, read_checkpoint, side_of

_ROWS = 8192


def load_trained_heads(folder: str, device: str = "cpu") -> "TrainedHeads":
    """Loads the heads of a checkpoint folder (`<run>/best`).

    Raises:
        RequestError: there is no checkpoint.
        RunError: it is damaged.
    """
    return TrainedHeads(folder, device)


class TrainedHeads:
    """Projects frozen embeddings of both sides into one space, where a dot product is their cosine.

    What embeds raises RunError where weights give non-finite numbers.
    """

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self.folder = folder
        self.checkpoint = read_checkpoint(folder)
        self.device = torch.device(device)
        # Modules draw first weights as they are made, which must not change what the host draws next.
        with torch.random.fork_rng(devices=[]):
            self._heads = load_heads(folder, self.checkpoint).eval().requires_grad_(False).to(self.device)

    @property
    def logit_scale(self) -> float:
        return float(self._heads.logit_scale)

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
        self.require_made_by(features)
        head = self._heads.vision if features.manifest.modality == "vision" else self._heads.language
        if rows is None:
            return self._project(head, features.embeddings.split(_ROWS))
        # What is mapped into memory is read a block at a time.
        return self._project(head, (features.embeddings[some] for some in torch.from_numpy(rows).split(_ROWS)))

    def require_made_by(self, features: FeatureSet) -> None:
        """Raises RequestError where features are not of the encoder that the heads were trained on."""
        side = self.checkpoint.vision if features.manifest.modality == "vision" else self.checkpoint.language
        theirs = side_of(features.manifest)
        if theirs.identity != side.identity:
            raise RequestError(
                f"{features.uri} was made by {_describe(theirs)}, but {self.folder} was trained on {_describe(side)}: "
                f"extract with that encoder, or train anew"
            )

    def _project(self, head: torch.nn.Module, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        projected = [head(rows.to(self.device, torch.float32)).cpu() for rows in blocks]
        if not all(rows.isfinite().all() for rows in projected):
            raise RunError(f"{self.folder} gives non-finite numbers: its weights, or its encoders', are damaged")
        return torch.cat(projected)


def _describe(side: Side) -> str:
    return f"{side.encoder.name}-{side.identity}"
