"""One way to ask a program in a process of its own: a request on its standard input, the answer on its standard output.

For what may crash, hang or must not share a process with its caller. It is given nothing of the environment but what
`hubbot.confine.environment` lists. What reads strangers' files for a job runs behind walls besides
(`hubbot.confine.isolate`), and so does what it asks.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from hubbot.confine.environment import allowed

__all__ = ["NoAnswer", "ask", "ask_each"]

_KEPT = 65_536  # characters of what a failed process said


class NoAnswer(Exception):
    """The process failed or kept silent; the text says how, in words that follow its name.

    said: its standard error. late: whether it was ended for being too slow. wrote: its standard output until then.
    """

    def __init__(self, text: str, *, said: str = "", late: bool = False, wrote: bytes = b"") -> None:
        super().__init__(text)
        self.said = said
        self.late = late
        self.wrote = wrote


def ask(
    command: Sequence[str], request: bytes = b"", *, seconds: float, environment: Mapping[str, str] | None = None
) -> bytes:
    """What the program writes to its standard output. Raises NoAnswer where it fails or takes longer than so many seconds.

    environment: where it is more or less than `allowed()`.
    """
    try:
        done = subprocess.run(
            command,
            input=request,
            capture_output=True,
            env=allowed() if environment is None else environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"did not answer within {seconds:.0f} s", late=True, wrote=error.stdout or b"") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace")[-_KEPT:].strip()
        raise NoAnswer(
            f"ended with code {done.returncode}: {' '.join(said.split())[-400:]}", said=said, wrote=done.stdout
        )
    return done.stdout


def ask_each(
    command: Sequence[str], requests: Sequence[bytes], *, seconds: float, environment: Mapping[str, str] | None = None
) -> list[bytes | NoAnswer]:
    """The program's line for every request, a line too, all in one process; who comes after its end is asked in a new one.

    seconds: for one request. NoAnswer stands in the place of the request that ended a process.
    """
    answers: list[bytes | NoAnswer] = []
    while rest := requests[len(answers) :]:
        lines = b"".join(request + b"\n" for request in rest)
        try:
            wrote, end = ask(command, lines, seconds=seconds * len(rest), environment=environment), None
        except NoAnswer as error:
            wrote, end = error.wrote, error
        whole = [line for line in wrote.splitlines(keepends=True) if line.endswith(b"\n")]
        answers += whole[: len(rest)]
        if len(whole) < len(rest):
            answers.append(end or NoAnswer("ended without an answer"))
    return answers
