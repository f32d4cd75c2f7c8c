"""Users, organisations, tokens, and what a token may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.hub.refusal import Refusal, no_repo
from tests.hub.store import Repo


@dataclass(slots=True)
class User:
    name: str
    orgs: dict[str, str] = field(default_factory=dict)  # organisation -> read, contributor, write, admin


@dataclass(slots=True)
class Token:
    value: str
    user: User
    role: str  # read, write, fineGrained
    permissions: dict[str, tuple[str, ...]] = field(default_factory=dict)  # entity -> permissions, of fineGrained
    uses_left: int | None = None  # None: for ever
    requests: int = 0

    def permits(self, permission: str, repo_id: str) -> bool:
        """permission: repo.content.read, repo.write, discussion.write."""
        if self.role == "write":
            return True
        if self.role == "read":
            return permission == "repo.content.read"
        entities = (repo_id, repo_id.split("/")[0], "*")
        return any(permission in self.permissions.get(entity, ()) for entity in entities)


class Rights:
    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.orgs: set[str] = set()
        self.tokens: dict[str, Token] = {}

    def token_of(self, authorization: str | None) -> Token | None:
        """The token of a request; None: anonymous. A wrong or revoked one is refused."""
        if authorization is None:
            return None
        token = self.tokens.get(authorization.removeprefix("Bearer "))
        if token is None or token.uses_left == 0:
            raise Refusal(401, "Invalid credentials in Authorization header")
        token.requests += 1
        if token.uses_left is not None:
            token.uses_left -= 1
        return token

    def may_read(self, token: Token | None, repo: Repo) -> bool:
        if not repo.private:
            return True
        return (
            token is not None
            and self._belongs(token.user, repo.namespace)
            and token.permits("repo.content.read", repo.id)
        )

    def may_write(self, token: Token | None, namespace: str, repo_id: str | None = None) -> bool:
        if token is None:
            return False
        role = "admin" if token.user.name == namespace else token.user.orgs.get(namespace, "none")
        return role in ("admin", "write", "contributor") and token.permits("repo.write", repo_id or f"{namespace}/")

    def need_read(self, token: Token | None, repo: Repo | None) -> Repo:
        if repo is None or not self.may_read(token, repo):
            raise no_repo(anonymous=token is None)
        if repo.disabled:
            raise Refusal(403, "Access to this resource is disabled.")
        return repo

    def need_write(self, token: Token | None, repo: Repo, *, hint: str = "") -> None:
        if token is None:
            raise Refusal(401, "Invalid username or password.")
        if not self.may_write(token, repo.namespace, repo.id):
            raise Refusal(403, f"Forbidden: you don't have the rights to write to {repo.id}.{hint}")

    def need_user(self, token: Token | None) -> Token:
        if token is None:
            raise Refusal(401, "Invalid username or password.")
        return token

    def need_discuss(self, token: Token | None, repo: Repo) -> Token:
        token = self.need_user(token)
        if not (token.permits("discussion.write", repo.id) or token.permits("repo.write", repo.id)):
            raise Refusal(403, "Forbidden: this token may not open discussions or pull requests.")
        return token

    def need_files(self, token: Token | None, repo: Repo) -> None:
        """Reading files of a gated repo needs the owner's consent."""
        if not repo.gated:
            return
        where = f"Visit {{endpoint}}/{repo.id} to ask for access."
        if token is None:
            raise Refusal(
                401,
                f"Access to {repo.kind} {repo.id} is restricted. You must have access to it and be authenticated to access it. Please log in.",
                code="GatedRepo",
            )
        allowed = self._belongs(token.user, repo.namespace) or repo.access.get(token.user.name) == "accepted"
        if not allowed:
            raise Refusal(
                403,
                f"Access to {repo.kind} {repo.id} is restricted and you are not in the authorized list. {where}",
                code="GatedRepo",
            )

    def _belongs(self, user: User, namespace: str) -> bool:
        return user.name == namespace or namespace in user.orgs

    def whoami(self, token: Token) -> dict[str, Any]:
        access: dict[str, Any] = {"displayName": "test", "role": token.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        if token.role == "fineGrained":
            access["fineGrained"] = {
                "canReadGatedRepos": True,
                "global": [],
                "scoped": [
                    {"entity": self._entity(name), "permissions": list(permissions)}
                    for name, permissions in token.permissions.items()
                ],
            }
        return {
            "type": "user",
            "id": f"id-{token.user.name}",
            "name": token.user.name,
            "fullname": token.user.name.title(),
            "email": f"{token.user.name}@example.org",
            "emailVerified": True,
            "canPay": False,
            "periodEnd": None,
            "isPro": False,
            "avatarUrl": "",
            "orgs": [
                {"type": "org", "id": f"id-{name}", "name": name, "fullname": name.title(), "roleInOrg": role}
                for name, role in token.user.orgs.items()
            ],
            "auth": {"type": "access_token", "accessToken": access},
        }

    def _entity(self, name: str) -> dict[str, str]:
        kind = "model" if "/" in name else "org" if name in self.orgs else "user"
        return {"_id": f"id-{name}", "type": kind, "name": name}
