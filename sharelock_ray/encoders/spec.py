"""The settings that define an encoder's embeddings. Exactly these are hashed into a feature set's folder name.

Separate from the encoders, so that reading a recipe or a manifest needs neither torch nor transformers.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash, hashed
from sharelock_ray.encoders.backends import backend
from sharelock_ray.encoders.images import CropMode, Interpolation, Preprocessing
from sharelock_ray.encoders.presets import expand
from sharelock_ray.encoders.weights import weights_digest

Modality = Literal["vision", "language"]


def _found(place: str) -> str:
    """Makes a relative path absolute, because workers have other working directories; returns other names unchanged."""
    return storage.absolute(place) if "://" not in place and storage.exists(place) else place


ModelName = Annotated[str, AfterValidator(_found)]
"""A name on the hub, or a path or URI."""


def _is_place(name: str) -> bool:
    """Whether a model's name is a path or URI, and no name on the hub."""
    return "://" in name or name.startswith(("/", ".")) or storage.exists(name)


class _EncoderSpec(Config):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    """Prefix of the feature set's folder name, before the hash of the other fields."""
    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass."""
    stored_dtype: Literal["float16", "float32"] = "float16"
    final_norm: bool = True
    """Whether the pooled states are the output of the model's final norm (True) or its input (False)."""

    _reads: ClassVar[frozenset[str]]
    """Fields that only affect how a forward pass is read, not the pass itself."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, content: Any) -> Any:
        return expand(content, cls.model_fields["modality"].default)

    def forward_key(self) -> str:
        """Returns a key that is equal for encoders that can share one model and its forward passes."""
        return content_hash(hashed(self, exclude=self._reads))

    def folder(self) -> str:
        """Returns the folder name of the feature set, `<name>-<hash8>`."""
        return f"{self.name}-{self.identity(self.weights_digest())}"

    def identity(self, weights_sha256: str | None) -> str:
        """Returns eight hex digits over all settings that change the embeddings; local weights count by content."""
        path = {self.path_field} if weights_sha256 else set()
        return content_hash(hashed(self, exclude={"name", *path}), weights_sha256)

    def commit(self) -> str | None:
        """Returns the commit at which a hub model would be loaded now; None if unknown."""
        return None

    def at(self, commit: str | None) -> Self:
        """Returns this spec pinned to `commit`, if given. The name of its feature set stays the same."""
        return self.model_copy(update={"revision": commit}) if commit else self

    @property
    def path_field(self) -> str:
        """Name of the field with the path of the weights."""
        raise NotImplementedError

    def weights_digest(self) -> str | None:
        """Returns the SHA-256 of weights on disk; None for weights from the hub."""
        raise NotImplementedError


class VisionSpec(_EncoderSpec):
    """A vision model and its preprocessing. Omitted fields are those of the model's own evaluation transform.

    `model` is a name that the backend knows: of timm, of OpenCLIP (`ViT-B-32`, `hf-hub:<owner>/<repository>`), of a
    model of transformers on the hub; or, except for timm, the path or URI of a folder.
    """

    _reads = frozenset({"name", "stored_dtype", "pooling", "layer", "final_norm"})
    _always_hashed = (
        "name model dtype stored_dtype final_norm modality weights pooling image_size resize crop_mode reduced_scale "
        "interpolation mean std position_interpolation"
    )

    modality: Literal["vision"] = "vision"
    backend: Literal["timm", "transformers", "open_clip"] = "timm"
    """The library that loads and runs the model: a module `encoders/vision_<backend>.py`."""
    weights: Annotated[str, AfterValidator(_found)] = "pretrained"
    """`pretrained` (the model's own, from the hub or its folder), the path or URI of a weights file, or a tag of
    OpenCLIP such as `laion2b_s34b_b79k`."""
    revision: str | None = None
    """Commit, branch or tag of the weights on the hub."""
    pooling: Literal["model", "cls", "mean", "cls_mean"] = "model"
    """`model` is the model's own pooled output before its classifier; the others need a model with tokens."""
    layer: int | None = None
    """Index of the hidden states between the layers: 0 is the input of the first, -1 the output of the last, before the
    final norm. None is the model's final output."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    resize: Annotated[int, Field(ge=8)] | None = None
    """Shorter side before the centre crop."""
    crop_mode: CropMode | None = None
    """Whether the resize keeps the aspect ratio (`center`; `center_floor` rounds half an odd margin down) or makes the
    image square (`squash`)."""
    reduced_scale: bool = True
    """Whether a JPEG larger than four times `resize` is decoded at a fraction of its size, which is several times
    faster and gives nearly the same pixels."""
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    position_interpolation: Literal["timm", "dinov2-hub"] = "timm"
    """How position embeddings are resampled to another image size: antialiased as in timm, or as in DINOv2's own
    `torch.hub` models, which the released ShareLock code used."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, content: Any) -> Any:
        content = expand(content, "vision")
        # A name of timm may also be that of a file here.
        if isinstance(content, dict) and content.get("backend", "timm") != "timm" and "model" in content:
            return content | {"model": _found(str(content["model"]))}
        return content

    @model_validator(mode="after")
    def _fields_have_an_effect(self) -> Self:
        if self.revision is not None and self.is_local:
            raise ValueError("`revision` applies only to weights from the hub: omit it or `weights`")
        if self.position_interpolation != "timm" and self.backend != "timm":
            raise ValueError("`position_interpolation` applies only to `backend: timm`: omit it")
        if self.weights != "pretrained" and self.backend == "transformers":
            raise ValueError("the weights of a model of transformers are in its folder: set `model` and omit `weights`")
        if self.layer is not None and self.pooling == "model":
            raise ValueError("`layer` reads tokens: set `pooling` to cls, mean or cls_mean")
        if self.layer is not None and not self.final_norm:
            raise ValueError("`final_norm: false` reads the input of the final norm: omit `layer`")
        return self

    def resolved(self) -> "VisionSpec":
        """Returns this spec with every omitted field filled in from the model's configuration.

        Raises:
            RequestError: the backend has no such model, or its preprocessing is not supported here.
        """
        names = ("image_size", "resize", "crop_mode", "interpolation", "mean", "std")
        omitted = [name for name in names if getattr(self, name) is None]
        if not omitted:
            return self
        # The library is only needed where fields are omitted.
        stated = backend(self.backend).preprocessing(self)
        return self.model_copy(update={name: stated[name] for name in omitted})

    @property
    def hub_id(self) -> str | None:
        """Repository of the weights on the hub; None for other weights."""
        return None if self.is_local else backend(self.backend).hub_id(self)

    def commit(self) -> str | None:
        if self.hub_id is None:
            return None
        # Imported here, because it takes a second.
        from sharelock_ray.encoders.provenance import commit_now

        return commit_now(self.hub_id, self.revision)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images; needs a resolved spec."""
        assert self.image_size is not None, "an unresolved spec"
        assert self.resize is not None, "an unresolved spec"
        assert self.interpolation is not None, "an unresolved spec"
        assert self.crop_mode is not None, "an unresolved spec"
        return Preprocessing(
            image_size=self.image_size,
            resize=self.resize,
            interpolation=self.interpolation,
            crop_mode=self.crop_mode,
            reduced_scale=self.reduced_scale,
        )

    @property
    def is_local(self) -> bool:
        """True if the weights are on a disk or object store, not on the hub."""
        if self.path_field == "model":
            return _is_place(self.model)
        # OpenCLIP has tags beside places.
        return self.weights != "pretrained" and (self.backend == "timm" or "/" in self.weights)

    @property
    def path_field(self) -> str:
        return "model" if self.backend != "timm" and self.weights == "pretrained" else "weights"

    def weights_digest(self) -> str | None:
        return weights_digest(getattr(self, self.path_field)) if self.is_local else None


class LanguageSpec(_EncoderSpec):
    """A transformers model: its name on the hub, or the path or URI of its folder or of a GGUF file.

    A GGUF file on the hub is `<owner>/<repository>/<file>.gguf`.
    """

    _reads = frozenset({"name", "stored_dtype", "pooling", "layer", "final_norm"})
    _always_hashed = (
        "name model dtype stored_dtype final_norm modality revision pooling layer append_eos prompt max_length "
        "trust_remote_code"
    )

    modality: Literal["language"] = "language"
    model: ModelName
    revision: str | None = None
    """Commit or tag on the hub."""
    pooling: Literal["last", "mean", "weighted_mean", "first", "max"] = "last"
    """The hidden state of the last or first token, or the mean or maximum over tokens. `weighted_mean` weighs the i-th
    token by i, because later tokens of a decoder have read more (SGPT, arXiv 2202.08904)."""
    layer: int | None = None
    """Index of the hidden states: 0 is the input embedding, -1 the last. None is the model's final output, which most
    models also return as -1."""
    append_eos: bool = False
    """Appends the tokenizer's end-of-sequence token to each text; `last` then pools that token."""
    prompt: str | None = None
    """Text with `{}` for the caption, such as `This sentence: "{}" means in one word:` (arXiv 2307.16645)."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Tokens; longer captions are truncated and counted."""
    trust_remote_code: bool = False

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, prompt: str | None) -> str | None:
        if prompt is not None and prompt.count("{}") != 1:
            raise ValueError("a prompt must contain `{}` exactly once, in place of the caption")
        return prompt

    @model_validator(mode="after")
    def _norm_is_of_the_output(self) -> Self:
        if self.layer is not None and not self.final_norm:
            raise ValueError("`final_norm: false` reads the input of the final norm: omit `layer`")
        return self

    def resolved(self) -> "LanguageSpec":
        return self

    def commit(self) -> str | None:
        if self.hub_id is None:
            return None
        # Imported here, because it takes a second.
        from sharelock_ray.encoders.provenance import commit_now

        return commit_now(self.hub_id, self.revision, self.hub_file)

    @property
    def is_local(self) -> bool:
        """True if the model is on a disk or object store, not a name on the hub."""
        return (self.is_gguf and self.model.count("/") < 2) or _is_place(self.model)

    @property
    def is_gguf(self) -> bool:
        return self.model.endswith(".gguf")

    @property
    def hub_id(self) -> str | None:
        """Repository of the model on the hub; None for other models."""
        if self.is_local:
            return None
        return "/".join(self.model.split("/")[:2]) if self.is_gguf else self.model

    @property
    def hub_file(self) -> str | None:
        """Path of the model's GGUF file in its repository on the hub; None for other models."""
        return "/".join(self.model.split("/")[2:]) if self.is_gguf and not self.is_local else None

    @property
    def path_field(self) -> str:
        return "model"

    def weights_digest(self) -> str | None:
        return weights_digest(self.model) if self.is_local else None


EncoderSpec = Annotated[VisionSpec | LanguageSpec, Field(discriminator="modality"), BeforeValidator(expand)]
