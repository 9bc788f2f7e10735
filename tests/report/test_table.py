"""Tables of data for a terminal, and everything else that the command prints of it."""

import io
import json
import sys

import pyarrow as pa
import pytest
from rich.console import Console

from sharelock_ray import cli
from sharelock_ray.report.table import text_table

MARKUP = ["[/b] ends nothing", "[bold]", "[link=file:///etc]x", "a :smile:", "[0]", "\\[x]", "[/]"]
HOSTILE = "[/red]\x1b]0;owned\x07\x9b31m\u202egpj.\u2028end\udc80"
SHOWN = r"[/red]\x1b]0;owned\x07\x9b31m\u202egpj.\u2028end\udc80"


def shown(*args: object, **options: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(text_table(*args, **options))
    return stream.getvalue()


@pytest.mark.parametrize("text", MARKUP)
def test_square_brackets_and_colons_are_text_in_every_place(text: str) -> None:
    assert shown([text], [[text]], title=text, caption=text).count(text) == 4


def test_what_a_terminal_would_obey_or_hide_is_escaped_in_every_place() -> None:
    out = shown([HOSTILE], [[HOSTILE]], title=HOSTILE, caption=HOSTILE)
    assert out.count(SHOWN) == 4
    assert not set(HOSTILE) & set("\x1b\x07\x9b\u202e\u2028\udc80") & set(out)


def test_a_cell_is_one_line() -> None:
    assert r"a\nsharelock: done\tb" in shown(["x"], [["a\nsharelock: done\tb"]])


def test_without_a_header_there_are_columns_still() -> None:
    assert "│ one │ two │" in shown([], [["one", "two"]])


def reject(text: str) -> dict[str, str]:
    return dict.fromkeys(["split", "modality", "key", "stage", "error", "message"], text)


class TestCommand:
    """What a reject of hostile data comes to."""

    KEY = HOSTILE.removesuffix("\udc80")

    @pytest.fixture(autouse=True)
    def _rejects(self, monkeypatch: pytest.MonkeyPatch) -> None:
        table = pa.Table.from_pylist([reject(self.KEY), reject("日本語")])
        monkeypatch.setattr(cli.rejects, "rejects", lambda recipe: table)

    def test_is_listed_as_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(["rejects", "list", "demo"])
        out, err = capsys.readouterr()
        assert (out.count("[/red]"), err) == (6, "")
        assert not set("\x1b\x07\x9b\u202e\u2028") & set(out)

    def test_is_exact_in_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(["rejects", "list", "demo", "--json"])
        out = capsys.readouterr().out
        assert json.loads(out)["shown"][0] == reject(self.KEY)
        assert out.isascii()

    def test_is_text_in_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["extract", f"{HOSTILE}/x.yaml"])
        err = capsys.readouterr().err
        assert ended.value.code == 2
        assert SHOWN in err
        assert len(err.splitlines()) == 1

    def test_a_terminal_without_its_letters_ends_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
        cli.main(["rejects", "list", "demo"])
        sys.stdout.flush()
        assert rb"\u65e5" in raw.getvalue()
