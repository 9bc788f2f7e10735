"""`train`: aligns a pair of encoders on their feature sets of the training split."""

from sharelock_ray.progress import say
from sharelock_ray.recipe.load import write_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.runs.folder import TrainingResult
from sharelock_ray.workflows.extract import opened
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.timing import timed


def train(recipe: Recipe, inputs: Inputs | None = None) -> TrainingResult:
    """Trains, or resumes, the alignment of the recipe's pair of encoders."""
    with timed(recipe, "train"):
        return _train(recipe, inputs or Inputs(recipe))


def _train(recipe: Recipe, inputs: Inputs) -> TrainingResult:
    run = recipe.run
    if recipe.data.classes is not None:
        recipe.class_names()  # Fails before the training if evaluation could not read them.
    pairing, texts = inputs.pairing, inputs.class_texts
    vision = inputs.open("train", recipe.vision)
    language = opened(inputs, [(texts, recipe.language)])[0] if texts else inputs.open("train", recipe.language)
    if pairing.identity:
        pairing.pairs(vision, language)  # A split of concepts of other data must not begin a run.
    run.begin(recipe.training, vision.manifest, language.manifest, pairing.identity)
    # Only now: a rejected request must not overwrite the recipe of an existing training.
    write_recipe(recipe)
    result = run.result()
    if result is not None:
        say(f"train: already done ({run.uri})")
        return result
    from sharelock_ray.engine.training import train as train_run

    result = train_run(run, vision.uri, language.uri, recipe.training, recipe.operations.training, pairing)
    best = f"{result.best_validation_loss:.3f} at step {result.best_step:,}"
    say(f"train: {result.steps:,} steps, best validation loss {best}")
    return result
