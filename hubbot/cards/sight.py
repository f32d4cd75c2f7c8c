"""What a card tells of the files that see images, and how to show them one."""

from __future__ import annotations

from pathlib import PurePosixPath

from hubbot.cards import figures
from hubbot.cards.escape import code
from hubbot.domain import File, Source, VariantRecord
from hubbot.formats.gguf.naming import VISION_KINDS, is_vision
from hubbot.model.architectures import sees_images
from hubbot.model.companions import PROCESSORS
from hubbot.release.repos import Repo

__all__ = ["picture_said", "seeing_files", "seeing_table", "shows_pictures"]


def shows_pictures(source: Source) -> bool:
    """Whether a folder made of the source takes pictures: a class that sees alone does not say how they are cut."""
    return sees_images(source.architecture) and any(name in source.files for name in PROCESSORS)


def seeing_files(variant: VariantRecord) -> tuple[str, ...]:
    """Names of the mmproj files that go with a GGUF variant, the most exact first."""
    names = [PurePosixPath(file.path).name for file in variant.files if is_vision(file.path)]
    return tuple(sorted(names, key=lambda name: [f"-{kind}.gguf" in name for kind in VISION_KINDS], reverse=True))


def seeing_table(repo: Repo) -> str | None:
    """The files that see, with how far each is from the original; None of a model that reads text alone."""
    files: dict[str, File] = {
        PurePosixPath(file.path).name: file
        for variant in repo.variants
        for file in variant.files
        if is_vision(file.path)
    }
    if not files:
        return None
    worst = {name: _farthest(name, repo) for name in files}
    rows = [
        [code(name, cell=True), figures.size(file.size), figures.percent(worst[name])] for name, file in files.items()
    ]
    return figures.table([("File", ":--"), ("Size", "--:"), ("Embeddings of a test image apart", "--:")], rows)


def _farthest(name: str, repo: Repo) -> float | None:
    shown = [image for variant in repo.variants for image in variant.images if image.file == name]
    return max((image.distance for image in shown if image.distance is not None), default=None)


def picture_said(variant: VariantRecord) -> str | None:
    """What variant and original say of the test image, in a sentence; None where nobody compared them."""
    image = next((image for image in variant.images if image.kld is not None), None)
    if image is None:
        return None
    words = "the same words as" if image.said == image.base else "other words than"
    return (
        f"Asked what is in that image, {code(variant.name)} with {code(image.file)} begins with {words} the original; "
        f"its next-token distribution is {figures.nats(image.kld)} nats away."
    )
