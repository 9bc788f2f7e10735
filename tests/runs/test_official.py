"""A checkpoint of the official ShareLock code is a model like ours: the same embeddings, or one line."""

import io
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import official
import sharelock_ray
import support
from sharelock_ray import cli, storage
from sharelock_ray.encoders import presets
from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.runs import official as ours
from sharelock_ray.runs.model import AlignedModel

LOCKED = {"hidden_size": 64, "num_layers": 0, "normalize": True}
DEEP = {"hidden_size": 40, "num_layers": 3, "normalize": True}


def loaded(path: Path, given: dict[str, Any]) -> tuple[AlignedModel, official.Official]:
    """Our model of a checkpoint, and the official one that it holds."""
    theirs = official.Official(given)
    return sharelock_ray.load_model(official.write(path / "x.ckpt", theirs, given)), theirs


class TestEmbeddings:
    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({}, id="text to a locked vision side"),
            pytest.param({"model__vision_projector": DEEP, "model__language_projector": LOCKED}, id="images to text"),
            pytest.param({"model__vision_projector": DEEP}, id="both into a space of their own"),
            pytest.param({"model__language_projector": {**DEEP, "num_layers": 1}}, id="a linear map"),
        ],
    )
    def test_equal_those_of_the_official_definition(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        model, theirs = loaded(tmp_path, official.settings(**changes))
        features = {side: torch.randn(100, width) for side, width in official.DIMS.items()}
        for side, project in (("vision", model.project_image), ("language", model.project_text)):
            torch.testing.assert_close(project(features[side]), theirs.project(side, features[side]), rtol=0, atol=1e-6)

    def test_of_half_precision_weights_are_computed_in_float32(self, tmp_path: Path) -> None:
        theirs = official.Official(official.SETTINGS).half()
        model = sharelock_ray.load_model(official.write(tmp_path / "x.ckpt", theirs))
        features = torch.randn(10, 32)
        torch.testing.assert_close(
            model.project_text(features), theirs.float().project("language", features), rtol=0, atol=1e-6
        )

    def test_are_scaled_by_its_constant(self, tmp_path: Path) -> None:
        model, _ = loaded(tmp_path, official.SETTINGS)
        assert model.logit_scale == pytest.approx(math.exp(2.6592))


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "vision", "width"), [("faithful_v1", "dinov2_vitb14", 768), ("faithful_v3", "dinov2_vitl14", 1024)]
    )
    def test_are_those_of_the_faithful_recipes(self, tmp_path: Path, name: str, vision: str, width: int) -> None:
        given = official.settings(model__vision_encoder=vision)
        theirs = official.Official(given, {"vision": width, "language": 32})
        found = sharelock_ray.load_model(official.write(tmp_path / "x.ckpt", theirs, given)).checkpoint
        recipe = read_recipe(name)
        assert found.vision.identity == recipe.vision.identity(None)
        assert found.language.identity == recipe.language.identity(None)
        assert (found.vision.dim, found.language.dim, found.position.step) == (width, 32, 1500)
        assert found.spec.language == recipe.training.language.model_copy(update={"width": 64})
        told = {"vision", "loss", "global_batch_size", "accumulation", "steps", "warmup_steps", "schedule", "optimizer"}
        told |= {"learning_rate", "weight_decay", "clip_norm", "learn_logit_scale", "seed"}
        assert found.spec.model_dump(include=told) == recipe.training.model_dump(include=told)

    def test_name_the_vision_encoder_by_its_hub_name(self, tmp_path: Path) -> None:
        given = official.settings(model__vision_encoder="dinov2_vits14_reg")
        encoder = loaded(tmp_path, given)[0].checkpoint.vision.encoder
        assert encoder.model == "vit_small_patch14_reg4_dinov2.lvd142m"
        assert encoder.position_interpolation == "dinov2-hub"
        assert encoder.resolved() == encoder

    def test_may_be_plain_and_say_nothing_of_the_training(self, tmp_path: Path) -> None:
        path = str(tmp_path / "x.ckpt")
        weights = official.Official(official.SETTINGS).state_dict()
        torch.save({"state_dict": weights, "hyper_parameters": {"model": official.SETTINGS["model"]}}, path)
        assert sharelock_ray.load_model(path).project_text(torch.randn(2, 32)).shape == (2, 384)

    def test_allow_nothing_more_in_the_calling_process(self, tmp_path: Path) -> None:
        known, state = torch.serialization.get_safe_globals(), torch.random.get_rng_state()
        path = official.write(tmp_path / "x.ckpt", official.Official(official.SETTINGS))
        torch.random.set_rng_state(state)
        sharelock_ray.load_model(path)
        assert set(torch.serialization.get_safe_globals()) == set(known)
        assert torch.random.get_rng_state().equal(state)


