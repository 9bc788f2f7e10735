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
    """Runs every stage; finished stages are skipped with a message.

    Without a cluster, extraction and training each start their own Ray: the processes that Ray Data leaves running take
    0.5 GB, too much for a small machine.
    """
    inputs = Inputs(recipe)
    extract(recipe, inputs)
    audit_once(recipe, inputs)
    train(recipe, inputs)
    evaluate(recipe, inputs)
    return report(recipe, inputs)
