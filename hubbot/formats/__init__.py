"""The families of formats: GGUF, GPTQ and bitsandbytes behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubbot.domain import Bnb, Gguf, Gptq, Source, TextRecord, Variant
from hubbot.formats.protocol import Format
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts

__all__ = ["open_formats", "put_in_place"]


def open_formats(
    *,
    variants: Sequence[Variant],
    source: Source,
    facts: ModelFacts,
    work: Path,
    out: Path,
    settings: Settings,
    calibration: TextRecord | None,
    decoded: bool,
) -> list[Format]:
    """The encoders of some variants, one a family, ready for the first part.

    calibration: the text that the importance matrix comes from. decoded: whether decoded weights are wanted.
    Raises Unsupported and UnsupportedShape where a family cannot make a variant.
    """
    # The families are imported only where they are asked for: each brings a large library along.
    formats: list[Format] = []
    if ggufs := [variant for variant in variants if isinstance(variant, Gguf)]:
        from hubbot.formats.gguf.format import GgufFormat

        formats.append(
            GgufFormat(
                variants=ggufs,
                source=source,
                facts=facts,
                work=work,
                out=out,
                settings=settings.gguf,
                calibration=calibration,
                quantized_by=settings.publish.maker,
                decoded=decoded,
            )
        )
    if gptqs := [variant for variant in variants if isinstance(variant, Gptq)]:
        from hubbot.formats.gptq import GptqFormat

        formats.append(
            GptqFormat(variants=gptqs, source=source, facts=facts, work=work, out=out, settings=settings.gptq)
        )
    if bnbs := [variant for variant in variants if isinstance(variant, Bnb)]:
        from hubbot.formats.bnb import BnbFormat

        formats.append(BnbFormat(variants=bnbs, source=source, facts=facts, work=work, out=out, settings=settings.bnb))
    return formats


def put_in_place(work: Path, out: Path) -> list[Path]:
    """The files under `out` that a killed sweep, whose parts wait in `work`, has put under their final names."""
    from hubbot.formats.folder import merged_folders
    from hubbot.formats.gguf.journal import Journal

    finals = Journal(work / "gguf").finals() if (work / "gguf").is_dir() else ()
    folders = [folder for family in ("gptq", "bnb") for folder in merged_folders(work / family, out / family)]
    files = [out / "gguf" / name for name in finals] + [path for folder in folders for path in folder.rglob("*")]
    return [path for path in files if path.is_file() and not path.is_symlink()]
