"""The source's licence texts: they belong to every copy of the model, whatever its format."""

from __future__ import annotations

import shutil
from pathlib import Path

from hubbot.domain import Source
from hubbot.model.companions import is_licence

__all__ = ["FOLDER", "keep_licences", "kept_licences"]

FOLDER = "licence"  # below the output folder


def keep_licences(source: Source, out: Path) -> None:
    """Copy licence, notice and use policy of the source into OUT/licence, in the place of what was there."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    folder = Path(source.folder).resolve()
    for name in sorted(source.files):
        path = (folder / name).resolve()
        if is_licence(name) and path.is_file() and path.is_relative_to(folder):  # what is copied here is published
            (out / FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(path, out / FOLDER / name)


def kept_licences(out: Path) -> dict[str, Path]:
    """Name -> file, of what keep_licences left."""
    return {path.name: path for path in sorted((out / FOLDER).glob("*")) if path.is_file() and not path.is_symlink()}
