"""A feature set's folder name changes with whatever changes its numbers, and with nothing else."""

import re
import shutil
from pathlib import Path

import pytest
import timm
from pydantic import ValidationError

import support
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError


def hash_of(spec: VisionSpec | LanguageSpec) -> str:
    return spec.folder().removeprefix(f"{spec.name}-")


VISION_CHANGES = [
    {"model": "test_vit"},
    {"backend": "open_clip"},
    {"pooling": "cls"},
    {"layer": 1},
    {"image_size": 64},
    {"resize": 40},
    {"crop_mode": "squash"},
    {"reduced_scale": False},
    {"interpolation": "bicubic"},
    {"mean": (0.4, 0.5, 0.5)},
    {"std": (0.4, 0.5, 0.5)},
    {"final_norm": False},
    {"position_interpolation": "dinov2-hub"},
    {"revision": "v2"},
    {"dtype": "bfloat16"},
    {"stored_dtype": "float32"},
]
LANGUAGE_CHANGES = [
    {"pooling": "mean"},
    {"layer": -2},
    {"final_norm": False},
    {"append_eos": True},
    {"prompt": "this means in one word: {}"},
    {"max_length": 31},
    {"dtype": "float16"},
    {"stored_dtype": "float32"},
    {"revision": "v2"},
]


class TestFolder:
    def test_is_the_name_and_eight_digits(self, vision_spec: VisionSpec, language_spec: LanguageSpec) -> None:
        assert re.fullmatch(r"tiny-resnet-[0-9a-f]{8}", vision_spec.folder())
        assert re.fullmatch(r"tiny-decoder-[0-9a-f]{8}", language_spec.folder())

    def test_is_the_same_each_time(self, models: Path) -> None:
        assert support.tiny_vision(models).folder() == support.tiny_vision(models).folder()

    def test_hashes_everything_that_changes_the_numbers(
        self, vision_spec: VisionSpec, language_spec: LanguageSpec
    ) -> None:
        vision = [vision_spec.model_copy(update=change) for change in [{}, *VISION_CHANGES]]
        language = [language_spec.model_copy(update=change) for change in [{}, *LANGUAGE_CHANGES]]
        assert len({hash_of(spec) for spec in vision + language}) == len(VISION_CHANGES) + len(LANGUAGE_CHANGES) + 2

    def test_has_no_field_that_this_module_forgot(self) -> None:
        common = {"name", "modality"}
        assert set(VisionSpec.model_fields) - common - {"weights"} == {key for c in VISION_CHANGES for key in c}
        changed = {key for c in LANGUAGE_CHANGES for key in c}
        assert set(LanguageSpec.model_fields) - common - {"model", "trust_remote_code"} == changed

    def test_does_not_hash_the_name(self, vision_spec: VisionSpec) -> None:
        other = vision_spec.model_copy(update={"name": "other"})
        assert other.folder() == f"other-{hash_of(vision_spec)}"

    def test_hashes_the_content_of_weights_and_not_their_place(
        self, tmp_path: Path, models: Path, vision_spec: VisionSpec
    ) -> None:
        copy = shutil.copy(vision_spec.weights, str(tmp_path / "elsewhere.safetensors"))
        assert hash_of(vision_spec.model_copy(update={"weights": copy})) == hash_of(vision_spec)
        assert hash_of(support.tiny_vision(models, seed=1)) != hash_of(vision_spec)

    def test_hashes_the_content_of_a_model_folder_and_not_its_place(
        self, tmp_path: Path, models: Path, language_spec: LanguageSpec
    ) -> None:
        copy = shutil.copytree(language_spec.model, tmp_path / "elsewhere")
        (copy / "README.md").write_text("A model.")
        for path in (str(copy), f"{copy}/"):
            assert hash_of(language_spec.model_copy(update={"model": path})) == hash_of(language_spec)
        assert hash_of(support.tiny_language(models, seed=1)) != hash_of(language_spec)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
    def test_hashes_each_file_of_a_model_folder(self, tmp_path: Path, language_spec: LanguageSpec, name: str) -> None:
        copy = shutil.copytree(language_spec.model, tmp_path / "model")
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        assert hash_of(language_spec.model_copy(update={"model": str(copy)})) != hash_of(language_spec)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_own.py"])
    def test_hashes_older_weights_and_code_too(self, tmp_path: Path, language_spec: LanguageSpec, name: str) -> None:
        hashes = set()
        for content in ("one", "two"):
            copy = shutil.copytree(language_spec.model, tmp_path / content)
            (copy / name).write_text(content)
            hashes.add(hash_of(language_spec.model_copy(update={"model": str(copy)})))
        assert len(hashes) == 2

    def test_follows_weights_that_are_replaced(self, tmp_path: Path, models: Path, vision_spec: VisionSpec) -> None:
        path = shutil.copy(vision_spec.weights, str(tmp_path / "weights.safetensors"))
        spec = vision_spec.model_copy(update={"weights": path})
        before = spec.folder()
        other = support.tiny_vision(models, seed=1)
        shutil.copy(other.weights, path)
        assert hash_of(spec) == hash_of(other)
        assert spec.folder() != before

    def test_of_weights_that_are_missing_is_a_wrong_request(self, tmp_path: Path, vision_spec: VisionSpec) -> None:
        with pytest.raises(RequestError, match="no weights at"):
            vision_spec.model_copy(update={"weights": str(tmp_path / "gone")}).folder()


