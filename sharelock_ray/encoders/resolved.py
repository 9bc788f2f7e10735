"""An encoder as a command works with it: its omitted fields are filled in, and its weights are hashed, once."""

from dataclasses import dataclass

from sharelock_ray.encoders.spec import EncoderSpec, Modality


@dataclass(frozen=True)
class ResolvedEncoder:
    """A resolved spec and the SHA-256 of its weights on disk; None where they come from the hub."""

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
        """The feature set's folder name, `<name>-<hash8>`."""
        return f"{self.spec.name}-{self.spec.identity(self.weights_sha256)}"


def resolve(spec: EncoderSpec) -> ResolvedEncoder:
    """Resolves a spec, and reads its weights once.

    Raises:
        RequestError: the model is not known, or there are no weights where the spec says.
    """
    resolved = spec.resolved()
    return ResolvedEncoder(resolved, resolved.weights_digest())
