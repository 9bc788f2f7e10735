"""A trained model embeds images and texts as in its feature sets, and classifies by softmax."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers.dynamic_module_utils
from PIL import Image
from safetensors.torch import load_file, save_file

import sharelock_ray
import support
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.encoders.images import decode_image
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train
from sharelock_ray.runs.model import AlignedModel

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
NAMES = [list(COLOURS)[i % 3] for i in range(90)]
FILES = [support.jpeg(COLOURS[name], seed=i) for i, name in enumerate(NAMES)]
TEXTS = [f"a {'small' if i % 2 else 'large'} {name} circle ." for i, name in enumerate(NAMES)]
KEYS = [f"00000/{i:04d}" for i in range(90)]
SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=2, width=32),
    global_batch_size=64,
    steps=100,
    warmup_steps=5,
    learning_rate=5e-3,
    evaluate_every=50,
    validation_fraction=0.2,
)


def extract(folder: Path, spec: VisionSpec | LanguageSpec) -> FeatureSet:
    """The feature set of FILES or TEXTS."""
    if isinstance(spec, VisionSpec):
        pixels = np.stack([decode_image(data, spec.preprocessing) for data in FILES])
        chunk = EncodedChunk({"key": KEYS, "label": [None] * 90}, VisionEncoder(spec).encode(pixels))
    else:
        chunk = EncodedChunk({"key": KEYS, "caption_id": [0] * 90, "text": TEXTS}, LanguageEncoder(spec).encode(TEXTS))
    return open_features(support.write_parts(str(folder / spec.folder()), spec, [[chunk]]))


@pytest.fixture(scope="module")
def features(
    tmp_path_factory: pytest.TempPathFactory, vision_spec: VisionSpec, language_spec: LanguageSpec
) -> tuple[FeatureSet, FeatureSet]:
    folder = tmp_path_factory.mktemp("features")
    exact = {"stored_dtype": "float32"}
    return tuple(extract(folder, spec.model_copy(update=exact)) for spec in (vision_spec, language_spec))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, features: tuple[FeatureSet, FeatureSet]) -> AlignedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARELOCK_CACHE", str(tmp_path_factory.mktemp("cache")))
        run = RunFolder(str(tmp_path_factory.mktemp("run")))
        train(run, *(feature_set.uri for feature_set in features), SPEC)
    return sharelock_ray.load_model(run.best)


def pictures(count: int) -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)) for data in FILES[:count]]


def edited(model: AlignedModel, folder: Path, edit: Callable[[dict[str, Any]], object]) -> str:
    """A copy of a model's checkpoint below `folder` with an edited `checkpoint.json`."""
    place = shutil.copytree(model.folder, folder / "edited")
    content = json.loads((place / "checkpoint.json").read_text())
    edit(content)
    (place / "checkpoint.json").write_text(json.dumps(content))
    return str(place)


