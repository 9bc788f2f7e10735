"""The settings that define an encoder's embeddings. Exactly these are hashed into a feature set's folder name.

Separate from the encoders, so that reading a recipe or a manifest needs neither torch nor transformers.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash, hashed
from sharelock_ray.encoders.images import CropMode, Interpolation, Preprocessing
from sharelock_ray.encoders.presets import expand
from sharelock_ray.encoders.weights import weights_digest
from sharelock_ray.errors import RequestError

Modality = Literal["vision", "language"]


def _found(place: str) -> str:
    """Makes a relative path absolute, because workers have other working directories; returns other names unchanged."""
    return storage.absolute(place) if "://" not in place and storage.exists(place) else place


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
    """A timm model and its preprocessing. Omitted fields are those of the model's own evaluation transform."""

    _reads = frozenset({"name", "stored_dtype", "pooling", "final_norm"})
    _always_hashed = (
        "name model dtype stored_dtype final_norm modality weights pooling image_size resize crop_mode reduced_scale "
        "interpolation mean std position_interpolation"
    )

    modality: Literal["vision"] = "vision"
    weights: Annotated[str, AfterValidator(_found)] = "pretrained"
    """`pretrained` (timm's, from the hub), or the path or URI of a safetensors file."""
    revision: str | None = None
    """Commit, branch or tag of the weights on the hub."""
    pooling: Literal["model", "cls", "mean", "cls_mean"] = "model"
    """`model` is the model's own pooled output before its classifier; the others need a model with tokens."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    resize: Annotated[int, Field(ge=8)] | None = None
    """Shorter side before the centre crop."""
    crop_mode: CropMode | None = None
    """Whether the resize keeps the aspect ratio (`center`) or makes the image square (`squash`)."""
    reduced_scale: bool = True
    """Whether a JPEG larger than four times `resize` is decoded at a fraction of its size, which is several times
    faster and gives nearly the same pixels."""
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    position_interpolation: Literal["timm", "dinov2-hub"] = "timm"
    """How position embeddings are resampled to another image size: antialiased as in timm, or as in DINOv2's own
    `torch.hub` models, which the released ShareLock code used."""

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        if self.revision is not None and self.weights != "pretrained":
            raise ValueError("`revision` applies only to weights from the hub: omit it or `weights`")
        return self

    def resolved(self) -> "VisionSpec":
        """Returns this spec with every omitted field filled in from the model's configuration.

        Raises:
            RequestError: timm has no such model, or its preprocessing is not supported here.
        """
        if None not in (self.image_size, self.resize, self.crop_mode, self.interpolation, self.mean, self.std):
            return self
        model = self._timm_config()
        if model is None:
            raise RequestError(f"timm knows no model {self.model!r}: see timm.list_models()")
        _, height, width = model.input_size
        if self.image_size is None and height != width:
            raise RequestError(f"{self.model} expects images of {width} x {height} pixels: set `image_size`")
        if self.crop_mode is None and model.crop_mode not in get_args(CropMode):
            raise RequestError(f"the crop mode {model.crop_mode!r} of {self.model} is not supported: set `crop_mode`")
        size = self.image_size or width
        return self.model_copy(
            update={
                "image_size": size,
                "resize": self.resize or int(size / model.crop_pct),
                "crop_mode": self.crop_mode or model.crop_mode,
                "interpolation": self.interpolation or model.interpolation,
                "mean": self.mean or tuple(model.mean),
                "std": self.std or tuple(model.std),
            }
        )

    @property
    def hub_id(self) -> str | None:
        """Repository of the weights on the hub; None for other weights."""
        model = self._timm_config() if self.weights == "pretrained" else None
        return model.hf_hub_id if model else None

    def _timm_config(self) -> Any:
        """Returns timm's configuration of the model; None if timm has no such model."""
        # Imported here, so that a recipe with all fields set can be read without torch.
        from timm.models import get_pretrained_cfg

        try:
            return get_pretrained_cfg(self.model)
        except RuntimeError:  # timm has the model, but not its tag.
            return None

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
    def path_field(self) -> str:
        return "weights"

    def weights_digest(self) -> str | None:
        return None if self.weights == "pretrained" else weights_digest(self.weights)


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
    model: Annotated[str, AfterValidator(_found)]
    revision: str | None = None
    """Commit or tag on the hub."""
    pooling: Literal["last", "mean", "first", "max"] = "last"
    """The hidden state of the last or first token, or the mean or maximum over tokens."""
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
        is_path = self.model.startswith(("/", ".")) or (self.is_gguf and self.model.count("/") < 2)
        return "://" in self.model or is_path or storage.exists(self.model)

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
