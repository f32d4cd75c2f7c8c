"""The bot's commands: parse, call, exit code."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hubbot import __version__, log
from hubbot.bot.daemon import Bot, Execute, keep_watching
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.jobs import retry as retry_job
from hubbot.bot.ledger.mirror import forget_yank
from hubbot.bot.ledger.report import status as status_of
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.matrix import handing_over
from hubbot.bot.request.cli import app as requests
from hubbot.bot.stop import Stopped, on_signals
from hubbot.bot.watch_view import status_tables, verdict_table
from hubbot.environment import PROCESS, github_token
from hubbot.errors import BadSettings, HubFailed
from hubbot.hub.client import hub_of_environment
from hubbot.hub.read.reader import Reader
from hubbot.settings import Settings, load_settings

app = typer.Typer(help="The bot: watch the Hub, receive its webhooks, work off the queue.")
webhooks = typer.Typer(no_args_is_help=True, help="Register with the Hub's webhooks.")
app.add_typer(webhooks, name="webhook")
app.add_typer(requests, name="request")

Config = Annotated[Path | None, typer.Option(help="hubbot.toml; flags win over it", show_default="./hubbot.toml")]
State = Annotated[Path | None, typer.Option(help="the state file", show_default="hubbot.sqlite")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def watch(
    config: Config = None,
    state: State = None,
    once: Annotated[bool, typer.Option("--once", help="one round, then end (the default)")] = False,
    every: Annotated[str | None, typer.Option(help="round after round, as 30m, 2h or 90s; SIGTERM ends it")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    do: Annotated[bool, typer.Option("--run", help="work off the queue here")] = False,
    executor: Annotated[str, typer.Option(help="where --run runs: local or ray")] = "local",
    address: Annotated[str | None, typer.Option(help="address of the Ray cluster", show_default="a local one")] = None,
    everything: Annotated[bool, typer.Option("--all", help="show what is left alone too")] = False,
    as_json: Json = False,
    as_matrix: Annotated[bool, typer.Option("--matrix", help="hand the queue over as GitHub's job matrix")] = False,
) -> None:
    """Find what is new on the Hub, say what to do about it, queue it, and with --run do it.

    Sources, filters and policy are the [watch] section of hubbot.toml. Every verdict names its rule.
    """
    if every and (once or dry_run or as_json or as_matrix):
        raise BadSettings(
            "--every goes on for ever; leave out --once, --dry-run, --json and --matrix, or leave out --every."
        )
    if as_matrix and (do or dry_run or as_json):
        raise BadSettings("--matrix hands the queue over to GitHub; leave out --run, --dry-run and --json.")
    pause = seconds(every) if every else None
    settings = _settings(config, state)
    try:
        with open_ledger(settings.watch.state) as ledger, on_signals() as stop:
            away = as_matrix or executor == "ray"
            bot = Bot(reader=_reader(), ledger=ledger, settings=settings, version=__version__, elsewhere=away)
            with _executing(settings, executor if do else None, address) as execute:
                if pause is not None:
                    keep_watching(bot, pause, execute, stop)
                    return
                with stop.breakable():
                    failures = bot.look(finish=not dry_run).failures
                    failures |= {} if dry_run else bot.answer_requests()
                if as_matrix:
                    _hand_over(bot)
                else:
                    _show(bot.judge() if dry_run else bot.queue(), as_json=as_json, everything=everything)
                tally = execute(ledger, stop, lambda: True) if execute and not dry_run else None
    except Stopped:
        raise typer.Exit(130) from None
    for name, why in failures.items():
        log.warning(f"{name}: {why}")
    if failures and not as_matrix:  # the models of the others are on their way: the matrix is to be used
        raise HubFailed(f"{len(failures)} of the watched sources could not be read; the others were.")
    if tally and tally.failed:
        raise typer.Exit(1)


@app.command()
def serve(
    config: Config = None,
    state: State = None,
    host: Annotated[str | None, typer.Option(help="address to listen on", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on", show_default="8080")] = None,
    deliver: Annotated[str | None, typer.Option(help="queue, github or job", show_default="queue")] = None,
    github_repo: Annotated[str | None, typer.Option(help="owner/name to dispatch to")] = None,
    github_url: Annotated[str | None, typer.Option(help="root of the GitHub API")] = None,
) -> None:
    """Receive the Hub's webhooks. The secret comes from HUBBOT_WEBHOOK_SECRET; without one nothing starts."""
    from hubbot.bot.route import route_of
    from hubbot.bot.webhook import required_secret

    secret = required_secret(PROCESS)
    flags = {"host": host, "port": port, "deliver": deliver, "github_repo": github_repo, "github_url": github_url}
    config = _config(config)
    settings = _settings(config, state, {f"serve.{name}": value for name, value in flags.items()})
    from hubbot.bot.webhook_server import serve as listen

    hub, github = hub_of_environment(), github_token()
    secrets = [value for value in (secret, hub.token, github) if value]
    route = route_of(settings, Reader(hub), config=config, github_token=github, secrets=secrets)
    listen(settings.watch.state, settings.serve, secret, route=route)


