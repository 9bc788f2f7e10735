"""A preset is a short name for fields that one could have written out, and every preset names a model that there is."""

from pathlib import Path

import pytest
import timm
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

import support
from sharelock_ray.encoders.presets import PRESETS, written_out
from sharelock_ray.encoders.spec import EncoderSpec, LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.load import read_recipe

SPECS = {name: TypeAdapter(EncoderSpec).validate_python({"preset": name}) for name in PRESETS}
VISION = [spec for spec in SPECS.values() if isinstance(spec, VisionSpec)]
LANGUAGE = {name: spec for name, spec in SPECS.items() if isinstance(spec, LanguageSpec)}


@pytest.fixture(scope="module")
def known_to_timm() -> set[str]:
    return set(timm.list_pretrained())


@pytest.mark.parametrize("spec", VISION, ids=lambda spec: spec.name)
def test_every_vision_preset_is_a_model_with_weights(spec: VisionSpec, known_to_timm: set[str]) -> None:
    assert spec.model in known_to_timm
    resolved = spec.resolved()
    assert resolved.image_size == spec.image_size
    assert None not in resolved.model_dump(exclude={"revision", "layer"}).values()
    assert timm.get_pretrained_cfg(spec.model).hf_hub_id


def test_the_models_of_the_paper_see_224_pixels() -> None:
    sizes = {spec.name: spec.image_size for spec in VISION if "dinov3" not in spec.name}
    assert set(sizes.values()) == {224}
    assert {"dinov2-s", "dinov2-b-reg", "dinov2-g", "dino-b-16", "resnet-101", "clip-b-32", "vit-b-16"} <= sizes.keys()


