"""What a GitHub runner does with a step's log and files: the other side of `hubbot.log.github`.

Follows the runner's own rules: a command is a line whose first visible characters are `::`, or any line with
`##[…]`; after `stop-commands` everything is text until the given word comes back as a command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_COMMAND = re.compile(r"^\s*::(?P<name>[\w-]+|[\w-]+(?= ))(?: (?P<properties>[^:]*))?::(?P<data>.*)$")


def _plain(text: str) -> str:
    return text.replace("%0D", "\r").replace("%0A", "\n").replace("%3A", ":").replace("%2C", ",").replace("%25", "%")


@dataclass
class Seen:
    commands: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)

    def named(self, name: str) -> list[tuple[dict[str, str], str]]:
        return [(properties, data) for found, properties, data in self.commands if found == name]


def read_log(text: str) -> Seen:
    """The commands that a runner would obey in this log."""
    seen, stopped = Seen(), None
    for line in text.split("\n"):
        match = _COMMAND.match(line)
        if stopped is not None:
            if match and match["name"] == stopped:
                stopped = None
            continue
        if "##[" in line:
            seen.commands.append(("legacy", {}, line))
        if not match:
            continue
        pairs = (pair.partition("=") for pair in (match["properties"] or "").split(",") if pair)
        properties = {key.strip(): _plain(value) for key, _, value in pairs}
        data = _plain(match["data"])
        if match["name"] == "stop-commands":
            stopped = data
        elif match["name"] == "add-mask":
            seen.masks.append(data)
        else:
            seen.commands.append((match["name"], properties, data))
    return seen


def read_outputs(file: Path) -> dict[str, str]:
    """GITHUB_OUTPUT as the runner reads it: NAME=VALUE lines and NAME<<DELIMITER blocks."""
    outputs, lines = {}, iter(file.read_bytes().decode().split("\n"))
    for line in lines:
        if not line:
            continue
        heredoc, equals = line.find("<<"), line.find("=")
        if heredoc >= 0 and (equals < 0 or heredoc < equals):
            name, delimiter = line.split("<<", 1)
            value = []
            for part in lines:
                if part == delimiter:
                    break
                value.append(part)
            else:
                raise ValueError(f"Matching delimiter not found '{delimiter}'")
            outputs[name] = "\n".join(value)
        elif equals >= 0:
            name, value_ = line.split("=", 1)
            outputs[name] = value_
        else:
            raise ValueError(f"Invalid format '{line}'")
    return outputs
