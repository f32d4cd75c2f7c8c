"""What the server says no with."""

from __future__ import annotations


class Refusal(Exception):
    """An answer with an error status.

    code: X-Error-Code, which picks the client's exception; message: X-Error-Message and the body.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None, **body
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}
        self.body = body


def no_repo(*, anonymous: bool) -> Refusal:
    # Strangers are not told whether a private repo exists.
    if anonymous:
        return Refusal(401, "Invalid username or password.")
    return Refusal(404, "Repository not found", code="RepoNotFound")


def no_revision(revision: str) -> Refusal:
    return Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def no_entry(path: str, commit: str | None = None, message: str = "Entry not found") -> Refusal:
    headers = {"X-Repo-Commit": commit} if commit else {}
    return Refusal(
        404, message if message != "Entry not found" else f"{message}: {path}", code="EntryNotFound", headers=headers
    )
