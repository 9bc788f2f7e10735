"""What TensorBoard shows of a trial beside the curves that its training writes: its settings, and what came of them."""

import time

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from sharelock_ray import storage
from sharelock_ray.alignment.metrics import record
from sharelock_ray.alignment.run import RunFolder
from sharelock_ray.evaluation.trials import Trial


def write_hparams(trial: Trial) -> None:
    """An event file in the run's `tensorboard/`: the settings as hparams, and the values at the end of the trial."""
    settings = {name: "none" if value is None else value for name, value in trial.point.items()}
    values = {f"end/{name}": value for name, value in trial.values.items()}
    described = hparams({**settings, "seed": trial.seed}, values)
    scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
    events = [Event(file_version="brain.Event:2"), *(Event(summary=each) for each in described)]
    events.append(Event(step=trial.steps, summary=scalars))
    for event in events:
        event.wall_time = time.time()
    # One file, always the same: a trial that is tried again ends anew.
    path = storage.join(RunFolder(trial.run).tensorboard, "events.out.tfevents.9999999999.hparams")
    storage.write_bytes(path, b"".join(map(record, events)))
