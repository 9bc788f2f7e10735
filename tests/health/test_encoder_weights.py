"""Weights of encoders: at a place, in the hub's cache, or on a hub that this test serves; each answer once."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from sharelock_ray.encoders import provenance
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.health.encoder_weights import Weights, weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_of_an_encoder_on_disk_is_its_place(vision_spec: VisionSpec, language_spec: LanguageSpec) -> None:
    for spec in (vision_spec, language_spec):
        check = weights(Weights.of(spec))
        assert (check.name, check.state) == (f"weights of {spec.name}", "ok")


def test_a_place_that_this_node_does_not_have_fails(tmp_path: Path) -> None:
    check = weights(Weights("mine", place=str(tmp_path / "none")))
    assert (check.state, check.found) == ("fail", f"nothing at {tmp_path}/none")
    assert weights(Weights("mine", place="unheard-of://a/b")).state == "fail"


def test_of_the_hub_are_its_repository_and_file() -> None:
    assert Weights.of(LanguageSpec(name="l", model="a/b", revision="v1")) == Weights(
        "l", repository="a/b", revision="v1"
    )
    gguf = Weights.of(LanguageSpec(name="l", model="a/b/c-q4.gguf"))
    assert (gguf.repository, gguf.file) == ("a/b", "c-q4.gguf")


def test_those_of_a_models_own_url_are_not_checked() -> None:
    assert weights(Weights("v")).state == "warn"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a repository in this node's cache, with a configuration only."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text(COMMIT)
    find = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        provenance, "try_to_load_from_cache", lambda *given, **named: find(*given, cache_dir=tmp_path, **named)
    )
    return snapshot


class Hub(BaseHTTPRequestHandler):
    """A hub with a public model, and a gated one that gives no access."""

    def do_GET(self) -> None:
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        asks_access = "auth-check" in self.path
        status, code = {"a/b": (200, ""), "a/gated": (403, "GatedRepo") if asks_access else (200, "")}.get(
            name, (404, "RepoNotFound")
        )
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        about = {"id": name, "modelId": name, "sha": COMMIT, "gated": "manual" if name == "a/gated" else False}
        self.wfile.write(json.dumps(about | {"siblings": [], "tags": []}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        api = huggingface_hub.HfApi(endpoint=endpoint)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
        yield server
        server.shutdown()


def test_a_cached_configuration_alone_is_no_model(cache: Path, hub: ThreadingHTTPServer) -> None:
    assert "not cached yet" in weights(Weights("l", repository="a/b")).found
    (cache / "model.safetensors").touch()
    assert weights(Weights("l", repository="a/b")).found == "a/b, in this node's cache"


@pytest.mark.parametrize(
    ("repository", "said", "remedy"),
    [
        ("a/gated", "a/gated is gated", "set HF_TOKEN on every node"),
        ("a/missing", "the hub has no a/missing", "`model` and `revision`"),
    ],
)
def test_what_the_hub_refuses_fails(
    repository: str, said: str, remedy: str, cache: Path, hub: ThreadingHTTPServer
) -> None:
    check = weights(Weights("l", repository=repository))
    assert check.state == "fail"
    assert said in check.found
    assert remedy in check.remedy


def test_a_hub_that_does_not_answer_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    check = weights(Weights("l", repository="a/b"))
    assert check.state == "fail"
    assert "the hub does not answer" in check.found
