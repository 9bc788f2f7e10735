"""An AWS account in memory (moto), Ray's launcher against it, and what a policy allows."""

import contextlib
import copy
import fnmatch
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import yaml
from botocore.endpoint import Endpoint
from moto import mock_aws
from moto.ec2.models.instance_types import InstanceTypeBackend
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "ray_cluster.yaml"
# Of every account that moto emulates.
ACCOUNT = "123456789012"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the output of Ray's launcher."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def read(path: Path = CLUSTER) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's own steps before `ray up`; it prints a warning for each mounted file."""
    with quiet():
        prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The node types without the head's."""
    types = config["available_node_types"]
    return {name: one for name, one in types.items() if name != config["head_node_type"]}


@contextmanager
def account(home: Path) -> Iterator[None]:
    """An empty account. Ray writes a key pair below HOME, and boto3 would read the caller's own settings from there."""
    foreign = ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "HF_TOKEN")
    # Ray keeps clients, which would be those of an earlier account.
    for cache in (resource_cache, client_cache):
        cache.cache_clear()
    # Ray asks for all types that AWS has, and parsing a thousand takes long.
    used = {one["node_config"]["InstanceType"] for one in read()["available_node_types"].values()}
    kinds = [one for one in InstanceTypeBackend.instance_types if one["InstanceType"] in used]
    few = mock.patch.object(InstanceTypeBackend, "instance_types", kinds)
    with mock_aws(), few, mock.patch.dict(os.environ, {"HOME": str(home)}):
        for name in foreign:
            os.environ.pop(name, None)
        yield
    for cache in (resource_cache, client_cache):
        cache.cache_clear()


@dataclass(frozen=True)
class Call:
    """A request to AWS: the action as policies name it, such as `ec2:RunInstances`, and its parameters."""

    action: str
    parameters: Mapping[str, Any]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls within the block, in order."""
    calls: list[Call] = []
    original = Endpoint.make_request

    def record(self: Endpoint, operation: Any, request: dict[str, Any]) -> Any:
        body = request["body"] if isinstance(request["body"], dict) else {}
        calls.append(Call(f"{operation.service_model.signing_name}:{operation.name}", dict(body)))
        return original(self, operation, request)

    with mock.patch.object(Endpoint, "make_request", record):
        yield calls


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def allows(policy: dict[str, Any], action: str, resource: str = "*", context: Mapping[str, str] | None = None) -> bool:
    """If a policy of `Allow` statements permits an action on a resource; `context` has the values of condition keys."""
    context = context or {}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        conditions = statement.get("Condition", {"StringEquals": {}})
        assert set(conditions) == {"StringEquals"}
        if (
            any(fnmatch.fnmatchcase(action, one) for one in _listed(statement["Action"]))
            and any(fnmatch.fnmatchcase(resource, one) for one in _listed(statement["Resource"]))
            and all(context.get(key) in _listed(values) for key, values in conditions["StringEquals"].items())
        ):
            return True
    return False


def instances(region: str) -> list[dict[str, Any]]:
    """All instances of the account that are not terminated."""
    groups = boto3.client("ec2", region_name=region).describe_instances()["Reservations"]
    return [one for group in groups for one in group["Instances"] if one["State"]["Name"] != "terminated"]
