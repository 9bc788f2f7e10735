"""What TensorBoard shows of a trial beside the curves that its training writes: its settings, and what came of them."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tensorboardX import SummaryWriter

from sharelock_ray import storage
from sharelock_ray.alignment.run import RunFolder
from sharelock_ray.evaluation.trials import Trial


def write_hparams(trial: Trial) -> None:
    """Writes the settings as hparams, and the values at the end of the trial, to the run's `tensorboard/`."""
    settings = {name: "none" if value is None else value for name, value in trial.point.items()}
    values = {f"end/{name}": value for name, value in trial.values.items()}
    with TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            writer.add_hparams({**settings, "seed": trial.seed}, values, "hparams", trial.steps)
        (written,) = Path(folder, "hparams").iterdir()
        # One file, always the same: a trial that is tried again ends anew.
        path = storage.join(RunFolder(trial.run).tensorboard, "events.out.tfevents.9999999999.hparams")
        storage.write_bytes(path, written.read_bytes())
