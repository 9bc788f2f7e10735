"""The set-up of an account, and all node types launched in it by Ray's own launcher: what exists then, and who may."""

import importlib.util
import json
import re
import shutil
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from aws import ACCOUNT, CLUSTER, ROOT, Call, account, allows, instances, prepare, quiet, read, recorded, workers

_FOLDER = ROOT / "cluster" / "aws"
_RANGE = "203.0.113.7/32"
_EC2 = f"arn:aws:ec2:us-west-2:{ACCOUNT}:"


def _load_setup() -> Any:
    spec = importlib.util.spec_from_file_location("cluster_aws_setup", _FOLDER / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = _load_setup()
_ARGUMENTS = ["--bucket", "features", "--ssh-from", _RANGE, "--email", "me@example.org"]


def _policy(name: str) -> dict[str, Any]:
    return json.loads(setup.policy(name, ACCOUNT, "us-west-2", "features"))


@dataclass(frozen=True)
class Launched:
    """What the launcher did, and what the account had while all nodes ran."""

    config: dict[str, Any]
    operator: list[Call]
    head: list[Call]
    nodes: dict[str, dict[str, Any]]
    details: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]
    left: int


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """`setup.py`, then what `ray up`, the autoscaler on the head, and `ray down` do, for one node of each type."""
    folder = tmp_path_factory.mktemp("account")
    shutil.copy(CLUSTER, folder)
    with pytest.MonkeyPatch.context() as patch, account(folder), quiet():
        patch.chdir(folder)
        setup.main(_ARGUMENTS)
        config = read(folder / CLUSTER.name)
        region = config["provider"]["region"]
        with recorded() as operator:
            filled = AWSNodeProvider.fillout_available_node_types_resources(prepare(config))
            ready = AWSNodeProvider.bootstrap_config(filled)
            provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
            _launch(provider, ready, ready["head_node_type"], "head")
        with recorded() as head:
            for name in workers(ready):
                _launch(provider, ready, name, "worker")
        ec2 = boto3.client("ec2", region_name=region)
        nodes = {_tags(one)[TAG_RAY_USER_NODE_TYPE]: one for one in instances(region)}
        details = {name: _details(ec2, one["InstanceId"]) for name, one in nodes.items()}
        groups = ec2.describe_security_groups()["SecurityGroups"]
        with recorded() as ending:
            provider.terminate_nodes(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"}))
        head += ending
        with recorded() as down:
            provider.terminate_node(nodes["head"]["InstanceId"])
        left = len(instances(region))
    return Launched(ready, operator + down, head, nodes, details, groups, left)


def _launch(provider: AWSNodeProvider, config: dict[str, Any], name: str, kind: str) -> None:
    node = config["available_node_types"][name]["node_config"]
    tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}
    (created,) = provider.create_node(node, tags, 1)
    provider.non_terminated_nodes({})
    provider.set_node_tags(created, {"ray-node-status": "up-to-date"})


def _tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def _details(ec2: Any, instance: str) -> dict[str, Any]:
    ending = ec2.describe_instance_attribute(InstanceId=instance, Attribute="instanceInitiatedShutdownBehavior")
    return {"shutdown": ending["InstanceInitiatedShutdownBehavior"]["Value"]}


# Nodes.


def test_every_type_launches_as_written(launched: Launched) -> None:
    types = read()["available_node_types"]
    assert {name: node["InstanceType"] for name, node in launched.nodes.items()} == {
        name: one["node_config"]["InstanceType"] for name, one in types.items()
    }
    spot = {name for name, node in launched.nodes.items() if node.get("InstanceLifecycle") == "spot"}
    assert spot == {name for name in types if name.endswith("_spot")}
    # Ray left the image alone; its own default is too old for the torch that the nodes have.
    for name, one in launched.config["available_node_types"].items():
        assert one["node_config"]["ImageId"] == types[name]["node_config"]["ImageId"]
        assert _tags(launched.nodes[name])["project"] == "sharelock"
        assert _tags(launched.nodes[name])["ray-cluster-name"] == "sharelock"
    assert launched.details["head"] == {"shutdown": "terminate"}
    assert launched.left == 0


