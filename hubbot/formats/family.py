"""What hubbot asks of a family of formats: the module of its folder fulfils `FamilyModule`.

Such a module is read for every plan, card and line of help, so it imports nothing large: what needs torch or the
family's own library stands in other modules of its folder, and is imported inside the functions that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from hubbot.domain import Source, Speed, TextRecord, Variant
from hubbot.errors import Unsupported
from hubbot.formats.protocol import Cost, Encoded, Format, Needs, Reading
from hubbot.settings import PublishSettings, Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts
    from hubbot.model.chat import Chat
    from hubbot.model.finite import Large

__all__ = ["About", "FamilyModule", "Kind"]

V = TypeVar("V", bound=Variant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A repo on the Hub that variants of a family share: what it is called, tagged and named."""

    title: str  # "bitsandbytes 4-bit"
    tags: tuple[str, ...]
    name: Callable[[PublishSettings], str]  # the template of its name
    bits: int | None = None  # of the variants that go there; None: of all


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is to be known of a family without making anything."""

    title: str  # "bitsandbytes"
    grammar: str  # of its names, as the end of a sentence that begins with the title
    examples: tuple[str, ...]  # names, for help and for the test of conformance
    kinds: tuple[Kind, ...]  # the repos of its variants; the first one for all that no other is for
    section: str | None  # of the settings: all of it shapes the bytes
    weights: str  # suffix of the files that hold weights
    folder: bool  # a variant is a whole folder: loaded whole, a branch of its own on the Hub
    apart: bool  # its runtime reads in a process of its own, on the CPU
    library: Literal["gguf", "transformers"]  # the Hub's name for what loads it
    packages: tuple[str, ...] = ()  # of its own, which encode or read it: the record names their versions


class FamilyModule(Protocol[V]):
    """A family's module. Its finished files lie under OUT/<family>, what a sweep keeps under WORK/<family>."""

    @property
    def ABOUT(self) -> About: ...  # noqa: N802 - a constant of the module

    def parse(self, name: str, /) -> V | None:
        """The variant of that name, in any case; None for another family's."""
        ...

    def needs(self, config: Mapping[str, Any], names: Collection[str], /) -> Needs:
        """Which statistics it wants. config: its section of the settings, as `Record.config` has it; names: of its variants."""
        ...

    def refusal(self, architecture: str, /) -> str | None:
        """Why it makes no model of this architecture, as far as a name tells; None: nothing is known against it."""
        ...

    def costs(
        self, variants: Sequence[V], /, *, source: Source, facts: ModelFacts, work: Path, settings: Settings
    ) -> dict[str, Cost | Unsupported]:
        """Variant name -> its exact size before any weight is read, or why it cannot be made of this model.

        Raises Unsupported where none can.
        """
        ...

    def overflows(
        self,
        variants: Sequence[V],
        /,
        *,
        source: Source,
        facts: ModelFacts,
        work: Path,
        settings: Settings,
        large: Mapping[str, Large],
    ) -> dict[str, str]:
        """Variant name -> why its numbers cannot hold the weights, for those that cannot.

        large: checkpoint tensor -> its largest magnitude, of the tensors with values beyond float16.
        """
        ...

    def open_format(
        self,
        variants: Sequence[V],
        /,
        *,
        beside: Sequence[Variant],
        source: Source,
        facts: ModelFacts,
        work: Path,
        out: Path,
        settings: Settings,
        calibration: TextRecord | None,
        decoded: bool,
        device: str,
    ) -> Format:
        """The encoder of variants that `costs` has a size for, ready for the first part.

        beside: all others, which further encoders of the same sweep make.
        calibration: the text that the statistics come from. decoded: whether decoded weights are wanted.
        """
        ...

    def finished(self, work: Path, out: Path, /) -> list[Path]:
        """The files and folders that a killed sweep, which made them in `work`, has put under their final names."""
        ...

    def read(
        self,
        paths: Sequence[Path],
        reference: Path | None,
        /,
        *,
        prompts: Sequence[Sequence[int]] = (),
        new_tokens: int = 0,
        chat: Chat | None = None,
        device: str = "cpu",
    ) -> Reading:
        """The load check in its own runtime: see `hubbot.formats.check.read`."""
        ...

    def measure_speed(
        self, paths: Sequence[Path], /, *, prompt_tokens: int, generated_tokens: int, device: str
    ) -> Speed:
        """Its speed in its own runtime. Raises ToolMissing where that fails."""
        ...

    def artefact(self, path: Path, base: ModelFacts, /) -> Mapping[str, Encoded] | None:
        """A finished artefact, made anywhere, as tensors of the base; None where it is none of this family's."""
        ...