class TestEmbeddings:
    def test_single_and_several_inputs_give_unit_vectors_of_one_width(self, model: AlignedModel) -> None:
        found = [
            model.encode_image(pictures(1)[0]),
            model.encode_image(pictures(5)),
            model.encode_text(TEXTS[0]),
            model.encode_text(TEXTS[:5]),
        ]
        width = model.checkpoint.vision.dim
        assert [tuple(x.shape) for x in found] == [(1, width), (5, width)] * 2
        for x in found:
            assert x.dtype == torch.float32
            torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))

    def test_do_not_depend_on_the_batch(self, model: AlignedModel) -> None:
        torch.testing.assert_close(
            model.encode_image(pictures(5))[3:4], model.encode_image(pictures(5)[3]), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(model.encode_text(TEXTS[:5])[3:4], model.encode_text(TEXTS[3]), rtol=0, atol=1e-5)

    def test_equal_projected_feature_sets(self, model: AlignedModel, features: tuple[FeatureSet, FeatureSet]) -> None:
        vision, language = features
        torch.testing.assert_close(model.project(vision), model.encode_image(pictures(90)), rtol=0, atol=1e-5)
        torch.testing.assert_close(model.project(language), model.encode_text(TEXTS), rtol=0, atol=1e-5)
        some = np.array([7, 2, 80])
        for feature_set in features:
            torch.testing.assert_close(model.project(feature_set, some), model.project(feature_set)[some])

    def test_of_some_rows_read_only_these_in_blocks(
        self, model: AlignedModel, features: tuple[FeatureSet, FeatureSet], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Recorder:
            def __init__(self) -> None:
                self.read: list[int] = []

            def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
                self.read += rows.tolist()
                assert len(rows) <= 2
                return features[0].embeddings[rows]

        recorder = Recorder()
        other = open_features(features[0].uri)
        other.__dict__["embeddings"] = recorder
        monkeypatch.setattr("sharelock_ray.runs.heads._ROWS", 2)
        assert len(model.project(other, np.array([7, 2, 80]))) == 3
        assert recorder.read == [7, 2, 80]

    def test_of_a_locked_side_are_the_normalised_encoder_embeddings(
        self, model: AlignedModel, features: tuple[FeatureSet, FeatureSet]
    ) -> None:
        rows = features[0].embeddings
        torch.testing.assert_close(model.project(features[0]), rows / rows.norm(dim=1, keepdim=True))

    def test_of_no_inputs_have_no_rows(self, model: AlignedModel) -> None:
        for found in (model.encode_text([]), model.encode_image([]), model.prototypes([])):
            assert found.shape == (0, model.checkpoint.vision.dim)

    def test_accept_any_iterable(self, model: AlignedModel) -> None:
        torch.testing.assert_close(model.encode_text(iter(TEXTS[:3])), model.encode_text(TEXTS[:3]))
        torch.testing.assert_close(model.encode_image(iter(pictures(3))), model.encode_image(pictures(3)))

    @pytest.mark.parametrize("wrong", [None, 7, b"red", ["red", None], [["red"]]], ids=repr)
    def test_reject_values_that_are_not_texts(self, model: AlignedModel, wrong: Any) -> None:
        with pytest.raises(TypeError, match="expected str, got"):
            model.encode_text(wrong)

    @pytest.mark.parametrize("wrong", [None, "red.jpg", Path("red.jpg"), [FILES[0]], np.zeros((2, 2, 3))], ids=type)
    def test_reject_values_that_are_not_images(self, model: AlignedModel, wrong: Any) -> None:
        with pytest.raises(TypeError, match="expected Image, got"):
            model.encode_image(wrong)


class TestClassify:
    def test_probabilities_equal_a_softmax(self, model: AlignedModel) -> None:
        labels = ["red circle", "green circle", "blue circle"]
        found = model.classify(pictures(6), labels)
        assert found.shape == (6, 3)
        torch.testing.assert_close(found.sum(1), torch.ones(6))
        images = model.encode_image(pictures(6)).double().numpy()
        texts = model.encode_text([f"a photo of a {label}." for label in labels]).double().numpy()
        powers = np.exp(SPEC.logit_scale * images @ texts.T)
        np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), atol=1e-4)

    def test_recognises_the_training_classes(self, model: AlignedModel) -> None:
        labels = list(COLOURS)
        found = model.classify(pictures(30), labels, templates=("a small {} circle .", "a large {} circle ."))
        assert np.mean([labels[i] == name for i, name in zip(found.argmax(1), NAMES[:30], strict=True)]) > 0.9

    def test_accepts_a_single_image(self, model: AlignedModel) -> None:
        torch.testing.assert_close(
            model.classify(pictures(1)[0], ["red", "blue"]), model.classify(pictures(1), ["red", "blue"])
        )

    def test_accepts_generators_and_a_single_template(self, model: AlignedModel) -> None:
        found = model.classify(iter(pictures(2)), (name for name in ("red", "blue")), "a {} circle .")
        torch.testing.assert_close(found, model.classify(pictures(2), ["red", "blue"], ["a {} circle ."]))

    def test_needs_a_template(self, model: AlignedModel) -> None:
        with pytest.raises(RequestError, match="template"):
            model.classify(pictures(1), ["red", "blue"], [])

    def test_prototypes_are_normalised_means_over_templates(self, model: AlignedModel) -> None:
        templates = ("a {} .", "the {} in a picture", "{}")
        found = model.prototypes(["red circle", "square"], templates)
        for row, name in zip(found, ["red circle", "square"], strict=True):
            total = sum(model.encode_text(template.format(name))[0] for template in templates)
            torch.testing.assert_close(row, total / total.norm(), rtol=0, atol=1e-5)

    def test_prototypes_are_embedded_in_blocks_with_progress(
        self, model: AlignedModel, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
    ) -> None:
        names, templates = ["red circle", "square", "circle", "green"], ("a {} .", "the {} in a picture")
        whole = model.prototypes(names, templates)
        monkeypatch.setattr("sharelock_ray.runs.model._PROMPTS", 3)
        monkeypatch.setattr("sharelock_ray.progress._LOG_EVERY_S", 0)
        torch.testing.assert_close(model.prototypes(names, templates), whole, rtol=0, atol=1e-5)
        assert "prompts: 1/4 classes" in said.getvalue()


