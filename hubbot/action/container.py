"""The image's entry point: gives root away where it can, then is the action or the command line.

A runner starts a docker action as root in a workspace that belongs to the runner's user. Whoever owns
the working folder has to own what is written there, and needs no more than that: so that user is who
hubbot becomes. `docker run --user`, rootless engines and runners that are root themselves leave nothing
to give away.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from hubbot.environment import PROCESS, in_github_actions


def main() -> None:
    """`hubbot-container [hubbot] [ARGUMENT…]`: without arguments on GitHub, the action."""
    heed_sigterm()
    become_owner_of(Path.cwd())
    arguments = sys.argv[1:]
    if arguments[:1] == ["hubbot"]:  # `docker run IMAGE hubbot run org/name` reads as it does in a shell
        arguments = arguments[1:]
    elif not arguments and in_github_actions():
        from hubbot.action import step as action

        action.main()
    from hubbot import cli

    sys.argv = ["hubbot", *arguments]
    cli.main()


def heed_sigterm() -> None:
    """Let `docker stop` end this process: the first one of a container is deaf to SIGTERM unless it says otherwise."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def become_owner_of(folder: Path) -> None:
    """Change from root to the user and group that own a folder, for good; a home that can be written goes with it."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    if not os.access(PROCESS.get("HOME", "/"), os.W_OK):
        PROCESS["HOME"] = tempfile.mkdtemp(prefix="hubbot-home-")
    PROCESS.setdefault("USER", "hubbot")  # torch asks for a name, and the image has no entry for this user
