"""The locks of the nodes, the image that is built from them, and the SkyPilot task that installs one."""

import re
from pathlib import Path

import pytest
import yaml

from aws import ROOT

_CLUSTER = ROOT / "cluster"
_RUNTIME, _CPU = "requirements-runtime.txt", "requirements-cpu.txt"
_TOOLS = {"pytest", "ruff", "mypy", "moto", "import-linter", "optuna-dashboard", "tensorboard", "types-pyyaml"}
# The registry has no build of torch for CPUs only: this one links to the rest of CUDA, and does not import without it.
_GPU_ONLY = {
    "triton",
    "cuda-bindings",
    "cuda-pathfinder",
    "cuda-toolkit",
    "nvidia-cuda-cccl",
    "nvidia-cusolver",
    "nvidia-nvjitlink",
    "nvidia-nvtx",
}


def _read(name: str) -> dict[str, set[str]]:
    """The hashes of each requirement, such as `torch==2.15.0`."""
    entries: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text().replace("\\\n", "").splitlines():
        match = re.fullmatch(r"([a-z0-9._-]+==[A-Za-z0-9.]+)(?: ; [^-]*)?((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, line[:80]
        entries.setdefault(match[1], set()).update(match[2].split())
    return entries


def _names(entries: dict[str, set[str]]) -> set[str]:
    return {entry.partition("==")[0] for entry in entries}


@pytest.mark.parametrize("name", [_RUNTIME, _CPU])
def test_versions_and_hashes_are_those_of_the_lock_file(name: str) -> None:
    lock = _read("requirements.lock")
    for entry, hashes in _read(name).items():
        assert hashes == lock[entry], entry


@pytest.mark.parametrize("name", [_RUNTIME, _CPU])
def test_no_index_no_address_and_no_test_tool(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "index" not in text
    assert not _TOOLS & _names(_read(name))


def test_the_runtime_has_what_nodes_need() -> None:
    # boto3 is what Ray's autoscaler on the head starts nodes with.
    assert {"ray", "torch", "transformers", "timm", "s3fs", "gguf", "open-clip-torch", "boto3"} <= _names(
        _read(_RUNTIME)
    )


def test_the_cpu_lock_lacks_only_what_torch_loads_for_a_gpu() -> None:
    runtime, cpu = _read(_RUNTIME), _read(_CPU)
    assert cpu.items() <= runtime.items()
    assert _names(runtime) - _names(cpu) == _GPU_ONLY


# The image.


def _instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (_CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    pairs = [line.split(maxsplit=1) for line in lines]
    return [(name, arguments) for name, arguments in pairs]


def test_every_instruction_is_one_of_dockers() -> None:
    names = [name for name, _ in _instructions()]
    assert set(names) <= {"ARG", "FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "CMD"}
    assert names[0] == "ARG"


def test_bases_are_pinned_and_stages_exist() -> None:
    arguments = dict(value.split("=") for name, value in _instructions() if name == "ARG")
    assert re.fullmatch(r"3\.11\.\d+-slim-\w+", arguments["PYTHON"])
    stages: set[str] = set()
    for name, value in _instructions():
        if name == "FROM":
            base, *rest = value.replace("${DEVICE}", arguments["DEVICE"]).split()
            assert base == "python:${PYTHON}" or base in stages
            stages.update(rest[1:])
        if name == "COPY" and value.startswith("--from="):
            assert value.split()[0].removeprefix("--from=") in stages
    assert {"packages-gpu", "packages-cpu", "packages"} <= stages


def test_nodes_run_as_a_user_without_privileges() -> None:
    final = _instructions()
    last = max(number for number, (name, _) in enumerate(final) if name == "FROM")
    users = [value for name, value in final[last:] if name == "USER"]
    assert users == ["ray"]
    # The user of the machine image on AWS, whose files the container reads.
    assert any(
        "useradd" in value and "--uid 1000" in value and value.endswith("/home/ray/sharelock") for _, value in final
    )


def test_packages_come_from_the_locks_only() -> None:
    installs = [value for name, value in _instructions() if name == "RUN" and "pip install" in value]
    assert len(installs) == 2
    assert all("--no-deps" in value for value in installs)
    assert "--require-hashes" in installs[0]
    assert installs[1].split()[-1] == "/source"
    assert "--no-build-isolation" in installs[1]


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (_CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    sources = set()
    for name, value in _instructions():
        if name == "COPY" and "--from=" not in value:
            *found, _ = (one for one in value.split() if not one.startswith("--"))
            sources.update(found)
    assert sources == sent
    assert all((ROOT / one).exists() for one in sources)


def test_tools_that_launchers_run_inside_the_container_are_there() -> None:
    (packages,) = (value for name, value in _instructions() if name == "RUN" and "apt-get install" in value)
    # `ray up` copies with rsync, KubeRay probes with wget, `ray stop` lists processes.
    assert {"rsync", "wget", "procps", "openssh-client"} <= set(packages.split())


# SkyPilot.


def test_the_skypilot_task_is_spot_first_bounded_and_without_secrets() -> None:
    task = yaml.safe_load((_CLUSTER / "skypilot.yaml").read_text())
    resources = task["resources"]
    spot = [bool(one.get("use_spot")) for one in resources["ordered"]]
    assert spot == sorted(spot, reverse=True)
    assert True in spot
    assert False in spot
    assert len({one["accelerators"] for one in resources["ordered"]}) >= 2
    assert resources["max_hourly_cost"] > 0
    assert resources["job_recovery"]["max_restarts_on_errors"] > 0
    assert not any(task["secrets"].values())
    assert set(task) == {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "setup", "run"}


def test_the_skypilot_task_installs_the_lock_and_spares_skypilots_own_ray() -> None:
    task = yaml.safe_load((_CLUSTER / "skypilot.yaml").read_text())
    assert f"--no-deps --require-hashes -r {_RUNTIME}" in task["setup"]
    commands = [line.strip() for line in task["run"].splitlines() if not line.strip().startswith("#")]
    assert not any("ray stop" in line for line in commands)
    (entry,) = (line for line in commands if line.startswith("python "))
    assert Path(ROOT / entry.split()[1]).is_file()