class TestErrors:
    @pytest.mark.parametrize("templates", [["no place"], ["a {c}."], []])
    def test_a_template_without_exactly_one_placeholder(self, model: AlignedModel, templates: list[str]) -> None:
        with pytest.raises(RequestError, match="template"):
            model.classify(pictures(1), ["red", "blue"], templates)

    @pytest.mark.parametrize("modality", ["vision", "language"])
    def test_features_of_another_encoder(
        self, model: AlignedModel, models: Path, tmp_path: Path, modality: str
    ) -> None:
        spec = support.tiny_vision(models, seed=1) if modality == "vision" else support.tiny_language(models, seed=1)
        other = extract(tmp_path, spec)
        with pytest.raises(RequestError, match=rf"was made by {spec.folder()}, but .* was trained on {spec.name}-"):
            model.project(other)
        with pytest.raises(RequestError) as error:
            model.project(other)
        assert "\n" not in str(error.value)

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="holds no trained model"):
            sharelock_ray.load_model(str(tmp_path))

    def test_an_encoder_with_other_weights(self, model: AlignedModel, models: Path) -> None:
        other = support.tiny_vision(models, seed=1)
        moved = model.checkpoint.vision.encoder.model_copy(update={"weights": other.weights})
        changed = model.checkpoint.vision.model_copy(update={"encoder": moved})
        again = sharelock_ray.load_model(model.folder)
        again.checkpoint = model.checkpoint.model_copy(update={"vision": changed})
        with pytest.raises(RequestError, match="weights"):
            again.encode_image(pictures(1))

    def test_an_encoder_of_another_width(self, model: AlignedModel, models: Path, tmp_path: Path) -> None:
        def another(content: dict[str, Any]) -> None:
            content["vision"]["encoder"]["pooling"] = "mean"
            content["vision"]["encoder"]["model"] = "test_vit"
            content["vision"]["encoder"]["weights"] = str(weights)
            content["vision"]["weights_sha256"] = None

        weights = tmp_path / "vit.safetensors"
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
        other = sharelock_ray.load_model(edited(model, tmp_path, another))
        with pytest.raises(RequestError, match=r"test_vit is not the encoder .* embeddings have 64 dimensions, not 96"):
            other.encode_image(pictures(1))

    def test_swapped_encoders(self, model: AlignedModel, tmp_path: Path) -> None:
        place = edited(model, tmp_path, lambda c: c.update(vision=c["language"], language=c["vision"]))
        with pytest.raises(RunError, match=r"checkpoint\.json is damaged .*encoders are swapped"):
            sharelock_ray.load_model(place)

    def test_a_width_beyond_the_memory(self, model: AlignedModel, tmp_path: Path) -> None:
        place = edited(model, tmp_path, lambda c: c["language"].update(dim=10**13))
        with pytest.raises(RunError, match=r"is damaged or missing"):
            sharelock_ray.load_model(place)

    def test_an_unreadable_checkpoint(self, model: AlignedModel, tmp_path: Path) -> None:
        place = shutil.copytree(model.folder, tmp_path / "copy")
        (place / "checkpoint.json").unlink()
        (place / "checkpoint.json").mkdir()
        with pytest.raises(RequestError, match=r"checkpoint\.json cannot be read \(Is a directory\)"):
            sharelock_ray.load_model(str(place))

    def test_non_finite_embeddings(self, model: AlignedModel, tmp_path: Path) -> None:
        weights = load_file(model.checkpoint.vision.encoder.weights)
        weights["conv1.0.weight"].fill_(float("nan"))
        save_file(weights, tmp_path / "nan.safetensors")

        def damaged(content: dict[str, Any]) -> None:
            content["vision"]["encoder"]["weights"] = str(tmp_path / "nan.safetensors")
            content["vision"]["weights_sha256"] = None

        other = sharelock_ray.load_model(edited(model, tmp_path, damaged))
        with pytest.raises(RunError, match="gives non-finite embeddings"):
            other.classify(pictures(1), ["red", "blue"])


