"""`hubbot request`: the two steps of requests.yml, which answer an issue and tell what came of it."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hubbot import __version__
from hubbot.bot.github import API, GitHub
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.request.site import Site
from hubbot.confine.isolate import Call
from hubbot.environment import github_run, github_token, in_github_actions
from hubbot.errors import BadSettings
from hubbot.hub.client import hub_of_environment
from hubbot.hub.read.reader import Reader
from hubbot.log import add_mask
from hubbot.log.github import guarded
from hubbot.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Answer requests for models in the issues of a GitHub repository.")

Number = Annotated[int, typer.Argument(min=1, help="number of the issue")]
Me = Annotated[str, typer.Option("--as", help="login that the comments are from")]
_ME = "github-actions[bot]"  # whom a job's own token writes as


@app.command("answer")
def answer_issue(
    caller: typer.Context,
    number: Number,
    me: Me = _ME,
    config: Annotated[Path | None, typer.Option(help="hubbot.toml", show_default="./hubbot.toml")] = None,
    state: Annotated[
        Path | None, typer.Option(help="the state file of the watch", show_default="hubbot.sqlite")
    ] = None,
) -> None:
    """Answer an issue with the plan, and heed /approve, /retry, /cancel and /variants.

    Prints what is to be made now as one line of JSON, {} for nothing. Reads GITHUB_TOKEN and where the job runs.
    """
    from hubbot.bot.request.answer import Desk
    from hubbot.bot.request.attend import attend
    from hubbot.job import pipeline

    default = Path("hubbot.toml")
    settings = load_settings(default if config is None and default.exists() else config, {"watch.state": state})
    site = _site(me)
    call: Call = caller.obj
    plan = partial(pipeline.plan, call=call, elsewhere=True)
    with guarded() if in_github_actions() else nullcontext(), open_ledger(settings.watch.state) as ledger:
        reader = Reader(hub_of_environment())
        started = attend(number, site, Desk(reader=reader, ledger=ledger, settings=settings, version=__version__, plan=plan))  # fmt: skip
    sys.stdout.write(json.dumps(asdict(started) if started else {}) + "\n")


@app.command()
def tell(
    number: Number,
    result: Annotated[str, typer.Option(help="success, failure, cancelled or skipped")],
    published: Annotated[str, typer.Option(help="JSON list of addresses")] = "",
    pull_requests: Annotated[str, typer.Option(help="JSON list of addresses")] = "",
    me: Me = _ME,
) -> None:
    """Write what the run came to into the comment that answered the issue."""
    from hubbot.bot.request.attend import tell as tell_result

    lists = {
        "published": _addresses("published", published),
        "pull_requests": _addresses("pull-requests", pull_requests),
    }
    tell_result(number, _site(me), result=result, **lists)


def _addresses(name: str, text: str) -> list[str]:
    try:
        found = json.loads(text or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise BadSettings(f"--{name} is no JSON list. Give the output {name} of quantize.yml as it is.")
    return [str(one) for one in found]


def _site(me: str) -> Site:
    token, told = github_token(), github_run()
    if not token or not told["REPOSITORY"] or not told["RUN_ID"].isdigit():
        msg = "hubbot request works in a job of GitHub Actions: it wants GITHUB_TOKEN, and GITHUB_REPOSITORY and GITHUB_RUN_ID, which the runner sets."
        raise BadSettings(msg)
    add_mask(token)
    return Site(
        github=GitHub(repo=told["REPOSITORY"], token=token, url=told["API_URL"] or API),
        server=told["SERVER_URL"] or "https://github.com",
        run=int(told["RUN_ID"]),
        me=me,
    )
