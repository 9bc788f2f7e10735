"""Kills of an actor, a reader, a node or a second driver: the feature sets equal those of an undisturbed run."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import support
from sharelock_ray.encoders.resolved import resolve
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.engine.extraction import ExtractionJob, extract
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.extraction.report import ChunkReport
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.soundness import audit
from sharelock_ray.sources.webdataset import WebDatasetSource

OPTIONS = ExtractionOptions(chunk_size=8)


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, vision_spec: VisionSpec, language_spec: LanguageSpec
) -> ExtractionJob:
    folder = tmp_path_factory.mktemp("kills")
    source = WebDatasetSource(urls=support.write_pairs(folder / "data", shards=4, samples=40, bad=True))
    return ExtractionJob(
        str(folder / "undisturbed"), "pairs", "train", source, (resolve(vision_spec), resolve(language_spec))
    )


@pytest.fixture(scope="module")
def undisturbed(job: ExtractionJob, local_ray: None) -> list[FeatureSet]:
    return extract(job, OPTIONS)


def assert_same(sets: list[FeatureSet], undisturbed: list[FeatureSet], job: ExtractionJob) -> None:
    keys = [item.key for item in support.read_source(job.source)]
    for ours, theirs in zip(sets, undisturbed, strict=True):
        assert audit(ours, keys).problems == []
        assert [part.sha256 for part in ours.manifest.parts] == [part.sha256 for part in theirs.manifest.parts]
        assert ours.rejects == theirs.rejects
        assert not (Path(ours.uri) / "staging").exists()


def pid_of(report: ChunkReport) -> int:
    return int(report.worker.rpartition(":")[2])


def test_a_killed_actor_changes_nothing(job: ExtractionJob, tmp_path: Path, undisturbed: list[FeatureSet]) -> None:
    reports: list[ChunkReport] = []

    def watch(report: ChunkReport) -> None:
        if not reports:
            os.kill(pid_of(report), signal.SIGKILL)
        reports.append(report)

    sets = extract(dataclasses.replace(job, root=str(tmp_path)), OPTIONS, watch)
    assert len(set(map(pid_of, reports))) == 2
    assert_same(sets, undisturbed, job)


@pytest.mark.slow
def test_a_killed_read_task_changes_nothing(job: ExtractionJob, tmp_path: Path, undisturbed: list[FeatureSet]) -> None:
    # With a different number of CPUs than a read, the actor is not fused with it: each has its own process.
    options = OPTIONS.model_copy(update={"num_cpus": 0.5})
    # Workers cannot import the tests' modules.
    ray.cloudpickle.register_pickle_by_value(support)
    mark = tmp_path / "killed"
    source = support.KilledOnce(job.source, shard=2, samples=20, mark=str(mark))
    sets = extract(dataclasses.replace(job, root=str(tmp_path / "features"), source=source), options)
    assert mark.exists()
    assert_same(sets, undisturbed, job)


RUN = """
import pickle, sys
from sharelock_ray.engine.extraction import extract
job, options = pickle.load(open(sys.argv[1], "rb"))
extract(job, options)
"""


@pytest.mark.slow
def test_two_drivers_at_once_change_nothing(job: ExtractionJob, tmp_path: Path, undisturbed: list[FeatureSet]) -> None:
    racing = dataclasses.replace(job, root=str(tmp_path / "features"))
    drivers = [start_driver(RUN, racing, OPTIONS, tmp_path / str(i)) for i in range(2)]
    errors = [driver.communicate(timeout=240)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], errors
    assert_same([open_features(racing.uri(encoder)) for encoder in racing.encoders], undisturbed, job)


LOSE_A_NODE = """
import os, pickle, sys
import psutil
from ray.cluster_utils import Cluster

# Ray's test cluster starts nodes without a token.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}

# Nothing runs on the head, so that every actor is on a node that can be lost.
small = {"object_store_memory": 128 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0})
nodes = [cluster.add_node(**small, num_cpus=2) for _ in range(2)]
os.environ["RAY_ADDRESS"] = cluster.address
from sharelock_ray.engine.extraction import extract

lost = []

def watch(report):
    if lost:
        return
    pid = int(report.worker.rpartition(":")[2])
    for node in nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if pid in [child.pid for child in raylet.children(recursive=True)]:
            cluster.remove_node(node, allow_graceful=False)
            lost.append(node)

job, options = pickle.load(open(sys.argv[1], "rb"))
extract(job, options, watch)
print(f"lost {len(lost)}")
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_changes_nothing(job: ExtractionJob, tmp_path: Path, undisturbed: list[FeatureSet]) -> None:
    losing = dataclasses.replace(job, root=str(tmp_path / "features"))
    options = OPTIONS.model_copy(update={"max_actors": 2, "num_cpus": 0.5})
    driver = start_driver(LOSE_A_NODE, losing, options, tmp_path)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert out.splitlines()[-1] == "lost 1"
    assert_same([open_features(losing.uri(encoder)) for encoder in losing.encoders], undisturbed, job)


def start_driver(code: str, job: ExtractionJob, options: ExtractionOptions, folder: Path) -> subprocess.Popen[str]:
    """Runs `code` in a process without this session's Ray; its first argument is the path of the pickled job."""
    folder.mkdir(exist_ok=True)
    (folder / "job").write_bytes(pickle.dumps((job, options)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, str(folder / "job")]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
