"""cluster/kuberay: what the operator's own schemas and checks say, and the rules that they do not have."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import validate_config

from kuberay import schema

_FOLDER = Path(__file__).parents[2] / "cluster" / "kuberay"
_PATHS = [_FOLDER / "raycluster.yaml", _FOLDER / "rayjob.yaml"]


@pytest.fixture(params=_PATHS, ids=lambda path: path.stem)
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _read(request.param)


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _cluster(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"].get("rayClusterSpec", document["spec"])


def _groups(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in _cluster(document)["workerGroupSpecs"]}


def _pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [_cluster(document)["headGroupSpec"], *_groups(document).values()]
    return [group["template"]["spec"] for group in groups]


def _environment(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_the_operator_knows_every_field(document: dict[str, Any]) -> None:
    jsonschema.validate(document, schema(document["kind"]))


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("spec", "enableInTreeAutoscalling", True),
        ("autoscalerOptions", "version", "v3"),
        ("autoscalerOptions", "idleTimeoutSeconds", "5m"),
        ("authOptions", "mode", "tokens"),
        ("group", "maxReplicas", "8"),
        ("group", "taint", []),
        ("pod", "toleration", []),
    ],
)
def test_the_schemas_refuse_a_damaged_file(document: dict[str, Any], place: str, name: str, value: Any) -> None:
    cluster = _cluster(document)
    group = cluster["workerGroupSpecs"][0]
    parts = {"spec": cluster, "group": group, "pod": group["template"]["spec"]}
    (parts[place] if place in parts else cluster[place])[name] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema(document["kind"]))


def test_rays_autoscaler_understands_the_groups(document: dict[str, Any]) -> None:
    # As the operator hands the cluster to the autoscaler: a job's cluster is one of its own.
    resource = {"metadata": {"name": "sharelock", "namespace": "default"}, "spec": _cluster(document)}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(config)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    for name, group in _groups(document).items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert types[name]["resources"]["GPU"] == int(limits["nvidia.com/gpu"])
        assert types[name]["resources"]["CPU"] > types[name]["resources"]["GPU"]
        assert types[name]["labels"] == group["labels"]
        assert types[name]["priority"] == group["priority"]
        assert (types[name]["min_workers"], types[name]["max_workers"]) == (0, group["maxReplicas"])


def test_the_autoscaler_is_the_second_and_access_needs_a_token(document: dict[str, Any]) -> None:
    cluster = _cluster(document)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 300
    assert cluster["authOptions"] == {"mode": "token"}


def test_spot_comes_first_and_only_spot_tolerates_spot(document: dict[str, Any]) -> None:
    groups = _groups(document)
    priorities: dict[str, set[int]] = {"spot": set(), "on-demand": set()}
    for group in groups.values():
        market = group["labels"]["ray.io/market-type"]
        pod = group["template"]["spec"]
        assert pod["nodeSelector"]["sharelock/market"] == market
        assert (market == "spot") == any(one["key"] == "sharelock/market" for one in pod["tolerations"])
        assert any(one["key"] == "nvidia.com/gpu" for one in pod["tolerations"])
        priorities[market].add(group["priority"])
    assert min(priorities["spot"]) > max(priorities["on-demand"])
    head = _cluster(document)["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"] == {"sharelock/market": "on-demand"}
    assert "tolerations" not in head


def test_pods_run_as_a_user_and_take_the_token_of_the_hub_from_a_secret(document: dict[str, Any]) -> None:
    for pod in _pods(document):
        (container,) = pod["containers"]
        assert container["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert set(_environment(container)["HF_TOKEN"]) == {"secretKeyRef"}


def test_shared_memory_holds_the_object_store(document: dict[str, Any]) -> None:
    for pod in _pods(document):
        (container,) = pod["containers"]
        (shared,) = (one["emptyDir"] for one in pod["volumes"] if one["name"] == "shm")
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        memory, size = (
            int(text.removesuffix("Gi")) for text in (container["resources"]["limits"]["memory"], shared["sizeLimit"])
        )
        assert shared["medium"] == "Memory"
        # Ray takes 30 % of the memory.
        assert 0.3 * memory <= size <= 0.35 * memory


def test_workers_spill_to_a_volume_of_their_own(document: dict[str, Any]) -> None:
    for group in _groups(document).values():
        folder = group["rayStartParams"]["object-spilling-directory"]
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        (mount,) = (one for one in mounts if folder.startswith(one["mountPath"] + "/"))
        (volume,) = (one for one in group["template"]["spec"]["volumes"] if one["name"] == mount["name"])
        assert volume["emptyDir"]["sizeLimit"]


def test_a_job_is_tried_again_ends_and_leaves_nothing() -> None:
    spec = _read(_FOLDER / "rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0
    # The operator refuses retries on a cluster that exists already, and interactive ones.
    assert "clusterSelector" not in spec
    assert spec.get("submissionMode", "K8sJobMode") == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"] <= 86_400
    assert (_FOLDER.parents[1] / spec["entrypoint"].split()[1]).is_file()


def test_a_job_has_the_variables_of_submitted_jobs_and_groups_of_the_cluster() -> None:
    job, cluster = _read(_FOLDER / "rayjob.yaml"), _read(_FOLDER / "raycluster.yaml")
    environment = yaml.safe_load((_FOLDER.parent / "runtime_env.yaml").read_text())
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": environment["env_vars"]}
    for name, group in _groups(job).items():
        same = _groups(cluster)[name]
        assert {key: group[key] for key in ("labels", "priority", "maxReplicas")} == {
            key: same[key] for key in ("labels", "priority", "maxReplicas")
        }
        assert group["template"]["spec"]["containers"] == same["template"]["spec"]["containers"]