class TestForwardKey:
    """Says which encoders one model serves in one forward pass."""

    @pytest.mark.parametrize(
        "change", [{"name": "other"}, {"stored_dtype": "float32"}, {"pooling": "mean"}, {"final_norm": False}], ids=str
    )
    def test_is_the_same_for_another_reading(
        self, change: dict[str, object], vision_spec: VisionSpec, language_spec: LanguageSpec
    ) -> None:
        for spec in (vision_spec, language_spec):
            assert spec.model_copy(update=change).forward_key() == spec.forward_key()
            assert spec.model_copy(update={"layer": 1}).forward_key() == spec.forward_key()

    def test_is_another_for_whatever_else_changes(self, vision_spec: VisionSpec, language_spec: LanguageSpec) -> None:
        reads = {"stored_dtype", "pooling", "layer", "final_norm"}
        for spec, changes in ((vision_spec, VISION_CHANGES), (language_spec, LANGUAGE_CHANGES)):
            others = [spec.model_copy(update=change) for change in changes if not reads & change.keys()]
            assert len({other.forward_key() for other in [spec, *others]}) == len(others) + 1


def test_a_layer_within_the_model_has_no_final_norm(models: Path) -> None:
    with pytest.raises(ValidationError, match="omit `layer`"):
        support.tiny_language(models, layer=1, final_norm=False)
    with pytest.raises(ValidationError, match="omit `layer`"):
        support.tiny_vision(models, layer=1, pooling="cls", final_norm=False)


def test_a_layer_within_the_model_is_read_by_its_tokens(models: Path) -> None:
    with pytest.raises(ValidationError, match="set `pooling` to cls, mean or cls_mean"):
        support.tiny_vision(models, layer=1)


class TestPlaceOfTheWeights:
    @pytest.mark.parametrize(
        "fields",
        [
            {"model": "test_vit"},
            {"model": "someone/vit", "backend": "transformers"},
            {"model": "ViT-B-32", "weights": "laion2b_s34b_b79k", "backend": "open_clip"},
            {"model": "hf-hub:someone/clip", "backend": "open_clip"},
        ],
        ids=str,
    )
    def test_is_the_hub(self, fields: dict[str, str]) -> None:
        spec = VisionSpec(name="v", revision="v2", **fields)
        assert not spec.is_local
        assert spec.weights_digest() is None

    @pytest.mark.parametrize("backend", ["transformers", "open_clip"])
    def test_is_a_folder_that_counts_by_its_content(
        self, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folders = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "weights.safetensors").write_bytes(b"weights")
            folders.append(VisionSpec(name="v", model=str(tmp_path / name), backend=backend).folder())
        assert folders[0] == folders[1]
        monkeypatch.chdir(tmp_path)
        assert VisionSpec(name="v", model="one", backend=backend).model == str(tmp_path / "one")

    def test_is_a_file_beside_the_models_name(self, tmp_path: Path) -> None:
        (tmp_path / "clip.pt").write_bytes(b"weights")
        spec = VisionSpec(name="v", model="ViT-B-32", weights=str(tmp_path / "clip.pt"), backend="open_clip")
        assert spec.is_local
        assert spec.weights_digest() is not None

    def test_of_timm_is_no_folder_of_the_models_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "test_vit").mkdir()
        monkeypatch.chdir(tmp_path)
        assert VisionSpec(name="v", model="test_vit").model == "test_vit"


