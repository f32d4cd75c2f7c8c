"""Everything that hubbot refuses or fails at, with the exit code of each class.

    HubbotError                 1
    ├── BadSettings             2   an option, a key of hubbot.toml, an input of the action
    │   └── UnknownVariant      2   a variant name outside the grammar
    ├── SourceRefused           3   the model itself: missing, private, gated, pickle only, corrupt, hostile
    │   ├── SourceNotFound      3
    │   ├── UnsafeSource        3   breaks a rule for untrusted input
    │   └── LicenceForbids      3
    ├── Unsupported             4   architecture, tokenizer or shape that a step does not know
    │   └── UnsupportedShape    4
    ├── BudgetExceeded          5   disk, RAM or VRAM would not suffice
    ├── BadText                 6   calibration or evaluation text: empty, too short, overlapping
    ├── VariantsRefused         7   at least one variant that was asked for was refused by the gate, or failed
    ├── HubFailed               8   the Hub could not be read or written
    │   ├── TokenRefused        8   the Hub does not accept the token, or no longer
    │   └── PublishConflict     8   somebody else changed the target meanwhile
    ├── ToolMissing             9   llama.cpp, bitsandbytes, … absent or broken
    ├── BadRecord              10   hubbot.json: absent, broken, hostile or of another schema
    └── LedgerFailed           11   the state file could not be read or written

A message says what was found, what was needed and what to do next, in one paragraph.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadRecord",
    "BadSettings",
    "BadText",
    "BudgetExceeded",
    "HubFailed",
    "HubbotError",
    "LedgerFailed",
    "LicenceForbids",
    "PublishConflict",
    "SourceNotFound",
    "SourceRefused",
    "TokenRefused",
    "ToolMissing",
    "UnknownVariant",
    "UnsafeSource",
    "Unsupported",
    "UnsupportedShape",
    "VariantsRefused",
]


class HubbotError(Exception):
    """Base of every error that hubbot raises on purpose."""

    exit_code: ClassVar[int] = 1

    @staticmethod
    def named(kind: str, message: str) -> HubbotError:
        """The error of a class of this tree by its name, as another process told it; a HubbotError for any other name."""
        known: type[HubbotError] = globals()[kind] if kind in __all__ else HubbotError
        return known(message)


class BadSettings(HubbotError):
    exit_code = 2


class UnknownVariant(BadSettings):
    pass


class SourceRefused(HubbotError):
    exit_code = 3


class SourceNotFound(SourceRefused):
    pass


class UnsafeSource(SourceRefused):
    pass


class LicenceForbids(SourceRefused):
    pass


class Unsupported(HubbotError):
    exit_code = 4


class UnsupportedShape(Unsupported):
    pass


class BudgetExceeded(HubbotError):
    exit_code = 5


class BadText(HubbotError):
    exit_code = 6


class VariantsRefused(HubbotError):
    exit_code = 7


class HubFailed(HubbotError):
    exit_code = 8


class TokenRefused(HubFailed):
    pass


class PublishConflict(HubFailed):
    pass


class ToolMissing(HubbotError):
    exit_code = 9


class BadRecord(HubbotError):
    exit_code = 10


class LedgerFailed(HubbotError):
    exit_code = 11
