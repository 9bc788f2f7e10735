"""Encoders of the hub, out of a cache as its own client leaves it: loaded by name, with their commit recorded."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import open_clip
import pytest
import timm
from safetensors.torch import save_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

import support
from sharelock_ray.encoders.spec import LanguageSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EARLIER = "f" * 40
LOAD = """
import json
import numpy as np
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder

vision = VisionEncoder(VisionSpec(name="v", model="test_resnet.r160_in1k", image_size=32))
language = LanguageEncoder(LanguageSpec(name="l", model="someone/tiny", max_length=32, pooling="last"))
earlier = VisionEncoder(VisionSpec(name="v", model="test_resnet.r160_in1k", image_size=32, revision="v1"))
print(json.dumps({
    "revisions": [vision.revision, language.revision, earlier.revision],
    "commits": [vision.spec.commit(), language.spec.commit(), earlier.spec.commit()],
    "earlier": earlier.encode(np.zeros((1, 32, 32, 3), np.uint8)).tolist(),
    "vision": vision.encode(np.zeros((1, 32, 32, 3), np.uint8)).tolist(),
    "language": language.encode(["a red circle"]).tolist(),
}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, models: Path) -> dict:
    """What a process gives that finds a timm and a transformers model in its hub cache, and no network."""
    home = tmp_path_factory.mktemp("hub")
    for commit, revision in ((COMMIT, "main"), (EARLIER, "v1")):
        vision = snapshot(home, "timm--test_resnet.r160_in1k", commit, revision)
        save_file(timm.create_model("test_resnet").state_dict(), vision / "model.safetensors")
    language = snapshot(home, "someone--tiny")
    for file in Path(support.tiny_language(models).model).iterdir():
        (language / file.name).write_bytes(file.read_bytes())
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def snapshot(home: Path, repository: str, commit: str = COMMIT, revision: str = "main") -> Path:
    folder = home / "hub" / f"models--{repository}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def test_the_exact_commits_are_known(loaded: dict) -> None:
    assert loaded["revisions"] == loaded["commits"] == [COMMIT, COMMIT, EARLIER]
    assert loaded["earlier"] != loaded["vision"]


BACKENDS = """
import json
import numpy as np
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder

for backend, model in (("transformers", "someone/dinov2"), ("open_clip", "hf-hub:someone/clip")):
    for revision in (None, "v1"):
        encoder = VisionEncoder(VisionSpec(name="v", model=model, backend=backend, revision=revision))
        image = np.zeros((1, 32, 32, 3), np.uint8)
        print(encoder.spec.commit(), encoder.revision, encoder.encode(image).sum())
"""


def test_other_backends_load_a_commit_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 16}
    square = {"height": 32, "width": 32}
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    for commit, revision in ((COMMIT, "main"), (EARLIER, "v1")):
        folder = snapshot(tmp_path, "someone--dinov2", commit, revision)
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
        BitImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
        folder = snapshot(tmp_path, "someone--clip", commit, revision)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", BACKENDS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [[COMMIT] * 2, [EARLIER] * 2] * 2
    assert len({line[2] for line in lines}) == 4


def test_weights_that_the_hub_lacks_are_named(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, "timm--test_resnet.r160_in1k")
    weights = timm.create_model("test_resnet").state_dict()
    del weights["bn1.weight"]
    save_file(weights, folder / "model.safetensors")
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True)
    assert "RequestError: cannot load 'test_resnet.r160_in1k': " in done.stderr.splitlines()[-1]
    assert 'Missing key(s) in state_dict: "bn1.weight".' in done.stderr.splitlines()[-1]


ASK = """
import sys
from sharelock_ray.encoders.spec import LanguageSpec

for model, revision in (("someone/tiny", None), ("someone/tiny", "v2"), ("someone/else", None)):
    spec = LanguageSpec(name="l", model=model, revision=revision)
    print(spec.commit(), spec.at(spec.commit()).revision)
print("torch" in sys.modules)
"""


class Hub(BaseHTTPRequestHandler):
    """Knows one model, of two commits."""

    COMMITS: ClassVar = {"/api/models/someone/tiny": "1" * 40, "/api/models/someone/tiny/revision/v2": "2" * 40}

    def do_GET(self) -> None:
        commit = self.COMMITS.get(self.path)
        self.send_response(200 if commit else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"id": "someone/tiny", "sha": commit}).encode())

    def log_message(self, *message: object) -> None:
        pass


def test_the_hub_is_asked_which_commit_a_revision_is_before_any_node_loads_it(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        env = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
        done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True)
        hub.shutdown()
    assert done.stdout.splitlines() == [f"{'1' * 40} {'1' * 40}", f"{'2' * 40} {'2' * 40}", "None None", "False"]


def test_a_model_by_name_embeds_as_the_same_model_by_path(loaded: dict, language_spec: LanguageSpec) -> None:
    from sharelock_ray.encoders.language import LanguageEncoder

    local = LanguageEncoder(language_spec)
    assert local.revision is None
    assert loaded["language"] == pytest.approx(local.encode(["a red circle"]), abs=1e-6)
    assert len(loaded["vision"][0]) == 96
