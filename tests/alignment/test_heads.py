"""The heads of the shipped recipes are those of the paper, and the documented script trains without Ray."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import support
from sharelock_ray.alignment.heads import UNDECAYED, Heads
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.recipe.load import read_recipe

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.parametrize(
    ("name", "vision_dim", "millions", "contrast"),
    [("faithful_v1", 768, 53.52, 1024), ("faithful_v3", 1024, 54.56, 1024), ("cc3m", 1024, 54.56, 16384)],
)
def test_of_the_papers_recipes_have_its_parameters(name: str, vision_dim: int, millions: float, contrast: int) -> None:
    spec = read_recipe(name).alignment
    with torch.device("meta"):
        heads = Heads(spec, vision_dim, 4096)
    trained = [p.numel() for p in heads.parameters() if p.requires_grad]
    assert sum(trained) / 1e6 == pytest.approx(millions, abs=0.006)
    assert (spec.contrast_size, spec.global_batch_size) == (contrast, 16384)
    assert spec.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


@pytest.mark.parametrize("name", ["faithful_v1", "faithful_v3", "cc3m"])
def test_the_papers_recipes_hold_its_values(name: str) -> None:
    """Of the released code's default configuration, and of the paper's appendix, which agrees (arXiv 2410.07173)."""
    recipe = read_recipe(name)
    spec, vision = recipe.alignment, recipe.vision
    differs = {"accumulation": 1, "precision": "bfloat16"} if name == "cc3m" else {}
    expected = {
        "loss": "infonce",
        "positives": "pair",
        "learn_logit_scale": False,
        "global_batch_size": 16384,
        "accumulation": 16,
        "steps": 5000,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 150,
        "clip_norm": 1.0,
        "precision": "float32",
        "evaluate_every": 500 // 16,
        "monitor": "loss",
        "patience": 50,
        "min_delta": 0.1,
        "seed": 42,
    } | differs
    assert {field: getattr(spec, field) for field in expected} == expected
    assert spec.validation_fraction == pytest.approx(50_000 / 563_000, rel=1e-3)
    head = {"depth": 4, "width": 4096, "norm": "batch", "activation": "relu", "dropout": 0.2, "init": "torch"}
    assert {field: getattr(spec.language, field) for field in head} == head
    assert spec.vision.depth == 0
    assert (vision.image_size, vision.resize, vision.interpolation, vision.pooling) == (224, 256, "bilinear", "cls")
    assert (recipe.language.pooling, recipe.language.prompt, recipe.language.append_eos) == ("last", None, False)


@pytest.mark.parametrize(
    ("given", "change", "is_idle"),
    [
        ({}, {"logit_bias": -1.0}, True),
        ({"loss": "sigmoid"}, {"logit_bias": -1.0}, False),
        ({}, {"min_delta": 0.1}, True),
        ({"patience": 3}, {"min_delta": 0.1}, False),
        ({"weight_decay": 0.0}, {"optimizer": "adamw"}, True),
        ({}, {"optimizer": "adamw"}, False),
        ({"weight_decay": 0.0}, {"optimizer": "lion"}, False),
        ({}, {"seed": 1}, False),
        ({}, {"vision": ProjectionSpec(width=3, gated=True)}, True),
        ({}, {"language": ProjectionSpec(depth=1, dropout=0.5)}, True),
    ],
)
def test_an_alignment_is_the_same_where_a_field_does_nothing(
    given: dict[str, object], change: dict[str, object], is_idle: bool
) -> None:
    one, other = (
        AlignmentSpec(**({"language": ProjectionSpec(depth=1)} | given | more)).effective(4, 4) for more in ({}, change)
    )
    assert (one == other) == is_idle


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_only_the_sigmoid_loss_has_a_bias(loss: str) -> None:
    heads = Heads(AlignmentSpec(language={"depth": 1}, loss=loss, logit_bias=-7), 4, 4)
    assert dict(heads.named_parameters()).keys() & {"logit_bias"} == ({"logit_bias"} if loss == "sigmoid" else set())
    if loss == "sigmoid":
        assert float(heads.logit_bias.detach()) == -7
        assert set(UNDECAYED) <= dict(heads.named_parameters()).keys()


def test_the_documented_script_trains_on_one_device_without_ray(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    sets = support.write_feature_sets(tmp_path, pairs=400)
    without_ray = f"import sys\nsys.modules['ray'] = None\n{script}"
    done = subprocess.run([sys.executable, "-c", without_ray, *sets], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.5
    assert "recall_at_1" in done.stdout
