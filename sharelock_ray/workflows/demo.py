"""`demo`: every stage of a run, from data to report."""

from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.report.summary import Summary
from sharelock_ray.workflows.audit import audit_once
from sharelock_ray.workflows.evaluate import evaluate
from sharelock_ray.workflows.extract import extract
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.report import report
from sharelock_ray.workflows.train import train


def demo(recipe: Recipe) -> Summary:
    """Every stage; what is done is left alone, and said.

    Extraction and training each start a Ray of their own where there is none: what Ray Data leaves running, 0.5 GB, is
    more than a small machine can spare.
    """
    inputs = Inputs(recipe)
    extract(recipe, inputs)
    audit_once(recipe, inputs)
    train(recipe, inputs)
    evaluate(recipe, inputs)
    return report(recipe, inputs)