@app.command()
def status(
    config: Config = None,
    state: State = None,
    history: Annotated[int, typer.Option(help="ended attempts to show")] = 20,
    as_json: Json = False,
) -> None:
    """Show the queue, what runs, what failed and why, and the history."""
    with open_ledger(_settings(config, state).watch.state) as ledger:
        found = status_of(ledger, history=history)
    if as_json:
        _print_json(found)
        return
    for table in status_tables(found):
        Console().print(table)


@app.command()
def retry(model: Annotated[str, typer.Argument(help="Hub id")], config: Config = None, state: State = None) -> None:
    """Try a failed, parked, finished or yanked model again at the next `watch --run`."""
    with open_ledger(_settings(config, state).watch.state) as ledger:
        forgiven = forget_yank(ledger, model)
        if not retry_job(ledger, model) and not forgiven:
            msg = f"The state file has no job of {model} that could be tried again. `hubbot status` shows its jobs."
            raise BadSettings(msg)
    sys.stdout.write(f"{model}: queued\n")


@app.command(name="yank")
def yank_model(
    model: Annotated[str, typer.Argument(help="Hub id of the source")],
    reason: Annotated[str, typer.Option(help="why; stands on the published cards")],
    new_version: Annotated[
        str | None, typer.Option(help="repo that readers are sent to", show_default="the source")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="remove the model files too")] = False,
    namespace: Annotated[str | None, typer.Option(help="owner of the published repos")] = None,
    config: Config = None,
    state: State = None,
) -> None:
    """Take back what was published from a model: a banner on the cards, no new release, and with --delete no files."""
    from hubbot.bot.local import clear_settled
    from hubbot.bot.yank import yank

    settings = _settings(config, state, {"publish.namespace": namespace})
    with open_ledger(settings.watch.state) as ledger:
        done = yank(_reader(), ledger, settings, model, reason=reason, new_version=new_version or model, delete=delete)
        clear_settled(ledger, settings)
    for repo, told in done.items():
        sys.stdout.write(f"{repo}: {told}\n")
    sys.stdout.write(f"{model}: not made any more, until `hubbot retry {model}`\n")


@app.command()
def submit(
    arguments: Annotated[
        list[str], typer.Argument(help="MODEL and options of `hubbot run`; with --schedule of `hubbot watch`")
    ],
    flavor: Annotated[str | None, typer.Option(help="hardware of the Job", show_default="a100-large")] = None,
    image: Annotated[str | None, typer.Option(help="container image")] = None,
    timeout: Annotated[str | None, typer.Option(help="time limit, as 90m or 6h", show_default="6h")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="who pays for the Job")] = None,
    schedule: Annotated[str | None, typer.Option(help="a cron line, @hourly or @daily: a scheduled Job")] = None,
    config: Config = None,
) -> None:
    """Run a model in the published container as a Hugging Face Job, with this hubbot.toml; the token is a secret."""
    from hubbot.bot.route import command_with_config
    from hubbot.hub.hosted_jobs import start_hosted_job

    flags = {"flavor": flavor, "image": image, "timeout": timeout, "namespace": owner}
    config = _config(config)
    settings = _settings(config, None, {f"job.{name}": value for name, value in flags.items()})
    hub = hub_of_environment()
    watches = arguments[:1] == ["watch"]
    command, environment = command_with_config(["hubbot", *(() if watches else ("run",)), *arguments], config)
    job = start_hosted_job(
        command,
        settings.job,
        hub,
        secrets={"HF_TOKEN": hub.token or ""},
        environment=environment,
        schedule=schedule,
    )
    sys.stdout.write(f"{job}\n")


