"""The schemas of KubeRay's own resources, for jsonschema.

`kuberay.json` is derived from the custom resource definitions of KubeRay 1.7.0 (github.com/ray-project/kuberay,
ray-operator/config/crd/bases, Apache License 2.0), without descriptions, and with equal parts stored once. To renew it
from a checkout: `python tests/kuberay.py FOLDER/ray-operator/config/crd/bases`.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).with_suffix(".json")
KINDS = ("rayclusters", "rayjobs")
_SHARED_FROM = 200


def schema(kind: str) -> dict[str, Any]:
    """The schema of a `RayCluster` or a `RayJob`. It refuses fields that the operator does not know."""
    return json.loads(PATH.read_text()) | {"$ref": f"#/$defs/{kind}"}


def _translate(node: Any) -> Any:
    """A part of an OpenAPI schema in terms of JSON Schema."""
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {name: node[name] for name in ("type", "enum", "required", "pattern", "minimum", "maximum") if name in node}
    if "properties" in node:
        kept["properties"] = {name: _translate(one) for name, one in node["properties"].items()}
        kept["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(node.get("additionalProperties"), dict):
        kept["additionalProperties"] = _translate(node["additionalProperties"])
    if "items" in node:
        kept["items"] = _translate(node["items"])
    return kept


def _parts(node: Any) -> Any:
    if isinstance(node, dict):
        for one in node.values():
            yield from _parts(one)
        # A map of properties may have one with the name `type`, which is then no name of a type.
        if isinstance(node.get("type"), str) and len(text := json.dumps(node, sort_keys=True)) > _SHARED_FROM:
            yield text


def _share(node: Any, names: dict[str, str], is_definition: bool = False) -> Any:
    if not isinstance(node, dict):
        return node
    if not is_definition and (name := names.get(json.dumps(node, sort_keys=True))):
        return {"$ref": f"#/$defs/{name}"}
    return {key: _share(one, names) for key, one in node.items()}


def _main(folder: Path) -> None:
    roots = {}
    for kind in KINDS:
        document = yaml.load((folder / f"ray.io_{kind}.yaml").read_text(), yaml.CSafeLoader)
        (version,) = (one for one in document["spec"]["versions"] if one["name"] == "v1")
        root = _translate(version["schema"]["openAPIV3Schema"])
        # The definition leaves the metadata to Kubernetes itself.
        root["properties"]["metadata"] = {"type": "object"}
        roots[document["spec"]["names"]["kind"]] = root
    counts = Counter(text for root in roots.values() for text in _parts(root))
    names = {text: f"d{number}" for number, text in enumerate(sorted(text for text, n in counts.items() if n > 1))}
    definitions = {name: _share(json.loads(text), names, is_definition=True) for text, name in names.items()}
    definitions |= {kind: _share(root, names, is_definition=True) for kind, root in roots.items()}
    PATH.write_text(json.dumps({"$defs": definitions}, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
