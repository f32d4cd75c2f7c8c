"""Sections of hubbot.toml that the bot reads: what to watch, what to leave alone, how to receive and deliver events."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field

from hubbot.domain import HUB_ID
from hubbot.settings.sections import Count, Section

GateState = Literal["allow", "skip", "only"]
OnUpdate = Literal["replace", "revision", "ignore"]


class SearchSettings(Section):
    """One search of the Hub; every key that is given must match."""

    text: str | None = Field(None, description="words in the model's name")
    tag: tuple[str, ...] = Field((), description="tags, all of which a model must have")
    library: str | None = Field(None, description="library, such as transformers")
    pipeline: str | None = Field(None, description="task, such as text-generation")
    trending: bool = Field(False, description="take the most trending instead of the last modified")
    created_since: date | None = Field(None, description="only models created on or after this day")
    limit: int = Field(100, ge=1, le=10_000, description="how many models at most")


class FilterSettings(Section):
    """Which of the models found are wanted."""

    licences: tuple[str, ...] = Field((), description="licences that are wanted; empty: every one that lets us publish")
    min_parameters: Count | None = Field(None, description="least number of weights, as 500M or 1.5B")
    max_parameters: Count | None = Field(None, description="greatest number of weights, as 70B")
    min_downloads: int = Field(0, ge=0, description="least downloads of the last month")
    min_likes: int = Field(0, ge=0, description="least likes")
    gated: GateState = Field("allow", description="models behind an access request: `allow`, `skip`, or `only` these")
    include: tuple[str, ...] = Field((), description="patterns such as `org/*-Instruct`; empty: every name")
    exclude: tuple[str, ...] = Field((), description="patterns of names that are not wanted")


class WatchSettings(Section):
    """Where `hubbot watch` looks and what it does about what it finds."""

    models: tuple[str, ...] = Field((), description="models, as org/name")
    authors: tuple[str, ...] = Field((), description="users and organisations")
    collections: tuple[str, ...] = Field((), description="collections, as owner/title-id")
    searches: tuple[SearchSettings, ...] = Field((), description="searches, one [[watch.searches]] table each")
    filters: FilterSettings = FilterSettings()
    requests: str | None = Field(
        None,
        pattern=f"^{HUB_ID.pattern}$",
        description="model repo, as org/requests, whose discussions ask for models; the bot answers there",
    )
    approvers: tuple[str, ...] = Field(
        (), description="accounts that may approve requests, besides the members whom the Hub shows with write access"
    )
    ignore: tuple[str, ...] = Field((), description="models or patterns that are never touched")
    on_update: OnUpdate = Field(
        "replace", description="changed weights: `replace` the release, publish it as a `revision`, or `ignore` them"
    )
    updates: Literal["main", "tags"] = Field(
        "main", description="which changes count: every one on main, or `tags` only"
    )
    on_upgrade: Literal["redo", "ignore"] = Field(
        "redo", description="what a new version of hubbot or changed settings do to releases that are published"
    )
    state: Path = Field(Path("hubbot.sqlite"), description="the state file; one per machine")
    refresh_hours: int = Field(24, ge=1, description="read every source whole again after this many hours")
    commits_per_hour: int = Field(100, ge=1, description="start no job once this many commits were made in an hour")


class JobSettings(Section):
    """A Hugging Face Job that runs the published container."""

    image: str | None = Field(None, description="container image with hubbot in it")
    flavor: str = Field("a100-large", description="hardware of the Job")
    timeout: str = Field("6h", description="time limit of the Job, as 90m or 6h")
    namespace: str | None = Field(None, description="who pays; default: the token's owner")


class ServeSettings(Section):
    """How `hubbot serve` takes the Hub's webhooks and what it does with them."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0: any free one")
    deliver: Literal["queue", "github", "job"] = Field(
        "queue", description="hand events to the local queue, a GitHub repository_dispatch, or a Hugging Face Job"
    )
    quiet: int = Field(
        300, ge=0, description="seconds without another event of a model before it is handed on to GitHub or a Job"
    )
    max_body: int = Field(1_000_000, ge=1024, description="largest request body in bytes")
    github_url: str = Field("https://api.github.com", description="root of the GitHub API")
    github_repo: str | None = Field(None, description="owner/name of the repository to dispatch to")
    github_event: str = Field("hubbot", description="event_type of the repository_dispatch")
