"""Makes what `ray up ray_cluster.yaml` needs in an AWS account, once: roles, a security group, a registry, a budget.

An administrator runs it from the root of the repository, with the bucket that holds features and runs:

    python cluster/aws/setup.py --bucket my-bucket --ssh-from 203.0.113.7/32 --email me@example.org

Every step may be repeated: what exists is brought up to date. Names are those of `ray_cluster.yaml`. Where HF_TOKEN is
set in the environment, it is stored as the secret `sharelock/hf-token`.
"""

import argparse
import ipaddress
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import ClientError

NAME = "sharelock"
SECRET = f"{NAME}/hf-token"
TAG = {"Key": "project", "Value": NAME}
CLUSTER = Path("ray_cluster.yaml")
NO_ACCOUNT = "0" * 12
# The policies of each role; a head also does what a worker does.
ROLES = {"head": ("head", "worker", "store"), "worker": ("worker", "store")}
_POLICIES = Path(__file__).parent


@contextmanager
def _unless_it_exists(*codes: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] not in codes:
            raise


def policy(name: str, account: str, region: str, bucket: str) -> str:
    """The policy in `<name>.json` for this account, region and bucket, as JSON without blanks."""
    text = (_POLICIES / f"{name}.json").read_text()
    for word, value in {"ACCOUNT": account, "REGION": region, "BUCKET": bucket}.items():
        text = text.replace(word, value)
    return json.dumps(json.loads(text), separators=(",", ":"))


def make_roles(iam: Any, policy_of: Callable[[str], str]) -> None:
    """Two roles with an instance profile each, and the group of the people who may start a cluster."""
    for role, policies in ROLES.items():
        name = f"{NAME}-{role}"
        with _unless_it_exists("EntityAlreadyExists"):
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy_of("trust"), Tags=[TAG])
        for one in policies:
            iam.put_role_policy(RoleName=name, PolicyName=one, PolicyDocument=policy_of(one))
        with _unless_it_exists("EntityAlreadyExists"):
            iam.create_instance_profile(InstanceProfileName=name)
        with _unless_it_exists("LimitExceeded"):
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    with _unless_it_exists("EntityAlreadyExists"):
        iam.create_group(GroupName=f"{NAME}-operators")
    iam.put_group_policy(GroupName=f"{NAME}-operators", PolicyName="operator", PolicyDocument=policy_of("operator"))
    # The first spot request of an account needs this role. AWS answers InvalidInput where it exists.
    with _unless_it_exists("InvalidInput", "EntityAlreadyExists"):
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")


def make_security_group(ec2: Any, ssh_from: str) -> str:
    """A group in the default network: all traffic between nodes, and ssh from `ssh_from`. Returns its ID."""
    (network,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    with _unless_it_exists("InvalidGroup.Duplicate"):
        ec2.create_security_group(
            GroupName=NAME,
            Description="Nodes of ShareLock clusters",
            VpcId=network["VpcId"],
            TagSpecifications=[{"ResourceType": "security-group", "Tags": [TAG]}],
        )
    wanted = [{"Name": "group-name", "Values": [NAME]}, {"Name": "vpc-id", "Values": [network["VpcId"]]}]
    (group,) = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    # The address of the operator may have changed, and its old one belongs to someone else now.
    if group["IpPermissions"]:
        ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=group["IpPermissions"])
    ec2.authorize_security_group_ingress(
        GroupId=group["GroupId"],
        IpPermissions=[
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group["GroupId"]}]},
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]},
        ],
    )
    return group["GroupId"]


def make_budget(budgets: Any, account: str, dollars: float, email: str) -> None:
    """A monthly budget of all that has the tag of the cluster; a mail at 80 % spent and at 100 % forecast."""
    reader = [{"SubscriptionType": "EMAIL", "Address": email}]
    with _unless_it_exists("DuplicateRecordException"):
        budgets.create_budget(
            AccountId=account,
            Budget={
                "BudgetName": NAME,
                "BudgetType": "COST",
                "TimeUnit": "MONTHLY",
                "BudgetLimit": {"Amount": str(dollars), "Unit": "USD"},
                "CostFilters": {"TagKeyValue": [f"user:{TAG['Key']}${TAG['Value']}"]},
            },
            NotificationsWithSubscribers=[
                {
                    "Notification": {
                        "NotificationType": kind,
                        "ComparisonOperator": "GREATER_THAN",
                        "Threshold": percent,
                        "ThresholdType": "PERCENTAGE",
                    },
                    "Subscribers": reader,
                }
                for kind, percent in (("ACTUAL", 80), ("FORECASTED", 100))
            ],
        )


def store_secret(secrets: Any, token: str) -> None:
    """Stores the token of the Hub, with which nodes load gated weights."""
    with _unless_it_exists("ResourceExistsException"):
        secrets.create_secret(Name=SECRET, SecretString=token, Tags=[TAG])
    secrets.put_secret_value(SecretId=SECRET, SecretString=token)


def _range(text: str) -> str:
    """A range of addresses that is not the whole internet."""
    network = ipaddress.ip_network(text)
    if network.version != 4 or network.prefixlen < 16:
        raise argparse.ArgumentTypeError(f"{text}: give your own IPv4 range, such as 203.0.113.7/32")
    return str(network)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True, help="name of the bucket for features and runs; it must exist")
    parser.add_argument("--ssh-from", required=True, type=_range, help="your address range, such as 203.0.113.7/32")
    parser.add_argument("--email", required=True, help="who hears that the budget is nearly spent")
    parser.add_argument("--monthly-budget", type=float, default=500, help="in US dollars; default 500")
    options = parser.parse_args(arguments)
    text = CLUSTER.read_text()
    region = yaml.safe_load(text)["provider"]["region"]
    session = boto3.Session(region_name=region)
    account = session.client("sts").get_caller_identity()["Account"]

    make_roles(session.client("iam"), lambda name: policy(name, account, region, options.bucket))
    group = make_security_group(session.client("ec2"), options.ssh_from)
    with _unless_it_exists("RepositoryAlreadyExistsException"):
        session.client("ecr").create_repository(repositoryName=NAME, tags=[TAG])
    make_budget(session.client("budgets"), account, options.monthly_budget, options.email)
    if token := os.environ.get("HF_TOKEN"):
        store_secret(session.client("secretsmanager"), token)
    CLUSTER.write_text(text.replace(NO_ACCOUNT, account))
    print(
        f"Account {account}, {region}: roles {NAME}-head and {NAME}-worker, group of operators {NAME}-operators,\n"
        f"security group {group} with ssh from {options.ssh_from}, registry {NAME}, a budget of "
        f"{options.monthly_budget:g} USD a month; secret {SECRET} {'stored' if token else 'left as it was'}.\n"
        f"{CLUSTER} names the account's registry. Activate the cost allocation tag `{TAG['Key']}` in the billing "
        "console, or the budget counts nothing."
    )


if __name__ == "__main__":
    main()
