"""Hugging Face Jobs: the published container on the Hub's own machines, once or on a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hubbot.errors import BadSettings
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.settings.watch import JobSettings


def image_of(job: JobSettings, token: str | None) -> str:
    """The container of a Job. Raises BadSettings where none could be started: no image, no token."""
    if not job.image:
        raise BadSettings(
            "job.image names no container. Set it to hubbot's published image, with --image or in hubbot.toml."
        )
    if not token:
        raise BadSettings("A Job needs a token. Set HF_TOKEN to one that may start Jobs.")
    return job.image


def start_hosted_job(
    command: Sequence[str],
    job: JobSettings,
    hub: Hub,
    *,
    secrets: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    schedule: str | None = None,
) -> str:
    """Start a Job, or with `schedule` (a cron line or @hourly …) a scheduled one. Returns its id.

    secrets: name -> value; they travel encrypted and are never part of the Job's visible environment.
    environment: what may be seen. Raises BadSettings without an image or a token, HubFailed, TokenRefused.
    """
    image = image_of(job, hub.token)
    api = hub.api
    with translated_hub_errors("the Job", hub):
        if schedule is None:
            return api.run_job(
                image=image,
                command=list(command),
                secrets=dict(secrets),
                env=dict(environment or {}),
                flavor=job.flavor,
                timeout=job.timeout,
                namespace=job.namespace,
            ).id
        return api.create_scheduled_job(
            image=image,
            command=list(command),
            schedule=schedule,
            concurrency=False,  # a run that takes longer than the pause is not joined by another
            secrets=dict(secrets),
            env=dict(environment or {}),
            flavor=job.flavor,
            timeout=job.timeout,
            namespace=job.namespace,
        ).id