def test_no_port_is_open_to_the_internet(launched: Launched) -> None:
    (group,) = (one for one in launched.groups if one["GroupName"] == "sharelock")
    ranges = [entry["CidrIp"] for rule in group["IpPermissions"] for entry in rule["IpRanges"]]
    assert ranges == [_RANGE]
    assert {rule["FromPort"] for rule in group["IpPermissions"] if rule["IpRanges"]} == {22}
    for node in launched.nodes.values():
        assert [one["GroupId"] for one in node["SecurityGroups"]] == [group["GroupId"]]


# Permissions: each call that was made is allowed, and little else.


def _requirements(call: Call) -> list[tuple[str, str, dict[str, str]]]:
    """The actions, resources and condition values that AWS checks for a call."""
    if call.action == "ec2:CreateKeyPair":
        return [(call.action, f"{_EC2}key-pair/{call.parameters['KeyName']}", {})]
    if call.action in {"ec2:CreateTags", "ec2:TerminateInstances"}:
        return [(call.action, f"{_EC2}instance/i-1", {"aws:ResourceTag/ray-cluster-name": "sharelock"})]
    if call.action != "ec2:RunInstances":
        return [(call.action, "*", {})]
    text = json.dumps(call.parameters)
    (role,) = re.findall(r'"IamInstanceProfile.Name": "([^"]+)"', text)
    new = {"aws:RequestTag/ray-cluster-name": "sharelock", "ec2:InstanceType": call.parameters["InstanceType"]}
    plain = [f"{_EC2}{kind}/x" for kind in ("subnet", "network-interface", "volume")]
    plain += [f"{_EC2}key-pair/{call.parameters['KeyName']}", "arn:aws:ec2:us-west-2::image/ami-1"]
    parameter = str(call.parameters["ImageId"]).removeprefix("resolve:ssm:")
    return [
        (call.action, f"{_EC2}instance/i-1", new),
        (call.action, f"{_EC2}security-group/sg-1", {"aws:ResourceTag/project": "sharelock"}),
        *((call.action, resource, {}) for resource in plain),
        ("ec2:CreateTags", f"{_EC2}instance/i-1", {"ec2:CreateAction": "RunInstances"}),
        ("ec2:CreateTags", f"{_EC2}volume/vol-1", {"ec2:CreateAction": "RunInstances"}),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{role}", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("ssm:GetParameters", f"arn:aws:ssm:us-west-2::parameter{parameter}", {}),
    ]


def _calls(launched: Launched, name: str) -> list[Call]:
    return {"operator": launched.operator, "head": launched.head}[name]


@pytest.mark.parametrize("name", ["operator", "head"])
def test_the_policy_allows_every_call_that_was_made(launched: Launched, name: str) -> None:
    policy, calls = _policy(name), _calls(launched, name)
    assert {"ec2:RunInstances", "ec2:TerminateInstances"} <= {call.action for call in calls}
    refused = [one for call in calls for one in _requirements(call) if not allows(policy, *one)]
    assert refused == []


@pytest.mark.parametrize("name", ["operator", "head"])
def test_the_policy_allows_no_action_that_nobody_needs(launched: Launched, name: str) -> None:
    allowed = {
        action
        for statement in _policy(name)["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
        if not action.startswith("ecr:")
    }
    assert allowed == {action for call in _calls(launched, name) for action, _, _ in _requirements(call)}


@pytest.mark.parametrize("name", ["operator", "head", "worker", "store"])
def test_no_policy_has_an_open_action_and_few_an_open_resource(name: str) -> None:
    for statement in _policy(name)["Statement"]:
        assert "*" not in json.dumps(statement["Action"])
        assert statement["Resource"] != "*" or statement["Sid"] in {"See", "LogInToTheRegistry"}
    assert not re.search("ACCOUNT|REGION|BUCKET", json.dumps(_policy(name)))


def test_only_the_types_of_the_file_can_be_launched() -> None:
    config = read()
    types = {name: one["node_config"]["InstanceType"] for name, one in config["available_node_types"].items()}
    expected = {"operator": {types["head"]}, "head": set(types.values()) - {types["head"]}}
    for name, kinds in expected.items():
        (statement,) = (one for one in _policy(name)["Statement"] if one["Sid"] == "LaunchTheseTypesOnly")
        assert set(statement["Condition"]["StringEquals"]["ec2:InstanceType"]) == kinds


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        # Ray would make a group that is open to all, where none exists.
        ("ec2:CreateSecurityGroup", f"{_EC2}security-group/*", {}),
        ("ec2:AuthorizeSecurityGroupIngress", f"{_EC2}security-group/sg-1", {}),
        ("ec2:RunInstances", f"{_EC2}security-group/sg-1", {}),
        (
            "ec2:RunInstances",
            f"{_EC2}instance/i-1",
            {"aws:RequestTag/ray-cluster-name": "sharelock", "ec2:InstanceType": "p5.48xlarge"},
        ),
        ("ec2:TerminateInstances", f"{_EC2}instance/i-1", {"aws:ResourceTag/ray-cluster-name": "other"}),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("s3:GetObject", "arn:aws:s3:::other/key", {}),
        ("secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:us-west-2:{ACCOUNT}:secret:other-1", {}),
    ],
)
def test_nobody_may(action: str, resource: str, context: dict[str, str]) -> None:
    for name in ("operator", "head", "worker", "store"):
        assert not allows(_policy(name), action, resource, context)


