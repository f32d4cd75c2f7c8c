"""What a token may do, asked of the Hub before anything depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hubbot.errors import HubFailed, TokenRefused
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.read.shapes import entries, mapping

__all__ = ["Rights", "TokenRights", "account", "token_rights"]

_WRITING_ROLES = ("admin", "write", "contributor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a token may do in one namespace."""

    create_and_write: bool  # publish with mode main
    pull_requests: bool  # publish with mode pr to repos that are there
    why: str  # one sentence, for people

    def missing(self, mode: str) -> tuple[str, ...]:
        """The scopes that publishing with this mode (none, pr, main) needs and the token has not."""
        if mode == "main" and not self.create_and_write:
            return ("repo.write",)
        if mode == "pr" and not self.pull_requests:
            return ("discussion.write",)
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRights:
    user: str
    role: str  # read, write, fineGrained, or what the Hub calls it
    namespaces: Mapping[str, Rights]
    too_much: tuple[str, ...]  # what the token may do and hubbot has no use for


def account(hub: Hub) -> str:
    """The name of the token's account. Raises HubFailed, TokenRefused."""
    with translated_hub_errors("the token's account", hub):
        return str(_whoami(hub)["name"])


def _whoami(hub: Hub) -> dict[str, Any]:
    found = hub.retry(hub.api.whoami)
    if not isinstance(mapping(found).get("name"), str):
        raise HubFailed("The Hub's answer about the token's account names nobody. Run it again later.")
    return found


def token_rights(hub: Hub, namespaces: Iterable[str]) -> TokenRights:
    """What the token may do in each namespace (a user, an organisation, or org/name of one repo).

    Raises TokenRefused for a token that the Hub does not know, HubFailed.
    """
    if not hub.token:
        raise TokenRefused("There is no token. Set HF_TOKEN; reading public models needs none, publishing does.")
    with translated_hub_errors("the token's account", hub):
        found = _whoami(hub)
    user = str(found["name"])
    roles = {str(org.get("name")): str(org.get("roleInOrg")) for org in map(mapping, entries(found.get("orgs")))} | {
        user: "admin"
    }
    access = mapping(mapping(found.get("auth")).get("accessToken"))
    role = str(access.get("role") or "unknown")
    wanted = list(namespaces)
    return TokenRights(
        user=user,
        role=role,
        namespaces={name: _rights(name, role, roles, mapping(access.get("fineGrained"))) for name in wanted},
        too_much=_too_much(role, mapping(access.get("fineGrained")), wanted),
    )


def _rights(name: str, role: str, roles: Mapping[str, str], fine: Mapping[str, Any]) -> Rights:
    owner = name.split("/")[0]
    member = roles.get(owner)
    if role == "read":
        return Rights(create_and_write=False, pull_requests=False, why="The token may only read.")
    if role == "fineGrained":
        granted = _granted(fine, name) | set(map(str, entries(fine.get("global"))))
        write, discuss = "repo.write" in granted, bool({"discussion.write", "repo.write"} & granted)
        why = f"The fine-grained token grants {', '.join(sorted(granted)) or 'nothing'} on {name}."
        return Rights(create_and_write=write, pull_requests=discuss, why=why)
    if member in _WRITING_ROLES:
        return Rights(create_and_write=True, pull_requests=True, why=f"The account has the role {member} in {owner}.")
    why = f"The account has the role {member} in {owner}." if member else f"The account is no member of {owner}."
    return Rights(create_and_write=False, pull_requests=True, why=f"{why} It may open pull requests there.")


def _granted(fine: Mapping[str, Any], name: str) -> set[str]:
    names = {name, name.split("/")[0]}
    return {
        str(permission)
        for scope in map(mapping, entries(fine.get("scoped")))
        if str(mapping(scope.get("entity")).get("name")) in names
        for permission in entries(scope.get("permissions"))
    }


def _too_much(role: str, fine: Mapping[str, Any], wanted: Iterable[str]) -> tuple[str, ...]:
    """Where a stolen token would do harm that hubbot's work does not need."""
    if role == "write":
        return ("write access to everything of its account; a fine-grained token for the target repos is safer",)
    owners = {name.split("/")[0] for name in wanted}
    strangers = {
        str(mapping(scope.get("entity")).get("name"))
        for scope in map(mapping, entries(fine.get("scoped")))
        if "repo.write" in entries(scope.get("permissions"))
    }
    return tuple(sorted(f"write access to {name}" for name in strangers if name.split("/")[0] not in owners))
