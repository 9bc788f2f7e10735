"""What defines an encoder's numbers. What is said here, and nothing else, is hashed into a feature set's folder name.

Kept apart from the encoders so that reading a recipe or a manifest needs neither torch nor transformers.
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
    """A relative path made absolute, since workers have folders of their own; any other name as it is."""
    return storage.absolute(place) if "://" not in place and storage.exists(place) else place


class _EncoderSpec(Config):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    """Starts the feature set's folder name; the hash of everything else follows it."""
    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass."""
    stored_dtype: Literal["float16", "float32"] = "float16"
    final_norm: bool = True
    """Whether what is pooled has been through the model's last norm, or is what went into it."""

    _reads: ClassVar[frozenset[str]]
    """The fields that say how a forward pass is read, and nothing of the pass itself."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, content: Any) -> Any:
        return expand(content, cls.model_fields["modality"].default)

    def forward_key(self) -> str:
        """Equal for encoders that one loaded model serves in one forward pass."""
        return content_hash(hashed(self, exclude=self._reads))

    def folder(self) -> str:
        """The feature set's folder name, `<name>-<hash8>`."""
        return f"{self.name}-{self.identity(self.weights_digest())}"

    def identity(self, weights_sha256: str | None) -> str:
        """Eight hex digits of all that changes the numbers; local weights count by their content, not their path."""
        path = {self.path_field} if weights_sha256 else set()
        return content_hash(hashed(self, exclude={"name", *path}), weights_sha256)

    def commit(self) -> str | None:
        """The commit that a model of the hub would be loaded at now; None where that is not known."""
        return None

    def at(self, commit: str | None) -> Self:
        """This spec for those who load it at `commit`, where one is given. It makes the same set, by the same name."""
        return self.model_copy(update={"revision": commit}) if commit else self

    @property
    def path_field(self) -> str:
        """The field that says where weights on disk are."""
        raise NotImplementedError

    def weights_digest(self) -> str | None:
        """SHA-256 of weights on disk; None where they come from the hub."""
        raise NotImplementedError


class VisionSpec(_EncoderSpec):
    """A timm model and how its input is prepared. What is left out is the model's own evaluation transform."""

    _reads = frozenset({"name", "stored_dtype", "pooling", "final_norm"})
    _always_hashed = (
        "name model dtype stored_dtype final_norm modality weights pooling image_size resize crop_mode reduced_scale "
        "interpolation mean std position_interpolation"
    )

    modality: Literal["vision"] = "vision"
    weights: Annotated[str, AfterValidator(_found)] = "pretrained"
    """`pretrained` (timm's own, from the hub) or the path or URI of a safetensors file."""
    revision: str | None = None
    """Commit, branch or tag of the weights on the hub."""
    pooling: Literal["model", "cls", "mean", "cls_mean"] = "model"
    """`model` is the model's own pooled output before its classifier; the others need a model with tokens."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    resize: Annotated[int, Field(ge=8)] | None = None
    """Shorter side before the centre crop."""
    crop_mode: CropMode | None = None
    """Whether that resize keeps the image's proportions (`center`) or makes it square (`squash`)."""
    reduced_scale: bool = True
    """Whether a JPEG of more than four times `resize` is decoded at a fraction of its size, which is several times
    faster and nearly the same."""
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    position_interpolation: Literal["timm", "dinov2-hub"] = "timm"
    """How position embeddings of another image size are resampled: antialiased as timm does, or as DINOv2's own
    `torch.hub` models do, which the released ShareLock code used."""

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        if self.revision is not None and self.weights != "pretrained":
            raise ValueError("`revision` is of weights on the hub: leave it out where `weights` are given")
        return self

    def resolved(self) -> "VisionSpec":
        """This spec with every omitted field filled in from the model's configuration.

        Raises:
            RequestError: timm does not know the model, or prepares its images in a way that is not offered here.
        """
        if None not in (self.image_size, self.resize, self.crop_mode, self.interpolation, self.mean, self.std):
            return self
        model = self._timm_config()
        if model is None:
            raise RequestError(f"timm knows no model {self.model!r}: see timm.list_models()")
        _, height, width = model.input_size
        if self.image_size is None and height != width:
            raise RequestError(f"{self.model} is made for images of {width} x {height} pixels: give `image_size`")
        if self.crop_mode is None and model.crop_mode not in get_args(CropMode):
            raise RequestError(f"the crop mode {model.crop_mode!r} of {self.model} is none of ours: give `crop_mode`")
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
        """The repository on the hub that has the weights; None where they come from elsewhere."""
        model = self._timm_config() if self.weights == "pretrained" else None
        return model.hf_hub_id if model else None

    def _timm_config(self) -> Any:
        """What timm says of the model; None where it does not know it."""
        # Only here, because a recipe that says everything can be read without importing torch.
        from timm.models import get_pretrained_cfg

        try:
            return get_pretrained_cfg(self.model)
        except RuntimeError:  # The model is known, but not its tag.
            return None

    def commit(self) -> str | None:
        if self.hub_id is None:
            return None
        # Only here, since it takes a second to import.
        from sharelock_ray.encoders.provenance import commit_now

        return commit_now(self.hub_id, self.revision)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes pixels; only of a resolved spec."""
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
    """A transformers model, by hub name or by the path or URI of its folder."""

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
    """Which hidden states become the embedding: the last token's, the first's, or the mean or maximum over tokens."""
    layer: int | None = None
    """Of the hidden states: 0 is the input embedding, -1 the last; None is the model's own final output, which is the
    same where the model normalises its last state in both."""
    append_eos: bool = False
    """Ends each text with the tokenizer's end-of-sequence token, which `last` then reads."""
    prompt: str | None = None
    """Text with `{}` for the caption, such as `This sentence: "{}" means in one word:` (arXiv 2307.16645)."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Tokens; longer captions are truncated and counted."""
    trust_remote_code: bool = False

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, prompt: str | None) -> str | None:
        if prompt is not None and prompt.count("{}") != 1:
            raise ValueError("a prompt has `{}` once, where the caption goes")
        return prompt

    @model_validator(mode="after")
    def _norm_is_of_the_output(self) -> Self:
        if self.layer is not None and not self.final_norm:
            raise ValueError("`final_norm: false` reads what goes into the last norm, so leave `layer` out")
        return self

    def resolved(self) -> "LanguageSpec":
        return self

    def commit(self) -> str | None:
        if self.is_local:
            return None
        # Only here, since it takes a second to import.
        from sharelock_ray.encoders.provenance import commit_now

        return commit_now(self.model, self.revision)

    @property
    def is_local(self) -> bool:
        """True where the model is a folder, on a disk or an object store, and not one of the hub."""
        return "://" in self.model or storage.exists(self.model)

    @property
    def path_field(self) -> str:
        return "model"

    def weights_digest(self) -> str | None:
        return weights_digest(self.model) if self.is_local else None


EncoderSpec = Annotated[VisionSpec | LanguageSpec, Field(discriminator="modality"), BeforeValidator(expand)]
