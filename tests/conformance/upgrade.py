"""Raises the pins of transformers and llama.cpp to the newest releases: the first step of `make upgrade`.

pip says what is newest, from wherever it is set up to look. What the new releases do is for the conformance table to say.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["PLACES", "Release", "newest", "pinned", "raise_pins"]

ROOT = Path(__file__).parents[2]
# Package -> the places of its version, and of its source release's sha256: file, and what surrounds it there.
PLACES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "transformers": (("pyproject.toml", r'"transformers==({version})"'), ("requirements.in", r"^transformers==({version})$")),
    "llama-cpp-python": (
        ("hubbot/llamacpp.py", r'^PIN = "({version})"'),
        ("hubbot/setup.py", r'^SHA256 = "({sha256})"'),
        ("docs/dependencies.md", r"source release of llama-cpp-python ({version}) "),
        ("docs/dependencies.md", r"`~/\.cache/hubbot/llama\.cpp-({version})`"),
    ),
}  # fmt: skip
_FORMS = {"version": r"[0-9][0-9a-z.]*", "sha256": r"[0-9a-f]{64}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    version: str
    sha256: str  # of the file that pip would take


def newest(package: str) -> Release:
    """The newest release that pip finds; of llama-cpp-python the source release, which carries llama.cpp's tree."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", "--no-deps"]
    command += ["--ignore-installed", "--disable-pip-version-check", "--no-binary", "llama-cpp-python", package]
    [found] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["install"]
    return Release(
        version=found["metadata"]["version"], sha256=found["download_info"]["archive_info"]["hashes"]["sha256"]
    )


def pinned(package: str, root: Path = ROOT) -> str:
    file, form = PLACES[package][0]
    return _places(root / file, form)[0]


def raise_pins(package: str, release: Release, root: Path = ROOT) -> None:
    """Write a release into every place that names it. Raises ValueError where a place is not found just once."""
    for file, form in PLACES[package]:
        path = root / file
        [before] = _places(path, form)
        now = release.sha256 if "{sha256}" in form else release.version
        whole = re.compile(form.format(**_FORMS), re.MULTILINE)
        text = path.read_text(encoding="utf-8")
        path.write_text(whole.sub(partial(_with, old=before, new=now), text), encoding="utf-8")


def _with(found: re.Match[str], *, old: str, new: str) -> str:
    return found[0].replace(old, new)


def _places(path: Path, form: str) -> list[str]:
    found = re.findall(form.format(**_FORMS), path.read_text(encoding="utf-8"), re.MULTILINE)
    if len(found) != 1:
        msg = f"{path.name} has {len(found)} places like {form}, and there should be one; mend PLACES in {Path(__file__).name}."
        raise ValueError(msg)
    return found


def main(find: Callable[[str], Release] = newest, root: Path = ROOT) -> None:
    for package in PLACES:
        before, release = pinned(package, root), find(package)
        if release.version != before:
            raise_pins(package, release, root)
        print(f"{package}: {before}" + ("" if release.version == before else f" -> {release.version}"), flush=True)


if __name__ == "__main__":
    main()
