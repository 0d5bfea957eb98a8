# SPDX-License-Identifier: BSD-3-Clause
"""Progress: one line on a terminal, few lines in a file, and always the last state."""

import io

import pytest

from maskattn_kernels.common import progress as module
from maskattn_kernels.common.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_now_and_then_and_the_last(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(seconds=10, stream=stream) as progress:
        for second in range(1, 25):
            clock[0] = second
            progress.show(f"{second} done")
    assert stream.getvalue() == "10 done\n20 done\n24 done\n"


def test_a_terminal_has_one_line_that_ends_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress.show("1 done")
        progress.show("2 done and more")
        progress.note("a note")
        progress.show("3 done")
    assert stream.getvalue() == "\r1 done\033[K\r2 done and \033[K\na note\n\r3 done\033[K\n"


def test_nothing_is_printed_twice_or_without_progress(clock: list[float]) -> None:
    for stream in (io.StringIO(), Terminal()):
        with Progress(stream=stream) as progress:
            progress.note("a note")
            progress.close()
        assert stream.getvalue() == "a note\n"


def test_an_error_comes_after_the_progress() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="wrong"), Progress(stream=stream) as progress:
        progress.show("1 done")
        raise ValueError("wrong")
    assert stream.getvalue() == "1 done\n"


def test_what_is_done_soon_says_nothing(clock: list[float]) -> None:
    for end, expected in ((4, ""), (7, "7 done\n")):
        clock[0] = 0.0
        stream = io.StringIO()
        with Progress(stream=stream, after=5) as progress:
            for second in range(1, end + 1):
                clock[0] = second
                progress.show(f"{second} done")
        assert stream.getvalue() == expected
