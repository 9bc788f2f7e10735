"""The examination of this machine and of a cluster, as the command shows it."""

import json
import time
from pathlib import Path

import pytest

import support
from sharelock_ray import cli
from sharelock_ray.health import examination
from sharelock_ray.health.check import Check
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows import doctor
from sharelock_ray.workflows.doctor import Diagnosis


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Recipe:
    return read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models)))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def of(found: Diagnosis) -> dict[str, dict[str, str]]:
    """States of the checks, by node and name."""
    return {node.node: {check.name: check.state for check in node.checks} for node in found.nodes}


class TestMachine:
    def test_is_examined_within_seconds_and_what_is_not_is_said(self) -> None:
        begun = time.process_time()
        found = doctor.doctor(None)
        assert time.process_time() - begun < 5
        assert list(of(found)) == ["this machine"]
        assert [each.partition(":")[0] for each in found.not_checked] == [
            "output, weights and waiting times",
            "shared output, versions, clocks and ports between nodes, token",
        ]

    def test_a_recipe_adds_its_storage_weights_and_waits(self, recipe: Recipe, tmp_path: Path) -> None:
        found = of(doctor.doctor(recipe))["this machine"]
        expected = ["store", "weights of tiny-resnet", "weights of tiny-decoder", "wait of extract", "wait of train"]
        assert {found[name] for name in expected} == {"ok"}
        assert not (tmp_path / "run").exists()

    def test_gpus_that_it_does_not_have_fail(self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "gpu_count", lambda: 0)
        changed = recipe.model_copy(
            update={
                "operations": recipe.operations.model_copy(
                    update={"training": recipe.operations.training.model_copy(update={"use_gpu": True})}
                )
            }
        )
        assert of(doctor.doctor(changed))["this machine"]["wait of train"] == "fail"


class TestCommand:
    def test_prints_one_object_and_exits_0_if_nothing_fails(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(
            doctor, "examine", lambda order: examination.Findings((Check("memory", "warn", "1 GiB", "more"),), {})
        )
        cli.main(["doctor", "--json"])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["nodes"] == [
            {
                "node": "this machine",
                "checks": [{"name": "memory", "state": "warn", "found": "1 GiB", "remedy": "more"}],
            }
        ]
        assert len(found["not_checked"]) == 2

    def test_exits_1_after_the_table_if_a_check_fails(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(
            doctor, "examine", lambda order: examination.Findings((Check("spill", "fail", "full", "free space"),), {})
        )
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor"])
        out, err = capsys.readouterr()
        assert ended.value.code == 1
        assert "free space" in out
        assert "not checked: output, weights" in out
        assert err == "sharelock: 1 of 1 checks failed: see what to do beside each\n"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--set", "output=x"], "--set changes a recipe: give the RECIPE too"),
            (["nowhere.yaml"], "no recipe at nowhere.yaml"),
        ],
    )
    def test_a_wrong_request_is_one_line_and_code_2(
        self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", *arguments])
        out, err = capsys.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
        assert said in err


class TestCluster:
    def test_without_its_token_is_not_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        found = doctor.doctor(None, "10.0.0.1:6379")
        assert of(found) == {"driver": {"Ray token": "fail"}}
        assert found.not_checked[-1] == "the nodes: there is no token to reach them"

    @pytest.mark.usefixtures("local_ray")
    def test_every_node_is_examined(self, recipe: Recipe) -> None:
        # The fixture's connection is used, whatever the address.
        driver, node = doctor.doctor(recipe, "127.0.0.1:6379").nodes
        states = of(Diagnosis((driver, node), ()))
        assert states["driver"].keys() == {"Ray token", "wait of extract", "wait of train"}
        names = ("node", "versions", "clock", "shared output", "store", "store clock", "weights of tiny-decoder")
        assert {name: states[node.node][name] for name in names} == dict.fromkeys(names, "ok")

    @pytest.mark.usefixtures("local_ray")
    def test_an_output_that_the_driver_cannot_write_fails_once(self, recipe: Recipe) -> None:
        changed = recipe.model_copy(update={"output": "/proc/none"})
        driver, node = doctor.doctor(changed, "127.0.0.1:6379").nodes
        assert {check.name: check.state for check in driver.checks}["shared output"] == "fail"
        assert not {"store", "shared output"} & {check.name for check in node.checks}