@pytest.mark.parametrize(("name", "activation"), [("clip-b-32", "QuickGELU"), ("openclip-b-32", "GELU")])
def test_clip_has_the_activation_it_was_trained_with(name: str, activation: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(SPECS[name].model)
    assert {type(block.mlp.act).__name__ for block in model.blocks} == {activation}


def test_the_released_code_is_bilinear_with_the_hubs_positions() -> None:
    for name in ("dinov2-b", "dinov2-l", "dinov2-l-reg"):
        parity, own = SPECS[f"sharelock-{name}"], SPECS[name]
        changed = {"interpolation": "bilinear", "position_interpolation": "dinov2-hub", "reduced_scale": False}
        changed["name"] = f"sharelock-{name}"
        assert parity == own.model_copy(update=changed)
        assert (parity.image_size, parity.resize, parity.pooling) == (224, 256, "cls")


def test_ettins_pairs_differ_in_the_objective_alone() -> None:
    for size in ("17m", "32m", "68m", "150m", "400m", "1b"):
        encoder, decoder = (SPECS[f"ettin-{kind}-{size}"] for kind in ("encoder", "decoder"))
        assert (encoder.pooling, decoder.pooling) == ("mean", "last")
        same = {"name": "", "model": "", "pooling": "mean"}
        assert encoder.model_copy(update=same) == decoder.model_copy(update=same)


def test_large_decoders_are_in_16_bits() -> None:
    for name in ("llama-3-8b", "gemma-2-9b", "mistral-7b", "phi-3-mini", "qwen3-8b"):
        assert LANGUAGE[name].dtype == "bfloat16"


def test_decoders_are_read_at_their_last_token_after_a_prompt() -> None:
    for name in ("llama-3-8b", "gemma-2-9b", "smollm2-135m", "gpt2"):
        assert (LANGUAGE[name].pooling, LANGUAGE[name].prompt) == ("last", 'This sentence: "{}" means in one word:"')


@pytest.mark.parametrize(("kind", "name"), [(VisionSpec, "dinov2-l"), (LanguageSpec, "llama-3-8b")])
def test_is_the_same_set_as_its_fields_written_out(kind: type, name: str) -> None:
    short = kind(preset=name)
    assert short == kind(name=name, **PRESETS[name])
    assert "preset" not in short.model_dump()
    assert short == kind(**short.model_dump())
    assert short.folder() == kind(**PRESETS[name], name=name).folder()


def test_gives_way_to_what_the_recipe_says() -> None:
    spec = VisionSpec(preset="dinov2-l", name="mine", pooling="cls_mean", dtype="bfloat16")
    assert (spec.name, spec.pooling, spec.dtype) == ("mine", "cls_mean", "bfloat16")
    assert (spec.model, spec.resize) == ("vit_large_patch14_dinov2.lvd142m", 256)


def test_the_documentation_lists_every_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    assert [name for name in PRESETS if f"`{name}`" not in text] == []


class TestRefuses:
    @pytest.mark.parametrize(
        ("name", "near"),
        [("dinov2-xl", "dinov2-l"), ("llama3-8b", "llama-3-8b"), ("etin-encoder-1b", "ettin-encoder-1b")],
    )
    def test_an_unknown_name_and_says_the_nearest(self, name: str, near: str) -> None:
        with pytest.raises(ValidationError, match=f"no preset '{name}': did you mean `{near}`"):
            VisionSpec(preset=name)

    def test_a_preset_of_the_other_modality(self) -> None:
        with pytest.raises(ValidationError, match="'gpt2' is a language encoder"):
            VisionSpec(preset="gpt2")

    def test_a_preset_over_an_encoder_that_is_written_out(self) -> None:
        with pytest.raises(ValidationError, match="has no effect here"):
            LanguageSpec(**LANGUAGE["gpt2"].model_dump(), preset="llama-3-8b")


class TestInARecipe:
    @pytest.fixture
    def path(self, tmp_path: Path, models: Path) -> Path:
        path = support.write_recipe(tmp_path / "recipe.yaml", models)
        content = yaml.safe_load(path.read_text())
        content["encoders"] = [{"preset": "dinov2-s"}, {"preset": "smollm2-135m", "max_length": 77}]
        path.write_text(yaml.safe_dump(content))
        return path

    def test_needs_nothing_but_its_name(self, path: Path) -> None:
        recipe = read_recipe(str(path), ["encoders.0.pooling=mean"])
        assert recipe.vision == VisionSpec(preset="dinov2-s", pooling="mean")
        assert recipe.language == LanguageSpec(preset="smollm2-135m", max_length=77)

    def test_is_named_in_one_line_where_it_is_wrong(self, path: Path) -> None:
        with pytest.raises(RequestError, match=r"`encoders\.1`: there is no preset 'smollm-135m': did you") as error:
            read_recipe(str(path), ["encoders.1.preset=smollm-135m"])
        assert "\n" not in str(error.value)


class TestWrittenOut:
    """Lists of poolings and layers, which share one forward pass."""

    def test_gives_an_encoder_for_each_combination(self) -> None:
        found = written_out({"preset": "gpt2", "pooling": ["mean", "last"], "layer": [4, -1, None]})
        assert [(each["name"], each["pooling"], each["layer"]) for each in found] == [
            ("gpt2-mean-layer4", "mean", 4),
            ("gpt2-mean-layer-1", "mean", -1),
            ("gpt2-mean-final", "mean", None),
            ("gpt2-last-layer4", "last", 4),
            ("gpt2-last-layer-1", "last", -1),
            ("gpt2-last-final", "last", None),
        ]
        specs = [TypeAdapter(EncoderSpec).validate_python(each) for each in found]
        assert len({spec.forward_key() for spec in specs}) == 1
        assert len({spec.folder() for spec in specs}) == 6

    def test_leaves_other_sections_alone(self) -> None:
        for content in ({"preset": "gpt2"}, {"name": "x", "layer": 3}, "no section", None):
            assert written_out(content) == [content]
        (one,) = written_out({"modality": "vision", "name": "vit", "model": "v", "pooling": ["cls"]})
        assert one == {"modality": "vision", "name": "vit-cls", "model": "v", "pooling": "cls"}