def test_the_store_policy_allows_what_the_storage_calls() -> None:
    needed = {
        "head_object": "s3:GetObject",
        "get_object": "s3:GetObject",
        "put_object": "s3:PutObject",
        "upload_part": "s3:PutObject",
        "complete_multipart_upload": "s3:PutObject",
        "abort_multipart_upload": "s3:AbortMultipartUpload",
        "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    }
    source = (ROOT / "sharelock_ray" / "storage" / "object_store.py").read_text()
    called = set(re.findall(r'_call_s3\(\s*"(\w+)"', source))
    assert called
    # s3fs reads, lists and removes.
    for action in {needed[one] for one in called} | {"s3:GetObject", "s3:ListBucket", "s3:DeleteObject"}:
        resource = "arn:aws:s3:::features" + ("" if "Bucket" in action else "/a/b")
        assert allows(_policy("store"), action, resource)


def test_nodes_may_read_the_secret_and_pull_the_image() -> None:
    secret = f"arn:aws:secretsmanager:us-west-2:{ACCOUNT}:secret:sharelock/hf-token-AbCdEf"
    assert allows(_policy("worker"), "secretsmanager:GetSecretValue", secret)
    assert allows(_policy("worker"), "ecr:BatchGetImage", f"arn:aws:ecr:us-west-2:{ACCOUNT}:repository/sharelock")


# The set-up itself.


def test_set_up_twice_changes_the_address_and_nothing_else(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(CLUSTER, tmp_path)
    monkeypatch.chdir(tmp_path)
    with account(tmp_path):
        setup.main(_ARGUMENTS)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        setup.main([*_ARGUMENTS[:3], "198.51.100.0/24", *_ARGUMENTS[4:]])
        ec2, iam = boto3.client("ec2", region_name="us-west-2"), boto3.client("iam")
        wanted = [{"Name": "group-name", "Values": ["sharelock"]}]
        (group,) = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
        (profile,) = iam.get_instance_profile(InstanceProfileName="sharelock-head")["InstanceProfile"]["Roles"]
        policies = iam.list_role_policies(RoleName="sharelock-head")["PolicyNames"]
        secrets = boto3.client("secretsmanager", region_name="us-west-2")
        secret = secrets.get_secret_value(SecretId="sharelock/hf-token")["SecretString"]
        (budget,) = boto3.client("budgets", region_name="us-east-1").describe_budgets(AccountId=ACCOUNT)["Budgets"]
    assert [entry["CidrIp"] for rule in group["IpPermissions"] for entry in rule["IpRanges"]] == ["198.51.100.0/24"]
    assert profile["RoleName"] == "sharelock-head"
    assert set(policies) == {"head", "worker", "store"}
    assert secret == "hf_secret"
    assert "hf_secret" not in capsys.readouterr().out
    assert float(budget["BudgetLimit"]["Amount"]) == 500
    text = (tmp_path / CLUSTER.name).read_text()
    assert f"{ACCOUNT}.dkr" in text
    assert text.replace(ACCOUNT, "0" * 12) == CLUSTER.read_text()


@pytest.mark.parametrize("text", ["0.0.0.0/0", "10.0.0.0/8", "::/0", "here"])
def test_ssh_from_everywhere_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        setup.main([*_ARGUMENTS[:2], "--ssh-from", text, *_ARGUMENTS[4:]])
    assert caught.value.code == 2
    assert "--ssh-from" in capsys.readouterr().err
