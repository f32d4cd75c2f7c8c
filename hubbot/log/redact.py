"""Keeps tokens out of whatever is written down or shown."""

from __future__ import annotations

import re

REDACTED = "***"

# Hugging Face (hf_…, api_org_…), GitHub (ghp_…, gho_…, github_pat_…), JSON web tokens, and whatever follows "Bearer".
_TOKEN = re.compile(
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{8,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|(?<=[Bb]earer )[^\s'\",]+"
)

# The query of an address: the Hub's storage is reached by signed ones, which are as good as a token for a while.
_QUERY = re.compile(r"(https?://[^\s'\"<>?]+\?)[^\s'\"<>]+")


def redact(text: str, *secrets: str | None) -> str:
    """The text without anything that looks like a token, without the queries of addresses, and without the given
    secrets, whatever they look like.
    """
    for secret in sorted((s for s in secrets if s), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return _TOKEN.sub(REDACTED, _QUERY.sub(rf"\1{REDACTED}", text))
