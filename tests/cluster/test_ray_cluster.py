"""ray_cluster.yaml: what Ray's own validation sees, what it lets through, and what Ray's autoscaler starts."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from aws import CLUSTER, ROOT, account, prepare, quiet, read, workers

_RECIPES = sorted((ROOT / "sharelock_ray" / "recipe" / "recipes").glob("*.yaml"))
# Keys of AWS and of common hubs, private keys, and long random strings.
_SECRET = re.compile(
    r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|aws_secret_access_key|hf_[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{20,}"
    r"|-----BEGIN|\b[0-9a-f]{32,}\b|RAY_AUTH_TOKEN=",
    re.IGNORECASE,
)


@pytest.fixture
def config() -> dict[str, Any]:
    return read()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file with the resources of each node type, which Ray asks AWS for."""
    with account(tmp_path_factory.mktemp("home")), quiet():
        return AWSNodeProvider.fillout_available_node_types_resources(prepare(read()))


def _images(config: dict[str, Any]) -> Iterator[str]:
    for part in [config["docker"], *(one.get("docker", {}) for one in config["available_node_types"].values())]:
        yield from (part[name] for name in ("image", "head_image", "worker_image") if name in part)


def _start_command(commands: list[str]) -> str:
    (command,) = (one for one in commands if "ray start" in one)
    return command


def _options(config: dict[str, Any], flag: str) -> dict[str, str]:
    """The run options of the containers of one kind, such as `-e` or `-v`, as a mapping."""
    pairs = (one.removeprefix(f"{flag} ") for one in config["docker"]["run_options"] if one.startswith(f"{flag} "))
    return dict(re.split("[=:]", pair, maxsplit=1) for pair in pairs)


# What Ray checks.


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    prepared = prepare(config)
    assert prepared["cluster_name"] == "sharelock"
    # Ray's defaults would install a nightly wheel.
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


