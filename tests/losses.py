"""Trainings and studies that lose a node, each for a process of its own.

python losses.py WHICH FOLDER
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.engine.training_options import TrainingOptions
from sharelock_ray.runs.folder import RunFolder

SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=2, width=32, dropout=0.1, activation="gelu"),
    global_batch_size=64,
    steps=300,
    warmup_steps=5,
    evaluate_every=50,
    validation_fraction=0.2,
    order="parts",
)


def features_of(folder: str) -> tuple[str, str]:
    return f"{folder}/features/vision", f"{folder}/features/language"


def reached(run: RunFolder, step: int) -> bool:
    """Whether the training is there."""
    return any(row["step"] >= step for row in run.metrics())


def on_two_nodes(folder: str) -> None:
    """Two workers on two nodes, with a CPU on each to read what is streamed to them; one node is lost."""
    run = RunFolder(f"{folder}/run")
    with a_node_lost(lambda: reached(run, 100), cpus=3):
        from sharelock_ray.engine.training import train

        train(run, *features_of(folder), SPEC, TrainingOptions(num_workers=2, min_workers=1, num_cpus=2, stream=True))


def study_on_two_nodes(folder: str) -> None:
    """Two trials at a time on two nodes of one CPU. One node is lost when both trials have a checkpoint."""
    from sharelock_ray.recipe.load import read_recipe

    recipe = read_recipe(f"{folder}/study.yaml")

    def both_are_under_way() -> bool:
        return len(list(Path(recipe.output).glob("trials/*/last/checkpoint.json"))) == 2

    with a_node_lost(both_are_under_way):
        from sharelock_ray.workflows.tune import tune

        tune(recipe)


@contextmanager
def a_node_lost(moment: Callable[[], bool], cpus: int = 1) -> Iterator[None]:
    """A cluster of two nodes of `cpus` for the time of the block; one of them is lost once `moment` holds."""
    # A cluster of the test's own on this machine; its nodes are started without a token.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # Right after the loss Ray Train still counts on the lost node, and would wait a minute for it.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    from ray.cluster_utils import Cluster

    memory = 80 << 20
    head = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=cpus, object_store_memory=memory)
    os.environ["RAY_ADDRESS"] = cluster.address

    def lose() -> None:
        while not moment():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    try:
        yield
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    {"nodes": on_two_nodes, "study": study_on_two_nodes}[sys.argv[1]](sys.argv[2])
