"""Whether a node can load the weights of an encoder."""

from dataclasses import dataclass
from typing import Self

from sharelock_ray import storage
from sharelock_ray.encoders.spec import EncoderSpec, VisionSpec
from sharelock_ray.errors import SharelockError
from sharelock_ray.health.check import Check, refused

_ANSWER_S = 5


@dataclass(frozen=True)
class Weights:
    """Where an encoder's weights are: a path or URI, or a repository of the hub, or neither."""

    encoder: str
    place: str | None = None
    repository: str | None = None
    revision: str | None = None
    file: str | None = None
    """Path in the repository of the only file that is loaded, if any."""

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        """Raises RequestError if the model is unknown."""
        if spec.is_local:
            return cls(spec.name, place=getattr(spec, spec.path_field))
        file = None if isinstance(spec, VisionSpec) else spec.hub_file
        return cls(spec.name, repository=spec.hub_id, revision=spec.revision, file=file)


def weights(of: Weights) -> Check:
    """Checks that the weights exist: at their place, in this node's hub cache, or on the hub."""
    name = f"weights of {of.encoder}"
    if of.place is not None:
        remedy = "correct the recipe's `weights` or `model`: a path must exist on every node"
        try:
            there = storage.exists(of.place)
        except (SharelockError, OSError) as error:
            return refused(name, error, remedy)
        return Check(name, "ok", of.place) if there else Check(name, "fail", f"nothing at {of.place}", remedy)
    if of.repository is None:
        remedy = "load the encoder once on every node, so that it is cached"
        return Check(name, "warn", "they come from the model's own URL, which is not checked", remedy)
    # Imported here, because it takes a second.
    from sharelock_ray.encoders.provenance import has_weights

    if has_weights(of.repository, of.revision, of.file):
        return Check(name, "ok", f"{of.repository}, in this node's cache")
    return _on_hub(name, of.repository, of.revision)


def _on_hub(name: str, repository: str, revision: str | None) -> Check:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        if HfApi().model_info(repository, revision=revision, timeout=_ANSWER_S).gated:
            HfApi().auth_check(repository)
    except GatedRepoError:
        remedy = "accept its licence on the hub, and set HF_TOKEN on every node"
        return Check(name, "fail", f"{repository} is gated, and this node's token gives no access", remedy)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        remedy = "check the recipe's `model` and `revision`, and HF_TOKEN if the model is private"
        return Check(name, "fail", f"the hub has no {repository}{f' at {revision}' if revision else ''}", remedy)
    # The hub's client raises errors of its own, of its HTTP library and of the system.
    except Exception as error:
        remedy = "give the node access to the hub, or load the encoder into its cache (HF_HOME) beforehand"
        found = f"{repository} is not cached, and the hub does not answer ({type(error).__name__})"
        return Check(name, "fail", found, remedy)
    return Check(name, "ok", f"{repository}, on the hub; not cached yet")
