"""Where models go that webhooks told of, by [serve]; and a Job that finds this machine's hubbot.toml."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hubbot import __version__, log
from hubbot.bot import round as bot
from hubbot.bot.deliver import Give, Route, github, hosted_job
from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.verdicts import Verdict
from hubbot.errors import BadSettings
from hubbot.hub.hosted_jobs import image_of, start_hosted_job
from hubbot.hub.read.reader import Reader
from hubbot.settings import Settings

_CARRIED = "/tmp/hubbot.toml"  # noqa: S108 -- in the Job's own container
_UNPACK = f'printf %s "$HUBBOT_TOML" > {_CARRIED} && exec "$@"'


def route_of(
    settings: Settings, reader: Reader, *, config: Path | None, github_token: str | None, secrets: Sequence[str]
) -> Route | None:
    """Where events are handed on to; None: they wait in the state file. Raises BadSettings for what is missing."""
    give = _giver(settings, reader, config, github_token)
    if give is None:
        return None
    return Route(
        taker=settings.serve.deliver,
        ask=lambda ledger, model: bot.judge_now(reader, ledger, settings, model, version=__version__),
        give=give,
        remember=partial(_remember, settings=settings),
        tags=settings.watch.updates == "tags",
        quiet=settings.serve.quiet,
        secrets=secrets,
    )


def _giver(settings: Settings, reader: Reader, config: Path | None, github_token: str | None) -> Give | None:
    match settings.serve.deliver:
        case "queue":
            return None
        case "github":
            if not settings.publish.namespace:
                log.warning(
                    "publish.namespace is not set, so that nobody knows what is published: "
                    "every commit of a model is handed on, also of its README alone."
                )
            return github(settings.serve, github_token)
        case "job":
            return _jobs(settings, reader, config)


def _jobs(settings: Settings, reader: Reader, config: Path | None) -> Give:
    if settings.publish.mode == "none" or not settings.publish.namespace:
        msg = (
            "A Job's files are gone when it ends, and hubbot.toml publishes nothing. Set publish.mode to pr or main and "
            "publish.namespace to the owner of the repos, or leave out --deliver job."
        )
        raise BadSettings(msg)
    image_of(settings.job, reader.hub.token)  # said now and not when the first event comes

    def start(command: Sequence[str]) -> str:
        carried, environment = command_with_config(command, config)
        return start_hosted_job(
            carried,
            settings.job,
            reader.hub,
            secrets={"HF_TOKEN": reader.hub.token or ""},
            environment=environment,
        )

    return hosted_job(lambda verdict: ["hubbot", "run", verdict.model, "--revision", verdict.revision], start)


def command_with_config(command: Sequence[str], config: Path | None) -> tuple[list[str], dict[str, str]]:
    """A Job's command that finds this machine's hubbot.toml, and the environment that brings it there.

    The file holds no secret, and the Job's environment can be seen by whoever sees the Job.
    """
    if config is None or "--config" in command:
        return list(command), {}
    return ["sh", "-c", _UNPACK, "sh", *command, "--config", _CARRIED], {"HUBBOT_TOML": config.read_text("utf-8")}


def _remember(ledger: Ledger, verdict: Verdict, *, settings: Settings) -> None:
    jobs.handed_on(ledger, verdict, settings=bot.settings_digest(settings), version=__version__)