@webhooks.command("create")
def webhook_create(
    url: Annotated[str | None, typer.Option(help="where `hubbot serve` is reached, ending in /webhook")] = None,
    job: Annotated[str | None, typer.Option(help="id of a Job to start anew instead")] = None,
    config: Config = None,
) -> None:
    """Register a webhook for everything that [watch] names: models and authors."""
    from hubbot.bot.webhook import required_secret
    from hubbot.hub.webhooks import create, watched_items

    if (url is None) == (job is None):
        raise BadSettings(
            "Give the webhook either --url, where `hubbot serve` is reached, or --job, a Job to start anew."
        )
    secret = required_secret(PROCESS)
    hub = hub_of_environment()
    items = watched_items(Reader(hub), _settings(config, None).watch)
    made = create(items, hub, url=url, job=job, secret=secret)
    sys.stdout.write(f"{made.id}\n")


@webhooks.command("list")
def webhook_list(as_json: Json = False) -> None:
    """Show the token owner's webhooks, without their secrets."""
    from hubbot.hub.webhooks import listed

    found = listed(hub_of_environment())
    if as_json:
        _print_json([asdict(hook) for hook in found])
        return
    for hook in found:
        off = " (disabled)" if hook.disabled else ""
        sys.stdout.write(f"{hook.id} {hook.url or hook.job}{off}: {', '.join(hook.watched)}\n")


@webhooks.command("delete")
def webhook_delete(webhook: Annotated[str, typer.Argument(help="id, as `webhook list` shows it")]) -> None:
    """Remove a webhook."""
    from hubbot.hub.webhooks import delete

    delete(webhook, hub_of_environment())


def seconds(text: str) -> float:
    """ "90s", "30m", "2h", "1d" -> seconds. Raises BadSettings."""
    match = re.fullmatch(r"([1-9][0-9]*)([smhd])", text.strip())
    if not match:
        raise BadSettings(f"{text!r} is no time; write it as 90s, 30m, 2h or 1d.")
    return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[match[2]]


@contextmanager
def _executing(settings: Settings, executor: str | None, address: str | None) -> Iterator[Execute | None]:
    """What works off the queue, if anything; its worker lives as long as the block."""
    if executor is None:
        yield None
        return
    if executor not in ("local", "ray"):
        raise BadSettings(f"{executor!r} is no executor; --executor knows local and ray.")
    from hubbot.bot.local import run_job, work_here
    from hubbot.bot.worker import Terms

    hub = hub_of_environment()
    with worker(settings.watch.state) as name:
        terms = Terms(
            worker=name,
            commits_per_hour=settings.watch.commits_per_hour,
            secrets=[hub.token] if hub.token else [],
            token_works=Reader(hub).token_works,
        )
        if executor == "local":
            run = partial(run_job, settings=settings, hub=hub)
            yield partial(work_here, run=run, terms=terms, settings=settings)
            return
        from hubbot.bot.cluster import cluster

        with cluster(settings, hub, address=address) as work_on_cluster:
            yield partial(work_on_cluster, terms=terms)


def _hand_over(bot: Bot) -> None:
    """The matrix as the one line of standard output; the table goes to standard error."""
    table, _ = verdict_table(bot.queue(), everything=False)
    Console(stderr=True).print(table)
    with worker(bot.ledger.path) as name, handing_over(bot.ledger, name) as matrix:
        sys.stdout.write(json.dumps(matrix) + "\n")
        sys.stdout.flush()


def _show(verdicts: Iterator[Any], *, as_json: bool, everything: bool) -> None:
    if as_json:
        _print_json([asdict(verdict) for verdict in verdicts])
        return
    table, rules = verdict_table(verdicts, everything=everything)
    Console().print(table)
    sys.stdout.write(", ".join(f"{count} {rule}" for rule, count in rules.most_common()) + "\n")


def _config(named: Path | None) -> Path | None:
    default = Path("hubbot.toml")
    return default if named is None and default.exists() else named


def _settings(config: Path | None, state: Path | None, flags: dict[str, Any] | None = None) -> Settings:
    return load_settings(_config(config), {"watch.state": state, **(flags or {})})


def _reader() -> Reader:
    return Reader(hub_of_environment())


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
