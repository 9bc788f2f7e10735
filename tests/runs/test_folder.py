"""A run folder stores its request once, and reports damaged files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.manifest import Manifest, read_manifest
from sharelock_ray.runs.folder import RunFolder

SPEC = AlignmentSpec()


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Manifest, Manifest]]:
    vision, language = support.write_feature_sets(tmp_path_factory.mktemp("features"), pairs=4)
    return read_manifest(vision), read_manifest(language)


class TestBegin:
    def test_refuses_other_settings_and_names_them(self, tmp_path: Path, manifests: tuple[Manifest, Manifest]) -> None:
        run = RunFolder(str(tmp_path))
        for _ in range(2):
            run.begin(SPEC, *manifests)
        with pytest.raises(
            RequestError, match=r"holds a training with other settings \(alignment\.seed: 0 there, 1 now\)"
        ):
            run.begin(SPEC.model_copy(update={"seed": 1}), *manifests)
        with pytest.raises(RequestError, match=r"\(features\.vision differs\)"):
            run.begin(SPEC, manifests[1], manifests[1])

    def test_one_of_several_concurrent_drivers_wins(self, tmp_path: Path, manifests: tuple[Manifest, Manifest]) -> None:
        def begun(seed: int) -> bool:
            try:
                RunFolder(str(tmp_path)).begin(SPEC.model_copy(update={"seed": seed}), *manifests)
            except RequestError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(begun, range(16)))
        assert sum(won) == 1
        asked = storage.read_json(str(tmp_path / "training-request.json"))
        assert asked["alignment"]["seed"] == won.index(True)

    def test_rejects_a_driver_that_checked_before_another_one_started(
        self, tmp_path: Path, manifests: tuple[Manifest, Manifest], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, create = RunFolder(str(tmp_path)), storage.create_bytes

        def second(uri: str, data: bytes) -> bool:
            monkeypatch.setattr(storage, "create_bytes", create)
            run.begin(SPEC.model_copy(update={"seed": 1}), *manifests)
            return create(uri, data)

        monkeypatch.setattr(storage, "create_bytes", second)
        with pytest.raises(RequestError, match=r"alignment\.seed: 1 there, 0 now"):
            run.begin(SPEC, *manifests)

    def test_accepts_a_request_of_an_earlier_version_with_fewer_settings(
        self, tmp_path: Path, manifests: tuple[Manifest, Manifest]
    ) -> None:
        run = RunFolder(str(tmp_path))
        run.begin(SPEC, *manifests)
        path = str(tmp_path / "training-request.json")
        asked = storage.read_json(path)
        # Also a nested setting.
        del asked["alignment"]["order"], asked["alignment"]["language"]["gated"]
        storage.write_json(path, asked)
        run.begin(SPEC, *manifests)
        gated = SPEC.language.model_copy(update={"gated": True})
        with pytest.raises(RequestError, match=r"\(alignment\.language\.gated: False there, True now\)"):
            run.begin(SPEC.model_copy(update={"language": gated}), *manifests)

    def test_removes_the_files_of_killed_writes(self, tmp_path: Path, manifests: tuple[Manifest, Manifest]) -> None:
        for folder in (tmp_path, tmp_path / "best", tmp_path / "last"):
            folder.mkdir(exist_ok=True)
            (folder / ".tmp-killed").write_bytes(b"half a checkpoint")
            (folder / "kept").write_bytes(b"")
        RunFolder(str(tmp_path)).begin(SPEC, *manifests)
        assert list(tmp_path.rglob(".tmp-*")) == []
        assert len(list(tmp_path.rglob("kept"))) == 3


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b"\xff\xfe", b""], ids=["torn", "no-text", "empty"])
def test_metrics_are_read_without_damaged_lines(tmp_path: Path, torn: bytes) -> None:
    run, rows = RunFolder(str(tmp_path)), [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}]
    assert run.metrics() == []
    run.write_metrics(rows)
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(torn)
    assert run.metrics() == rows


@pytest.mark.parametrize("name", ["training.json", "training-request.json", "fault.json", "feeding.json"])
def test_a_damaged_document_is_an_error_that_names_it(
    tmp_path: Path, manifests: tuple[Manifest, Manifest], name: str
) -> None:
    run = RunFolder(str(tmp_path))
    (tmp_path / name).write_bytes(b'{"steps": 3')
    reads = {
        "training.json": run.result,
        "training-request.json": lambda: run.begin(SPEC, *manifests),
        "fault.json": run.fault,
        "feeding.json": run.data_placement,
    }
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        reads[name]()
