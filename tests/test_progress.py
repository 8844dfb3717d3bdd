"""A bar in a terminal, whole lines in a log."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from tqdm import std
from tqdm.contrib.logging import logging_redirect_tqdm

from tinybert_hf import progress
from tinybert_hf.progress import Lines, progress_bar


class Clock:
    """The time that tqdm reads."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(std, "time", clock)
    yield clock


class Log:
    """Standard error, which is no terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.text = capsys, ""

    def getvalue(self) -> str:
        self.text += self.capsys.readouterr().err
        return self.text


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    return Log(capsys)


def bar(clock: Clock) -> std.tqdm:
    bar = progress_bar(total=100, unit="step", desc="Training (retrieval)", initial=4)
    bar._time = clock
    return bar


def advance(clock: Clock, bar: std.tqdm, seconds: float) -> None:
    clock.now += seconds
    bar.update()


def test_a_line_is_written_every_half_minute(clock: Clock, log: Log) -> None:
    with bar(clock) as steps:
        for _ in range(29):
            advance(clock, steps, 1)
        assert log.getvalue() == ""
        for _ in range(40):
            advance(clock, steps, 1)
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Training (retrieval): 34 of 100 steps, 00:30 gone, 01:06 left")
    assert lines[1].startswith("Training (retrieval): 64 of 100 steps, 01:00 gone, 00:36 left")
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()


def test_what_was_measured_last_stands_at_the_end_of_the_line(clock: Clock, log: Log) -> None:
    with bar(clock) as steps:
        steps.set_postfix_str("loss 1.234", refresh=False)
        advance(clock, steps, 31)
    assert log.getvalue().rstrip("\n").endswith("left, loss 1.234")


def test_a_short_run_writes_nothing(clock: Clock, log: Log) -> None:
    with bar(clock) as steps:
        for _ in range(90):
            advance(clock, steps, 0.1)
    assert log.getvalue() == ""


def test_lines_of_the_log_stay_whole(clock: Clock, log: Log) -> None:
    """tqdm clears and redraws its bars around each of them."""
    logger = logging.getLogger("a run")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm([logger]), bar(clock) as steps:
            advance(clock, steps, 1)
            logger.info("step 5: nDCG@10 0.5")
            advance(clock, steps, 30)
            logger.info("step 6: nDCG@10 0.6")
            logger.info("step 6: saved")
    finally:
        logger.removeHandler(handler)
    assert [line.partition(",")[0] for line in log.getvalue().split("\n")] == [
        "step 5: nDCG@10 0.5",
        "Training (retrieval): 6 of 100 steps",
        "step 6: nDCG@10 0.6",
        "step 6: saved",
        "",
    ]


def test_a_bar_that_is_switched_off_is_silent(clock: Clock, log: Log) -> None:
    with progress_bar(total=3, unit="step", disable=True) as steps:
        clock.now += 100
        steps.update()
        steps.set_postfix_str("loss 1", refresh=False)
    assert log.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_moving_bar_and_a_log_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(total=3, unit="step") as lines:
        assert isinstance(lines.fp._wrapped, Lines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(total=3, unit="step") as moving:
        assert not isinstance(moving.fp._wrapped, Lines)
    assert "\r" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_notebook_has_its_own_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotebookBar(std.tqdm):
        pass

    NotebookBar.__module__ = "tqdm.notebook"
    monkeypatch.setattr(progress, "tqdm", NotebookBar)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(total=3) as shown:
        assert isinstance(shown, NotebookBar)
