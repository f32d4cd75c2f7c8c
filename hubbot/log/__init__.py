"""What a person sees while hubbot works: groups on GitHub, rules and bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hubbot.environment import in_github_actions
from hubbot.log import github
from hubbot.log.screen import aside, copied, screen
from hubbot.log.visible import visible

__all__ = ["add_mask", "aside", "error", "notice", "progress", "say", "stage", "warning"]

_QUIET = 30.0  # seconds between two plain lines of one progress


def say(text: str) -> None:
    """One line for the reader, on standard error: standard output belongs to `--json`."""
    screen().write(f"{visible(text)}\n")
    screen().flush()


def add_mask(secret: str | None) -> None:
    """Have the runner hide a secret in the log. The runner masks line by line, so each line of it is given."""
    if in_github_actions():
        for line in (secret or "").splitlines():
            if line.strip():
                github.command("add-mask", line.strip())


@contextmanager
def stage(name: str) -> Iterator[None]:
    """One stage of a job, closed by how long it took; a group on GitHub, a rule on a terminal."""
    started = time.monotonic()
    if in_github_actions():
        github.command("group", name)
    elif screen().isatty():
        Console(file=screen()).rule(f"[bold]{name}", align="left")
    else:
        say(f"== {name}")
    try:
        yield
    finally:
        say(f"{name}: {duration(time.monotonic() - started)}")
        if in_github_actions():
            github.command("endgroup")


@contextmanager
def progress(what: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show work that has `total` steps; call the function it gives with how many more are done."""
    if screen().isatty() and not in_github_actions():
        counted = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        columns = (*counted, TimeElapsedColumn(), TimeRemainingColumn())
        with copied() as terminal, Progress(*columns, console=Console(file=terminal)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda steps=1: bar.advance(task, steps)  # type: ignore[misc]
        return
    yield _Lines(what, total, unit).advance


class _Lines:
    """Progress for a log: a line when enough time has passed since the last one, and one at the end."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.started = 0, time.monotonic()
        self.said = self.started

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        now = time.monotonic()
        if self.done < self.total and now - self.said < _QUIET:
            return
        self.said = now
        left = (now - self.started) / max(self.done, 1) * (self.total - self.done)
        rest = f", about {duration(left)} left" if self.done < self.total else ""
        say(f"{self.what}: {self.done}/{self.total} {self.unit}".rstrip() + rest)


def notice(message: str, *, title: str = "hubbot") -> None:
    _annotate("notice", message, title)


def warning(message: str, *, title: str = "hubbot") -> None:
    _annotate("warning", message, title)


def error(message: str, *, title: str = "hubbot") -> None:
    _annotate("error", message, title)


def _annotate(level: str, message: str, title: str) -> None:
    if in_github_actions():
        github.command(level, message, title=title)
    else:
        say(f"{level}: {message}")


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
