"""An encoder whose omitted fields are filled in and whose weights are hashed, once per command."""

from dataclasses import dataclass

from sharelock_ray.encoders.spec import EncoderSpec, Modality


@dataclass(frozen=True)
class ResolvedEncoder:
    """A resolved spec and the SHA-256 of its weights on disk (None for weights from the hub)."""

    spec: EncoderSpec
    weights_sha256: str | None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def modality(self) -> Modality:
        return self.spec.modality

    @property
    def folder(self) -> str:
        """Folder name of the feature set, `<name>-<hash8>`."""
        return f"{self.spec.name}-{self.spec.identity(self.weights_sha256)}"


def resolve(spec: EncoderSpec) -> ResolvedEncoder:
    """Resolves a spec and hashes its weights.

    Raises:
        RequestError: the model is unknown, or the weights do not exist.
    """
    resolved = spec.resolved()
    return ResolvedEncoder(resolved, resolved.weights_digest())