class TestRemoteCode:
    """A language model with a Python file that creates the file `mark` if it runs."""

    @pytest.fixture
    def mark(self, tmp_path: Path) -> Path:
        return tmp_path / "ran"

    @pytest.fixture
    def folder(self, model: AlignedModel, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A checkpoint with `trust_remote_code`."""
        bringing = shutil.copytree(model.checkpoint.language.encoder.model, tmp_path / "bringing")
        config = json.loads((bringing / "config.json").read_text())
        (bringing / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "theirs.Theirs"}}))
        code = f"import pathlib, transformers\npathlib.Path({str(mark)!r}).touch()\n"
        (bringing / "theirs.py").write_text(f"{code}class Theirs(transformers.LlamaModel):\n    pass\n")
        # The folder to which transformers copies code before it runs.
        monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", [*sys.path])

        def asks(content: dict[str, Any]) -> None:
            content["language"]["encoder"].update(model=str(bringing), trust_remote_code=True)
            content["language"]["weights_sha256"] = None

        return edited(model, tmp_path, asks)

    def test_does_not_run_without_consent(self, folder: str, mark: Path) -> None:
        with pytest.raises(RequestError, match=r"needs to run code from .*--trust-remote-code") as error:
            sharelock_ray.load_model(folder).classify(pictures(1), ["red", "blue"])
        assert "\n" not in str(error.value)
        assert not mark.exists()

    def test_runs_with_consent(self, model: AlignedModel, folder: str, mark: Path) -> None:
        trusting = sharelock_ray.load_model(folder, trust_remote_code=True)
        torch.testing.assert_close(trusting.encode_text(TEXTS[:2]), model.encode_text(TEXTS[:2]))
        assert mark.exists()

    def test_is_not_needed_for_the_other_encoder(self, folder: str, mark: Path) -> None:
        assert len(sharelock_ray.load_model(folder).encode_image(pictures(2))) == 2
        assert not mark.exists()


class TestCallingProcess:
    def test_global_settings_are_unchanged(self, model: AlignedModel) -> None:
        code = f"""
import importlib.util, logging, os, signal, sys, warnings
import PIL.Image, PIL.ImageFile, torch, transformers, timm
import scipy.optimize  # Adds warning filters, as accelerate does; transformers imports both.
if importlib.util.find_spec("accelerate"):
    import accelerate

def settings():
    return {{
        "Pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()),
        "matmul": (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
        "random": torch.random.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "progress": transformers.utils.logging.is_progress_bar_enabled(),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
    }}

before = settings()
import sharelock_ray
model = sharelock_ray.load_model({model.folder!r})
model.classify(PIL.Image.new("RGB", (40, 40)), ["red", "blue"])
after = settings()
print([name for name in before if before[name] != after[name]])
"""
        done = subprocess.run([sys.executable, "-c", code], env=support.alone(), capture_output=True, text=True)
        assert done.stdout == "[]\n", done.stderr