class TestResolved:
    @pytest.mark.parametrize(
        ("model", "size", "resize", "interpolation", "crop_mode"),
        [
            ("test_resnet", 160, 168, "bilinear", "center"),  # 160 / 0.95
            ("vit_base_patch16_224", 224, 248, "bicubic", "center"),  # 224 / 0.9
            ("vit_large_patch14_dinov2", 518, 518, "bicubic", "center"),
            ("convnext_base.fb_in22k_ft_in1k_384", 384, 384, "bicubic", "squash"),
        ],
    )
    def test_fills_in_what_timm_says(
        self, model: str, size: int, resize: int, interpolation: str, crop_mode: str
    ) -> None:
        spec = VisionSpec(name="m", model=model).resolved()
        config = timm.get_pretrained_cfg(model)
        assert (spec.image_size, spec.resize, spec.interpolation) == (size, resize, interpolation)
        assert (spec.mean, spec.std) == (config.mean, config.std)
        assert spec.preprocessing.model_dump() == {
            "image_size": size,
            "resize": resize,
            "interpolation": interpolation,
            "crop_mode": crop_mode,
            "reduced_scale": True,
        }

    def test_keeps_what_is_given_and_resizes_in_proportion(self) -> None:
        spec = VisionSpec(name="m", model="vit_large_patch14_dinov2", image_size=224, mean=(0.1, 0.2, 0.3)).resolved()
        assert (spec.image_size, spec.resize, spec.mean) == (224, 224, (0.1, 0.2, 0.3))

    def test_is_itself_where_nothing_is_left_out(self, vision_spec: VisionSpec) -> None:
        assert vision_spec.resolved() == vision_spec
        assert (
            VisionSpec(name="m", model="test_vit").resolved().resolved()
            == VisionSpec(name="m", model="test_vit").resolved()
        )

    def test_refuses_a_model_that_timm_does_not_know(self) -> None:
        with pytest.raises(RequestError, match="timm knows no model 'resnet_of_dreams'"):
            VisionSpec(name="m", model="resnet_of_dreams").resolved()

    @pytest.mark.parametrize(
        ("model", "message", "remedy"),
        [
            ("vit_base_patch16_sapiens2.fb", "expects images of 768 x 1024 pixels", {"image_size": 256}),
            (
                "deepseek_vit_412m.deepseek_v4_1_flash",
                "crop mode 'border' of .* is not supported",
                {"crop_mode": "center"},
            ),
        ],
    )
    def test_refuses_what_is_prepared_in_another_way(self, model: str, message: str, remedy: dict) -> None:
        with pytest.raises(RequestError, match=message):
            VisionSpec(name="m", model=model).resolved()
        assert VisionSpec(name="m", model=model, **remedy).resolved().crop_mode is not None

    def test_refuses_weights_that_timm_does_not_know(self) -> None:
        with pytest.raises(RequestError, match="no_such_tag"):
            VisionSpec(name="m", model="test_vit.no_such_tag").resolved()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Upper Case"},
        {"name": "../x"},
        {"pooling": "max"},
        {"image_size": 0},
        {"unknown": 1},
        {"dtype": "int8"},
        {"revision": "v2", "weights": "a.safetensors"},
        {"revision": "v2", "model": "/a/folder", "backend": "transformers"},
        {"weights": "a.safetensors", "backend": "transformers"},
        {"position_interpolation": "dinov2-hub", "backend": "open_clip"},
        {"backend": "keras"},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VisionSpec.model_validate({"name": "m", "model": "test_vit"} | change)


def test_a_relative_path_is_one_place_for_all_processes(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision, language = support.tiny_vision(models), support.tiny_language(models)
    monkeypatch.chdir(models)
    names = Path(vision.weights).name, Path(language.model).name
    assert support.tiny_vision(models, weights=names[0]) == vision
    assert support.tiny_language(models, model=names[1]) == language
    # What is no file or folder here may be a name on the hub.
    assert support.tiny_language(models, model="org/name").model == "org/name"