def _misspelt_top(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")


def _misspelt_type(config: dict[str, Any]) -> None:
    config["available_node_types"]["l4_spot"]["max_worker"] = 8


def _unknown_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "heads"


def _too_many(config: dict[str, Any]) -> None:
    config["available_node_types"]["l4_spot"]["min_workers"] = config["max_workers"] + 1


@pytest.mark.parametrize("damage", [_misspelt_top, _misspelt_type, _unknown_head, _too_many])
def test_validation_refuses_a_damaged_file(config: dict[str, Any], damage: Any) -> None:
    damage(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepare(config)


# What Ray does not check.


def test_named_so_that_two_clusters_cannot_meet_under_rays_default_name(config: dict[str, Any]) -> None:
    assert config["cluster_name"] not in {"", "default"}


def test_every_worker_type_has_a_range_a_priority_and_labels(config: dict[str, Any]) -> None:
    for one in workers(config).values():
        assert 0 <= one["min_workers"] <= one["max_workers"] <= config["max_workers"]
        assert one["priority"] > 0
        assert one["labels"]["stage"] in {"extraction", "training", "reading"}


def test_an_idle_cluster_is_only_its_head(config: dict[str, Any]) -> None:
    assert {one["min_workers"] for one in workers(config).values()} == {0}
    assert config["idle_timeout_minutes"] == 5
    assert config["provider"]["cache_stopped_nodes"] is False


def test_no_work_lands_on_the_head(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_spot_and_on_demand_are_as_labelled(config: dict[str, Any]) -> None:
    for name, one in workers(config).items():
        spot = one["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert one["labels"]["ray.io/market-type"] == ("spot" if spot else "on-demand")
        assert name.endswith("_spot" if spot else "_on_demand")
        assert one["node_config"]["IamInstanceProfile"] == {"Name": "sharelock-worker"}


def test_every_machine_ends_itself(config: dict[str, Any]) -> None:
    for name, one in config["available_node_types"].items():
        script, minutes = re.fullmatch(r"(#!/bin/bash)\nshutdown -h \+(\d+)\n", one["node_config"]["UserData"]).groups()
        assert script
        assert int(minutes) == (2880 if name == "head" else 720)
        # A one-time spot instance cannot be stopped: AWS terminates it.
        if "InstanceMarketOptions" not in one["node_config"]:
            assert one["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_machines_are_tagged_encrypted_and_guard_their_credentials(config: dict[str, Any]) -> None:
    for one in config["available_node_types"].values():
        node = one["node_config"]
        ((mapping),) = node["BlockDeviceMappings"]
        assert (mapping["Ebs"]["VolumeType"], mapping["Ebs"]["VolumeSize"]) == ("gp3", 200)
        assert mapping["Ebs"]["Encrypted"] is mapping["Ebs"]["DeleteOnTermination"] is True
        assert node["MetadataOptions"] == {"HttpTokens": "required"}
        assert {tags["ResourceType"] for tags in node["TagSpecifications"]} == {"instance", "volume"}
        assert all(tags["Tags"] == [{"Key": "project", "Value": "sharelock"}] for tags in node["TagSpecifications"])


def test_the_security_group_is_one_that_exists(config: dict[str, Any]) -> None:
    # Without a name, or with rules of its own, Ray makes a group with ssh from everywhere.
    assert config["provider"]["security_group"] == {"GroupName": "sharelock"}
    assert "0.0.0.0" not in CLUSTER.read_text()


def test_dashboard_listens_on_loopback(config: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in _start_command(prepare(config)["head_start_ray_commands"]).split()


def test_objects_spill_to_the_local_disk_that_is_mounted_and_made(config: dict[str, Any]) -> None:
    mounts = {target: source for source, target in _options(config, "-v").items()}
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (folder,) = re.findall(r"--object-spilling-directory=(\S+)", _start_command(config[commands]))
        source = mounts[str(Path(folder).parent)]
        assert any(source in one.split() for one in config["initialization_commands"] if "install -d" in one)
    for name in ("SHARELOCK_CACHE", "HF_HOME"):
        assert str(Path(_options(config, "-e")[name]).parent) in mounts


def test_every_node_has_the_token_as_a_mounted_file(config: dict[str, Any]) -> None:
    options = _options(config, "-e")
    assert options["RAY_AUTH_MODE"] == "token"
    assert options["RAY_AUTH_TOKEN_PATH"] in config["file_mounts"]
    # The head passes a mount on to the workers from its own target path, which therefore has no `~`.
    assert all(target.startswith("/") for target in config["file_mounts"])


def test_the_token_of_the_hub_is_a_file_in_memory_read_from_the_secret(config: dict[str, Any]) -> None:
    path = _options(config, "-e")["HF_TOKEN_PATH"]
    assert _options(config, "-v")[str(Path(path).parent)].endswith(":ro")
    assert path.startswith("/run/")
    (command,) = (one for one in config["initialization_commands"] if "secretsmanager" in one)
    assert "--secret-id sharelock/hf-token" in command
    assert f"> {path}" in command
    assert command.startswith("umask 077;")


def test_one_region_and_one_account_throughout(config: dict[str, Any]) -> None:
    text = CLUSTER.read_text()
    region = config["provider"]["region"]
    assert {zone[:-1] for zone in config["provider"]["availability_zone"].split(",")} == {region}
    assert set(re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", text.replace(config["provider"]["availability_zone"], ""))) == {
        region
    }
    # setup.py replaces it.
    assert set(re.findall(r"(\d+)\.dkr", text)) == {"0" * 12}


def test_images_are_those_of_the_dockerfile_with_the_ray_of_the_lock_file(config: dict[str, Any]) -> None:
    (pinned,) = re.findall(r"^ray(?:\[[^\]]*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    tags = [image.partition("/sharelock:")[2] for image in _images(config)]
    assert set(tags) == {f"{pinned}-gpu", f"{pinned}-cpu"}
    for name, one in workers(config).items():
        image = one.get("docker", {}).get("worker_image", config["docker"]["image"])
        assert image.endswith("-cpu" if name.startswith("cpu") else "-gpu")
    assert config["docker"]["head_image"].endswith("-cpu")


def test_the_readme_states_types_limits_and_a_bound_of_the_cost(config: dict[str, Any]) -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\S+)` \| .* \| (\d+) \| ([\d.]+) \|$", text, re.MULTILINE)
    types = config["available_node_types"]
    assert {(name, machine, int(count)) for name, machine, count, _ in rows} == {
        (name, one["node_config"]["InstanceType"], one.get("max_workers", 1)) for name, one in types.items()
    }
    prices = {name: float(price) for name, _, _, price in rows}
    # A disk of 200 GB at $0.08 per GB and month of 730 hours.
    disk = 200 * 0.08 / 730
    dearest = sorted((prices[name] for name, one in workers(config).items() for _ in range(one["max_workers"])))
    most = sum(dearest[-config["max_workers"] :]) + prices["head"] + disk * (config["max_workers"] + 1)
    assert f"**at most ${-int(-most // 1)} per hour**" in text
    assert f"its head alone ${prices['head'] + disk:.2f}" in text


_FILES = [CLUSTER, *(one for one in sorted((ROOT / "cluster").rglob("*.*")) if one.suffix != ".md")]


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_no_secret_and_no_endpoint_in_the_files(path: Path) -> None:
    text = path.read_text()
    assert not _SECRET.search(text)
    assert "endpoint_url" not in text.lower()


@pytest.mark.parametrize("text", ["-e RAY_AUTH_TOKEN=abc", "AKIA" + "A" * 16, "0123456789abcdef" * 2])
def test_the_search_for_secrets_finds_some(text: str) -> None:
    assert _SECRET.search(text)


def _selectors(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "label_selector":
                yield value
            else:
                yield from _selectors(value)


@pytest.mark.parametrize("path", _RECIPES, ids=lambda path: path.stem)
def test_labels_that_a_recipe_selects_exist(config: dict[str, Any], path: Path) -> None:
    labels = [one["labels"] for one in workers(config).values()]
    for selector in _selectors(yaml.safe_load(path.read_text())):
        assert any(selector.items() <= one.items() for one in labels), selector


# What Ray's autoscaler starts: its own scheduler, on this file.


def _launched(
    filled: dict[str, Any],
    count: int,
    stage: str | None,
    failed: tuple[str, ...] = (),
    each: dict[str, float] | None = None,
) -> dict[str, int]:
    """Nodes that Ray's autoscaler starts for waiting actors: by type, for an empty cluster."""
    selectors = [[("stage", LabelSelectorOperator.LABEL_OPERATOR_IN, [stage])]] if stage else None
    request = ResourceRequestUtil.make(each or {"CPU": 1, "GPU": 1}, label_selectors=selectors)
    with quiet():
        settings = AutoscalingConfig(copy.deepcopy(filled), skip_content_hash=True)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([request] * count),
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    return {one.instance_type: one.count for one in reply.to_launch if one.instance_type != "head"}


def test_types_of_one_stage_are_interchangeable(filled: dict[str, Any]) -> None:
    types = filled["available_node_types"]
    extraction = [one for one in types.values() if one.get("labels", {}).get("stage") == "extraction"]
    assert len({one["node_config"]["InstanceType"] for one in extraction}) >= 2
    for resource in ("CPU", "GPU", "memory"):
        assert len({one["resources"][resource] for one in extraction}) == 1
    training = [one for one in types.values() if one.get("labels", {}).get("stage") == "training"]
    assert all(one["resources"]["GPU"] == 4 for one in training)
    assert types["head"]["resources"]["CPU"] == 0
    assert types["cpu_spot"]["resources"].get("GPU", 0) == 0
    for one in workers(filled).values():
        kind = one["labels"].get("ray.io/accelerator-type")
        assert kind is None or one["resources"][f"accelerator_type:{kind}"] == 1


def test_an_extraction_takes_spot_nodes_of_both_types_first(filled: dict[str, Any]) -> None:
    assert _launched(filled, 8, "extraction") == {"a10g_spot": 4, "l4_spot": 4}


def test_a_larger_extraction_adds_nodes_on_demand(filled: dict[str, Any]) -> None:
    assert _launched(filled, 10, "extraction") == {"a10g_spot": 4, "l4_spot": 4, "l4_on_demand": 2}


def test_types_that_did_not_come_up_are_last_for_a_while(filled: dict[str, Any]) -> None:
    failed = ("a10g_spot", "l4_spot")
    assert _launched(filled, 4, "extraction", failed) == {"l4_on_demand": 4}
    assert _launched(filled, 4, "extraction", failed[:1]) == {"l4_spot": 4}


def test_only_a_machine_that_started_and_did_not_join_counts_as_failed() -> None:
    # Why a refused spot request does not lead to nodes on demand, and each spot type has few nodes at most.
    monitor = CloudResourceMonitor()
    refused, lost = (
        InstanceUpdateEvent(instance_id=name, instance_type="l4_spot", new_instance_status=status)
        for name, status in (("a", Instance.ALLOCATION_FAILED), ("b", Instance.ALLOCATION_TIMEOUT))
    )
    monitor.notify([refused])
    assert monitor.get_recoverable_resource_availabilities() == {}
    monitor.notify([lost])
    assert monitor.get_recoverable_resource_availabilities() == {"l4_spot": 0.0}


def test_training_takes_its_own_type_spot_first(filled: dict[str, Any]) -> None:
    assert _launched(filled, 4, "training") == {"l40s_spot": 1}
    assert _launched(filled, 4, "training", ("l40s_spot",)) == {"l40s_on_demand": 1}


def test_decoding_takes_nodes_without_a_gpu(filled: dict[str, Any]) -> None:
    assert _launched(filled, 32, None, each={"CPU": 1}) == {"cpu_spot": 2}


def test_without_a_label_the_largest_node_that_is_filled_wins(filled: dict[str, Any]) -> None:
    # Why jobs select nodes by label: Ray's autoscaler looks at use before priority.
    assert "l40s_spot" in _launched(filled, 4, None)


def test_all_nodes_together_stay_within_the_limit(filled: dict[str, Any]) -> None:
    assert sum(_launched(filled, 100, "extraction").values()) == 12
    assert sum(_launched(filled, 1000, None).values()) <= filled["max_workers"]
