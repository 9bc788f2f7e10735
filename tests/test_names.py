"""Names of feature sets and trials last: what is stored under a name is found again by every later version.

`names.json` pins the names of every preset, and of every encoder and one trial of the shipped recipes. A name changes
only on purpose, since work that is finished is then not found and done again. `python tests/test_names.py` writes the
file anew; say in the commit why names changed. New presets and recipes are new lines in it.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from sharelock_ray.encoders.presets import PRESETS
from sharelock_ray.encoders.spec import EncoderSpec
from sharelock_ray.recipe.load import SHIPPED, read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows import tune

GOLDEN = Path(__file__).with_name("names.json")


def current_names() -> dict[str, Any]:
    presets = {name: TypeAdapter(EncoderSpec).validate_python({"preset": name}) for name in PRESETS}
    # Names include the content of local weights, and `make pictures` makes those of the two on its pictures.
    recipes = {
        path.stem: read_recipe(str(path)) for path in SHIPPED.glob("*.yaml") if path.stem not in ("pictures", "study")
    }
    return {
        "presets": {name: spec.resolved().folder() for name, spec in presets.items()},
        "encoders": {name: [e.resolved().folder() for e in recipe.encoders] for name, recipe in recipes.items()},
        "trials": {name: first_trial(recipe) for name, recipe in recipes.items() if recipe.tuning},
    }


def first_trial(recipe: Recipe) -> str:
    """The folder's name of the first point's first trial, on made-up feature sets without classes."""
    made_up = SimpleNamespace(digest="0" * 64, dim=384)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "read_manifest", lambda uri: made_up)
        patch.setattr(tune, "_has_classes", lambda recipe: False)
        patch.setattr(Recipe, "class_names", lambda recipe: None)
        point = next(tune._points_to_check(recipe.tuning))
        job = tune.Preparation(recipe, recipe.tuning)(point, seed=0)
    return job.trial.run.rpartition("/")[2]


@pytest.mark.parametrize("kind", ["presets", "encoders", "trials"])
def test_names_are_what_they_were(kind: str) -> None:
    assert current_names()[kind] == json.loads(GOLDEN.read_text())[kind], f"see {__file__}"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(current_names(), indent=2, sort_keys=True) + "\n")
