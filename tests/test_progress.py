"""Progress lines, and redirection of library output away from them."""

import io
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sharelock_ray import progress
from sharelock_ray.progress import Progress, printable, say


def line_after(seconds: float, counter: Progress) -> str:
    return counter.line(counter._started + seconds)


def working(*arguments: object, **options: object) -> Progress:
    """A Progress after its first update."""
    counter = Progress(*arguments, **options)
    counter.update(0)
    return counter


def run(code: str, log: Path) -> subprocess.CompletedProcess[str]:
    prelude = "import os, subprocess, sys\nfrom pathlib import Path\nfrom sharelock_ray.progress import *\n"
    prelude += "from sharelock_ray.progress import chatter_to, say\nlog = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), str(log)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class TestLine:
    def test_shows_rate_and_time_left(self) -> None:
        counter = working("extract train", "images", total=10_000)
        counter.update(2_500)
        assert line_after(10, counter) == "extract train: 2,500/10,000 images, 250.0/s, 0:30 left"

    def test_the_clock_starts_with_the_first_news(self) -> None:
        counter = Progress("s", "u", total=100)
        assert counter.line(time.monotonic()) == "s: 0/100 u"
        counter.update(10)
        assert line_after(0, counter) == "s: 10/100 u"
        counter.update(10)
        assert line_after(1, counter) == "s: 20/100 u, 10.0/s, 0:08 left"

    def test_counts_minutes_and_hours(self) -> None:
        counter = working("s", "u", total=1_000_000)
        counter.update(100)
        assert line_after(1, counter).endswith(", 2:46:39 left")
        assert line_after(0.1, counter).endswith(", 16:40 left")

    def test_what_an_earlier_run_did_counts_for_the_total_but_not_for_the_rate(self) -> None:
        counter = working("s", "u", total=100, done=60)
        assert line_after(5, counter) == "s: 60/100 u"
        counter.update(20)
        assert line_after(10, counter) == "s: 80/100 u, 2.0/s, 0:10 left"

    def test_after_work_was_lost_they_are_of_what_comes_then(self) -> None:
        counter = working("s", "u", total=100, done=90)
        counter.update(-40)
        assert line_after(0, counter) == "s: 50/100 u"
        counter.update(10)
        assert line_after(10, counter) == "s: 60/100 u, 1.0/s, 0:40 left"

    def test_an_unknown_total_has_no_time_left(self) -> None:
        counter = working("s", "u")
        counter.update(30)
        assert line_after(10, counter) == "s: 30 u, 3.0/s"

    def test_a_known_share_gives_time_left_without_a_total(self) -> None:
        counter = Progress("s", "u")
        counter.update(10, share=0.25)
        assert line_after(0, counter) == "s: 10 u (25%)"
        counter.update(30, share=0.75)
        assert line_after(10, counter) == "s: 40 u (75%), 3.0/s, 0:05 left"

    def test_a_note_stays_until_the_next(self) -> None:
        counter = working("s", "u")
        counter.update(1, "loss 2.5")
        counter.update(1)
        assert line_after(1, counter) == "s: 2 u, 2.0/s  loss 2.5"

    def test_more_than_the_total_leaves_nothing_rather_than_less(self) -> None:
        counter = working("s", "u", total=10)
        counter.update(20)
        assert line_after(1, counter).endswith(", 0:00 left")

    def test_a_log_gets_a_plain_line_now_and_then(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.05)
        # The session's Ray, where it runs, has taken the process's own standard error.
        monkeypatch.setattr(progress, "_user", None)
        with Progress("s", "u", total=100) as counter:
            counter.update()
            assert capsys.readouterr().err == ""
            time.sleep(0.06)
            counter.update()
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("s: 2/100 u, ")
        assert shown.err.endswith("left\n")
        assert "\r" not in shown.err


class TestPrintable:
    @pytest.mark.parametrize(
        "text", ["a photo of a dog.", "[/b] {} $x$", "Straße 日本語\u3000한국어", "می\u200cروم", "👩\u200d🔬"]
    )
    def test_leaves_what_people_write(self, text: str) -> None:
        assert printable(text) == text

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b[2J", r"\x1b[2J"),
            ("\x9b31m", r"\x9b31m"),
            ("a\rb\nc\x00\x7f", r"a\rb\nc\x00\x7f"),
            ("\u202egpj.exe", r"\u202egpj.exe"),
            ("a\u2066\u2028\u2029\u200b\ufeff", r"a\u2066\u2028\u2029\u200b\ufeff"),
            ("\U000e0041", r"\U000e0041"),
            ("caf\udce9", r"caf\udce9"),
        ],
    )
    def test_escapes_what_a_terminal_obeys_or_hides(self, text: str, shown: str) -> None:
        assert printable(text) == shown

    def test_is_what_the_user_is_told(self, said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
        say("train: \x1b[31m\nsharelock: done")
        Progress("extract", "images").update(1, "red\u202e")
        assert said.getvalue().splitlines()[0] == r"train: \x1b[31m\nsharelock: done"
        assert said.getvalue().endswith("extract: 1 images  red\\u202e\n")


class TestChatter:
    def test_goes_to_the_file_while_what_is_said_reaches_the_user(self, tmp_path: Path) -> None:
        done = run(
            """
            with chatter_to(log):
                print("python out"); print("python err", file=sys.stderr)
                os.write(1, b"descriptor out\\n"); os.write(2, b"descriptor err\\n")
                subprocess.run(["echo", "child out"])
                say("to the user")
            """,
            tmp_path / "log",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "to the user\n")
        chatter = {"python out", "python err", "descriptor out", "descriptor err", "child out"}
        assert set((tmp_path / "log").read_text().splitlines()) == chatter

    def test_returns_after_the_block(self, tmp_path: Path) -> None:
        done = run(
            """
            print("before")
            with chatter_to(log):
                print("within")
            print("after"); os.write(1, b""); say("said after"); print("err after", file=sys.stderr)
            """,
            tmp_path / "log",
        )
        assert (done.stdout, done.stderr) == ("before\nafter\n", "said after\nerr after\n")
        assert (tmp_path / "log").read_text() == "within\n"

    def test_is_added_to_what_the_file_holds(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("old\n")
        run("with chatter_to(log): print('new')", tmp_path / "log")
        assert (tmp_path / "log").read_text() == "old\nnew\n"

    def test_an_error_in_the_block_brings_both_streams_back(self, tmp_path: Path) -> None:
        done = run(
            """
            try:
                with chatter_to(log):
                    print("within"); raise KeyError
            except KeyError:
                print("out"); print("err", file=sys.stderr)
            """,
            tmp_path / "log",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")

    def test_an_error_in_the_block_can_be_told_to_the_user(self, tmp_path: Path) -> None:
        done = run(
            """
            try:
                with chatter_to(log):
                    raise KeyError
            except KeyError:
                say("it failed")
            """,
            tmp_path / "log",
        )
        assert (done.returncode, done.stderr) == (0, "it failed\n")

    def test_a_log_that_cannot_be_opened_leaves_the_streams_alone(self, tmp_path: Path) -> None:
        done = run(
            """
            try:
                with chatter_to(log / "no" / "such"):
                    pass
            except OSError:
                say("said"); print("out")
            """,
            tmp_path,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "said\n")
