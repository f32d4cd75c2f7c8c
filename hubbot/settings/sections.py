"""What every section of hubbot.toml is made of: strict models, sizes and counts written as people write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_LADDER = ((1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_size(value: object) -> object:
    """ "45GB", "1.5 TiB" or a number of bytes -> bytes; anything else is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([KMGT]?I?)B?\s*", value.upper())
    if not match or match[2] not in _UNITS:
        msg = f"{value!r} is no size; write it as 45GB, 300MB or 1.5TiB"
        raise ValueError(msg)
    return int(float(match[1]) * _UNITS[match[2]])


def format_size(count: float) -> str:
    """Bytes in decimal units, as the Hub counts: 807.7 MB, 4.92 GB."""
    if count < 1_000:
        return f"{count:.0f} B"
    scale, unit = next(each for each in _LADDER if count < each[0] * 999.95 or each[1] == "TB")
    return f"{count / scale:.{2 if scale >= 1e9 else 1}f} {unit}"


def parse_count(value: object) -> object:
    """ "500M", "1.5B" or a number -> a number; anything else is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([KMBT]?)\s*", value.upper())
    if not match:
        msg = f"{value!r} is no number of weights; write it as 500M, 1.5B or 70B"
        raise ValueError(msg)
    return int(float(match[1]) * _COUNTS[match[2]])


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Count = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]