class TestModel:
    """With tiny encoders in place of DINOv2 and Llama."""

    @pytest.fixture
    def path(self, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        tiny = support.tiny_vision(models)
        preset = {"modality": "vision", "model": tiny.model, "weights": tiny.weights}
        monkeypatch.setitem(presets.PRESETS, "tiny", preset)
        monkeypatch.setitem(ours._VISION, "dinov2_vits14", ("tiny", 96))
        language = shutil.copytree(support.tiny_language(models).model, tmp_path / "Tiny Llama")
        config = json.loads((language / "config.json").read_text())
        (language / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
        given = official.settings(model__language_encoder=str(language))
        theirs = official.Official(given, {"vision": 96, "language": 32})
        return official.write(tmp_path / "x.ckpt", theirs, given)

    def test_embeds_images_and_texts(self, path: str) -> None:
        model = sharelock_ray.load_model(path)
        image = Image.open(io.BytesIO(support.jpeg()))
        for found in (model.encode_image(image), model.encode_text("a red circle .")):
            torch.testing.assert_close(found.norm(dim=1), torch.ones(1))
            assert found.shape == (1, 96)

    def test_classifies_by_the_command(self, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        image = tmp_path / "image.jpg"
        image.write_bytes(support.jpeg())
        cli.main(["classify", str(image), "--labels", "red circle, blue square", "--model", path, "--json"])
        ranked = json.loads(capsys.readouterr().out)["labels"]
        expected = sharelock_ray.load_model(path).classify(Image.open(image), ["red circle", "blue square"])
        assert {each["label"]: each["probability"] for each in ranked} == pytest.approx(
            dict(zip(["red circle", "blue square"], expected[0].tolist(), strict=True))
        )

    def test_comes_from_an_object_store_too(self, path: str) -> None:
        place = "memory://official-test/x.ckpt"
        storage.write_bytes(place, Path(path).read_bytes())
        texts = torch.randn(3, 32)
        torch.testing.assert_close(
            sharelock_ray.load_model(place).project_text(texts), sharelock_ray.load_model(path).project_text(texts)
        )


class Runs:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._mark),)


class TestErrors:
    @staticmethod
    def refusal(path: str | Path) -> str:
        """The one line that ends the loading."""
        with pytest.raises(RequestError) as error:
            sharelock_ray.load_model(str(path))
        message = str(error.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return Path(official.write(tmp_path / "x.ckpt", official.Official(official.SETTINGS)))

    def test_no_file(self, tmp_path: Path) -> None:
        assert "no model at" in self.refusal(tmp_path / "absent.ckpt")
        (tmp_path / "folder.ckpt").mkdir()
        assert "no model at" in self.refusal(tmp_path / "folder.ckpt")

    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
    def test_cut_off(self, path: Path, share: float) -> None:
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert "is damaged or cut off, or no checkpoint of Lightning" in self.refusal(path)

    def test_a_changed_bit(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as file:
            largest = max(file.infolist(), key=lambda member: member.file_size)
        content[largest.header_offset + 1000] ^= 4
        path.write_bytes(content)
        assert "is damaged or cut off" in self.refusal(path)

    def test_another_zip(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme", "nothing")
        assert "cannot load the model" in self.refusal(path)

    def test_code_is_named_and_not_run(self, path: Path, tmp_path: Path) -> None:
        mark = tmp_path / "ran"
        official.write(path, official.Official(official.SETTINGS), callbacks=Runs(mark))
        assert "which may run code: 1 (posix.mkdir)" in self.refusal(path)
        assert not mark.exists()

    def test_a_plain_pickle_with_code(self, path: Path, tmp_path: Path) -> None:
        path.write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
        assert "no checkpoint of Lightning" in self.refusal(path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [[1], {}, {"state_dict": {}}, {"epoch": 1, "hyper_parameters": {}}], ids=repr)
    def test_no_settings_or_no_weights(self, path: Path, content: object) -> None:
        torch.save(content, path)
        assert "has no `hyper_parameters` beside a `state_dict`" in self.refusal(path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": None}, "hyper-parameter `model`: Input should be"),
            ({"model__language_projector": LOCKED}, "ShareLock model: its hyper-parameters: both sides are locked"),
            ({"model__vision_projector__normalize": False}, "`model.vision_projector.normalize`: Input should be True"),
            ({"model__language_projector__num_layers": "deep"}, "`model.language_projector.num_layers`: Input should"),
            ({"model__language_projector__hidden_size": 10**13}, "size"),
            ({"model__vision_encoder": "resnet50"}, "has the vision encoder resnet50, which is not one of dinov2_vit"),
            ({"model__vision_encoder": "dinov2_vitb14"}, "size mismatch"),
            ({"training__max_steps": -1}, "`steps`: Input should be greater than or equal to 1"),
        ],
    )
    def test_other_settings(self, path: Path, changes: dict[str, Any], message: str) -> None:
        official.write(path, official.Official(official.SETTINGS), official.settings(**changes))
        assert message in self.refusal(path)

    def test_weights_that_are_missing(self, path: Path) -> None:
        fewer = official.Official(official.settings(model__language_projector=DEEP))
        official.write(path, fewer)
        lacks = "of its hyper-parameters: it lacks weights: 7 (language_projector.projection.12.bias"
        assert lacks in self.refusal(path)

    def test_weights_of_another_model(self, path: Path) -> None:
        model = official.Official(official.SETTINGS)
        model.logit_scale = nn.Parameter(torch.tensor(2.66))
        official.write(path, model)
        assert "it has weights of another model: 1 (logit_scale)" in self.refusal(path)

    def test_weights_that_are_not_finite(self, path: Path) -> None:
        model = official.Official(official.SETTINGS)
        model.language_projector.projection[4].weight.data[2, 3] = torch.nan
        official.write(path, model)
        assert "is damaged: language_projector.projection.4.weight is not finite" in self.refusal(path)
