"""What a person is told while something runs: plain lines where there is no terminal, one bar where there is one."""

import errno
import io
import sys
from pathlib import Path

import pytest

from fedjax_rai import terminal
from fedjax_rai.errors import InputError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(terminal.PlainProgress.__init__, "__defaults__", (made,))
    return made


def rounds(clock: Clock, seconds: list[float], total: int, done: int = 0) -> None:
    with terminal.progress("tiny", total, done, "round") as advance:
        for i, spent in enumerate(seconds):
            clock.now += spent
            advance(f"loss {i}.5")


def test_every_round_is_a_plain_line_with_the_time_left(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    """By hand: after the first, which compiles, rounds of 10 and 14 s; then 12 s each, and 17 of them are 204 s."""
    rounds(clock, [50.0, 10.0, 14.0], total=20)
    assert capsys.readouterr() == (
        "",
        "tiny: round 1/20  loss 0.5  50 s for the whole round, compiling included\n"
        "tiny: round 2/20  loss 1.5  10 s a round  about 3 min left\n"
        "tiny: round 3/20  loss 2.5  12 s a round  about 3 min left\n",
    )


def test_a_round_that_is_told_of_late_has_its_own_seconds(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    """By hand: told of when the next one has ended, at 70, 80 and 80 s, rounds of 50, 20 and 10 s."""
    with terminal.progress("tiny", 4, 0, "round") as advance:
        for waited, own in [(70.0, 50.0), (10.0, 20.0), (0.0, 10.0)]:
            clock.now += waited
            advance(seconds=own)
    assert capsys.readouterr().err.splitlines() == [
        "tiny: round 1/4  50 s for the whole round, compiling included",
        "tiny: round 2/4  20 s a round  about 40 s left",
        "tiny: round 3/4  15 s a round  about 15 s left",
    ]


def test_rounds_that_go_on_count_only_their_own_time(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    rounds(clock, [40.0, 6.0], total=12, done=10)
    assert capsys.readouterr().err.splitlines() == [
        "tiny: round 11/12  loss 0.5  40 s for the whole round, compiling included",
        "tiny: round 12/12  loss 1.5  6.0 s a round",
    ]


def test_a_phase_is_a_line_and_one_a_minute(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    """40 answers a step of 25 s, 400 in all: the line after 75 s has 280 to go, at 25 s for 40: 175 s."""
    with terminal.progress("evaluating", 400, unit="answer") as advance:
        for _ in range(5):
            clock.now += 25.0
            advance(steps=40)
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 400 answers",
        "evaluating: 120/400  about 3 min left",
    ]


@pytest.mark.parametrize("forced", [None, "FORCE_COLOR"])
def test_a_log_holds_neither_colours_nor_carriage_returns(
    forced: str | None, clock: Clock, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv(forced, "1")
    rounds(clock, [1.0, 2.0], total=2)
    terminal.say("[bold]a line[/bold] of " + 40 * "many words ")
    written = capsys.readouterr().err
    assert not {"\r", "\x1b"} & set(written)
    assert len(written.splitlines()) == 3 and "[bold]" in written


def test_lines_are_there_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    class Log(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stderr", Log())
    with terminal.progress("tiny", 2, unit="round") as advance:
        advance("loss 1")
        assert flushed[-1].startswith("tiny: round 1/2")


def test_a_terminal_has_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with terminal.progress("tiny", 3) as advance:
        advance("loss [1]")
        terminal.say("a line")
    assert "1/3" in shown.getvalue() and "loss [1]" in shown.getvalue() and "a line" in shown.getvalue()
    assert "\x1b" in shown.getvalue() and "round 1/3" not in shown.getvalue()


def test_progress_within_progress_is_not_shown(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    with terminal.progress("tiny", 2, unit="round") as advance, terminal.progress("scoring", 9, unit="pair") as inner:
        inner(steps=9)
        advance()
    with terminal.progress("scoring", 9, unit="pair"):
        pass
    first = "tiny: round 1/2  0.0 s for the whole round, compiling included"
    assert capsys.readouterr().err.splitlines() == [first, "scoring: 9 pairs"]


def test_nothing_to_do_shows_nothing(capsys: pytest.CaptureFixture) -> None:
    for total, done in ((0, 0), (5, 5)):
        with terminal.progress("tiny", total, done):
            pass
    with terminal.progress("fitting the guard on 8 pairs", None) as advance:
        advance()
    assert capsys.readouterr().err == "fitting the guard on 8 pairs\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (98.7, "99 s"),
        (110, "2 min"),
        (5969, "99 min"),
        (6000, "1 h 40 min"),
        (7200, "2 h"),
    ],
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_numbers_of_things_are_plain_english() -> None:
    assert [terminal.plural(n, unit) for n, unit in ((1, "batch"), (2, "batch"), (1200, "answer"), (0, "pair"))] == [
        "1 batch",
        "2 batches",
        "1,200 answers",
        "0 pairs",
    ]
    assert [f"{n} {terminal.verb(n, 'was', 'were')}" for n in (0, 1, 2)] == ["0 were", "1 was", "2 were"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a.yaml:1: [bold]"), 2, "a.yaml:1: [bold]\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; to go on: fedjax-rai run 'a b.yaml'\n"),
        (OSError(errno.ENOSPC, "", "x"), 1, "x: No space left on device; to go on: fedjax-rai run 'a b.yaml'\n"),
        (OSError(errno.EIO, ""), 1, "Input/output error; to go on: fedjax-rai run 'a b.yaml'\n"),
        (NotADirectoryError(errno.ENOTDIR, "", "x/y"), 2, "x/y: Not a directory\n"),
        (PermissionError(errno.EACCES, "", Path("x")), 2, "x: Permission denied\n"),
        (FileNotFoundError(errno.ENOENT, "", b"x"), 2, "x: No such file or directory\n"),
        (OSError(errno.ENAMETOOLONG, "", "x"), 2, "x: File name too long\n"),
        (OSError(errno.EROFS, "", "\udcff"), 2, "\\udcff: Read-only file system\n"),
        (OSError(errno.ELOOP, "", "x"), 2, "x: Too many levels of symbolic links\n"),
    ],
)
def test_what_is_not_our_fault_has_no_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/fedjax-rai", "run", "a b.yaml"])
    with pytest.raises(SystemExit) as ended, terminal.answering(resumable=True):
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (code, message)


def test_the_program_is_named_as_it_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name where that finds it; by its path where it does not, as in `.venv/bin/fedjax-rai` unactivated."""
    script = tmp_path / "bin" / "fedjax-rai"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    for path, named in ((script.parent, "fedjax-rai"), (tmp_path, str(script))):
        monkeypatch.setenv("PATH", str(path))
        assert terminal.program() == [named]
    monkeypatch.setattr(sys, "argv", ["/lib/fedjax_rai/__main__.py"])
    assert terminal.program() == ["python", "-m", "fedjax_rai"]
    monkeypatch.setattr(sys, "argv", ["/lib/pytest"])
    assert terminal.program() == ["fedjax-rai"]


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    for error in (ValueError("x"), OSError("no number"), BrokenPipeError(errno.EPIPE, "")):
        with pytest.raises(type(error)), terminal.answering():
            raise error


def test_a_note_between_the_first_steps_and_the_next_is_a_line(capsys):
    """What took no step tells no pace: nothing is divided by it."""
    times = iter([0.0, 700.0, 800.0, 900.0])
    advance = terminal.PlainProgress("fitting", 63, 0, "step", lambda: next(times))
    advance(steps=11)
    advance("loss 0.500", steps=0)
    assert "fitting: 11/63  loss 0.500" in capsys.readouterr().err
