"""ray_cluster.yaml: what Ray's own validation sees, and what it lets through."""

import contextlib
import copy
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

_ROOT = Path(__file__).parents[2]
_PATH = _ROOT / "ray_cluster.yaml"
_RUNTIME_ENV = _ROOT / "cluster" / "runtime_env.yaml"
_IMAGE = re.compile(r"rayproject/ray:(?P<ray>\d+\.\d+\.\d+)-py(?P<python>\d+)-(cpu|gpu)")
# Keys of AWS and of common hubs, private keys, and long random strings.
_SECRET = re.compile(
    r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|aws_secret_access_key|hf_[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{20,}"
    r"|-----BEGIN|\b[0-9a-f]{32,}\b|RAY_AUTH_TOKEN=",
    re.IGNORECASE,
)


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(_PATH.read_text())


def _validate(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's own steps before `ray up`; it prints a warning for each mounted file."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def _workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = config["available_node_types"]
    return {name: one for name, one in types.items() if name != config["head_node_type"]}


def _images(config: dict[str, Any]) -> Iterator[str]:
    for part in [config["docker"], *(one.get("docker", {}) for one in config["available_node_types"].values())]:
        yield from (part[name] for name in ("image", "head_image", "worker_image") if name in part)


def _start_command(commands: list[str]) -> str:
    (command,) = (one for one in commands if "ray start" in one)
    return command


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    prepared = _validate(config)
    assert prepared["cluster_name"] == "sharelock"
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == config["setup_commands"]


def _misspelt_top(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")


def _misspelt_type(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu_spot"]["max_worker"] = 8


def _unknown_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "heads"


def _too_many(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu_spot"]["min_workers"] = config["max_workers"] + 1


@pytest.mark.parametrize("damage", [_misspelt_top, _misspelt_type, _unknown_head, _too_many])
def test_validation_refuses_a_damaged_file(config: dict[str, Any], damage: Any) -> None:
    damage(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        _validate(config)


def test_named_so_that_two_clusters_cannot_meet_under_rays_default_name(config: dict[str, Any]) -> None:
    assert config["cluster_name"] not in {"", "default"}


def test_worker_counts_are_consistent(config: dict[str, Any]) -> None:
    workers = _workers(config)
    assert all(0 <= one["min_workers"] <= one["max_workers"] <= config["max_workers"] for one in workers.values())
    assert sum(one["max_workers"] for one in workers.values()) <= config["max_workers"]


def test_an_idle_cluster_is_only_its_head(config: dict[str, Any]) -> None:
    assert {one["min_workers"] for one in _workers(config).values()} == {0}
    assert config["idle_timeout_minutes"] == 5
    assert config["provider"]["cache_stopped_nodes"] is False


def test_no_work_lands_on_the_head(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_are_spot_and_reach_storage_by_their_profile(config: dict[str, Any]) -> None:
    for one in _workers(config).values():
        assert one["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert one["node_config"]["IamInstanceProfile"]["Name"]
    gpu = config["available_node_types"]["gpu_spot"]
    assert gpu["node_config"]["InstanceType"] == "g5.2xlarge"
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 8)


def test_every_disk_is_gp3_of_200_gb(config: dict[str, Any]) -> None:
    for one in config["available_node_types"].values():
        ((mapping),) = one["node_config"]["BlockDeviceMappings"]
        assert (mapping["Ebs"]["VolumeType"], mapping["Ebs"]["VolumeSize"]) == ("gp3", 200)


def test_dashboard_listens_on_loopback(config: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in _start_command(_validate(config)["head_start_ray_commands"]).split()


def test_every_node_has_the_token_as_a_mounted_file(config: dict[str, Any]) -> None:
    options = dict(one.removeprefix("-e ").split("=", 1) for one in config["docker"]["run_options"] if "-e " in one)
    assert options["RAY_AUTH_MODE"] == "token"
    assert options["RAY_AUTH_TOKEN_PATH"] in config["file_mounts"]
    # The head passes a mount on to the workers from its own target path, which therefore has no `~`.
    assert all(target.startswith("/") for target in config["file_mounts"])


def test_installs_only_what_the_lock_file_hashes(config: dict[str, Any]) -> None:
    commands = _validate(config)["worker_setup_commands"]
    installs = [one for one in commands if "pip install" in one]
    assert installs
    for command in installs:
        assert "--require-hashes" in command
        source = config["file_mounts"][command.split(" -r ")[1].split()[0]]
        assert (_ROOT / source).is_file()


def test_images_have_the_ray_and_the_python_of_the_lock_file(config: dict[str, Any]) -> None:
    (pinned,) = re.findall(r"^ray(?:\[[^\]]*\])?==(\S+)", (_ROOT / "requirements.lock").read_text(), re.MULTILINE)
    images = list(_images(config))
    assert {image.rpartition("-")[2] for image in images} == {"cpu", "gpu"}
    for image in images:
        match = _IMAGE.fullmatch(image)
        assert match, image
        assert (match["ray"], match["python"]) == (pinned, "311")


@pytest.mark.parametrize("path", [_PATH, _RUNTIME_ENV], ids=lambda path: path.name)
def test_no_secret_and_no_endpoint_in_the_files(path: Path) -> None:
    text = path.read_text()
    assert not _SECRET.search(text)
    assert "endpoint_url" not in text.lower()


@pytest.mark.parametrize("text", ["-e RAY_AUTH_TOKEN=abc", "AKIA" + "A" * 16, "0123456789abcdef" * 2])
def test_the_search_for_secrets_finds_some(text: str) -> None:
    assert _SECRET.search(text)


def test_an_emulated_aws_launches_every_type_as_written(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray writes a key pair below HOME, and boto3 would read the caller's own settings from there.
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # Both keep clients, which would be those of an earlier emulation.
        resource_cache.cache_clear()
        client_cache.cache_clear()
        # The two profiles are the person's to make, as cluster/README.md says.
        iam = boto3.client("iam")
        types = config["available_node_types"].values()
        for profile in {one["node_config"]["IamInstanceProfile"]["Name"] for one in types}:
            iam.create_instance_profile(InstanceProfileName=profile)
        filled = AWSNodeProvider.fillout_available_node_types_resources(_validate(config))
        ready = AWSNodeProvider.bootstrap_config(filled)
        provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
        for name, one in ready["available_node_types"].items():
            kind = "head" if name == ready["head_node_type"] else "worker"
            provider.create_node(one["node_config"], {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)
        client = boto3.client("ec2", region_name=ready["provider"]["region"])
        instances = [one for group in client.describe_instances()["Reservations"] for one in group["Instances"]]
        resource_cache.cache_clear()
        client_cache.cache_clear()
    launched = {tag["Value"]: one for one in instances for tag in one["Tags"] if tag["Key"] == TAG_RAY_USER_NODE_TYPE}
    assert {name: node["InstanceType"] for name, node in launched.items()} == {
        name: one["node_config"]["InstanceType"] for name, one in config["available_node_types"].items()
    }
    assert {name for name, node in launched.items() if node.get("InstanceLifecycle") == "spot"} == set(_workers(config))
    # Ray left the image alone; its own default is too old for the torch that the nodes install.
    for name, one in ready["available_node_types"].items():
        assert one["node_config"]["ImageId"] == config["available_node_types"][name]["node_config"]["ImageId"]
    # What the autoscaler plans with: it asks AWS, except where the file says otherwise.
    resources = {name: one["resources"] for name, one in ready["available_node_types"].items()}
    assert resources["head"]["CPU"] == 0
    assert (resources["gpu_spot"]["CPU"], resources["gpu_spot"]["GPU"]) == (8, 1)
    assert (resources["cpu_spot"]["CPU"], resources["cpu_spot"].get("GPU", 0)) == (16, 0)
