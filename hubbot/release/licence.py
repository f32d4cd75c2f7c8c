"""Whether a licence lets anybody publish a quantized copy, and what it asks for in return.

The ids are the Hub's (https://huggingface.co/docs/hub/repositories-licenses). This is a reading of the
licences' main terms for a program to act on, not legal advice.
"""

from __future__ import annotations

from dataclasses import dataclass

from hubbot.errors import LicenceForbids

__all__ = ["LicenceVerdict", "judge_licence", "require_licence"]

_NO_DERIVATIVES = frozenset("cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0".split())
_NON_COMMERCIAL = ("cc-by-nc", "fair-noncommercial")

# Licences of model makers with duties beyond naming the author: beginning of the id -> what a copy must carry.
_DUTIES = {
    "llama": 'Built with Llama. A copy of the Llama licence and its NOTICE belong to every copy, and the name begins with "Llama".',
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use; its use restrictions bind every copy.",
    "openrail": "The use restrictions of the OpenRAIL licence bind every copy.",
    "creativeml-openrail": "The use restrictions of the OpenRAIL licence bind every copy.",
    "bigscience-": "The use restrictions of the RAIL licence bind every copy.",
    "bigcode-openrail": "The use restrictions of the OpenRAIL licence bind every copy.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceVerdict:
    """What the licence means for a release."""

    license: str | None
    allowed: bool  # a quantized copy may be published
    reason: str  # one sentence
    duty: str | None = None  # what a copy has to say beyond naming licence and authors
    non_commercial: bool = False


def judge_licence(license: str | None, name: str | None = None, link: str | None = None) -> LicenceVerdict:  # noqa: A002
    """The verdict for a card's license, license_name and license_link."""
    if license in (None, "", "unknown") or (license == "other" and not (name or link)):
        reason = "The model names no licence, so nobody is allowed to publish a copy of it."
        return LicenceVerdict(license=license, allowed=False, reason=reason)
    parts = [part.strip() for part in name.split(",")] if license == "other" and name else [license]
    if forbidden := [part for part in parts if part in _NO_DERIVATIVES]:
        reason = f"The licence {forbidden[0]} forbids publishing derivatives, and a quantized model is one."
        return LicenceVerdict(license=license, allowed=False, reason=reason)
    shown = str(name if license == "other" and name else license)
    duty = next((text for start, text in _DUTIES.items() if shown.lower().startswith(start)), None)
    return LicenceVerdict(
        license=license,
        allowed=True,
        reason=f"The licence {shown} allows publishing a quantized copy.",
        duty=duty,
        non_commercial=any(part.startswith(_NON_COMMERCIAL) for part in parts if part),
    )


def require_licence(verdict: LicenceVerdict, *, allow_unlicensed: bool) -> None:
    """Raise LicenceForbids unless publishing is allowed or the user takes it on himself."""
    if not verdict.allowed and not allow_unlicensed:
        msg = f"{verdict.reason} Ask the author, or set licence.allow_unlicensed (--allow-unlicensed) where you have the right by other means."
        raise LicenceForbids(msg)
