"""What a card promises: the runtime and the variant of every command in it, as a reader would take them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from hubbot.cards.commands import also_of, commands
from hubbot.domain import Record, VariantRecord
from hubbot.release.repos import Repo
from hubbot.runtimes.layouts import EXAMPLES, Layout
from hubbot.runtimes.table import Row, Runtime, answer

# A folder of every layout that a tiny dense model has: the tests with vLLM and with transformers load each.
FOLDERS = list(dict.fromkeys(EXAMPLES[layout] for layout in Layout if layout not in (Layout.GGUF, Layout.GPTQ_EXPERTS)))

_NAMED = {  # program -> runtime, where its second word names repo and variant
    "llama-server": (Runtime.LLAMA_CPP, r".*:([^:]+)"),
    "ollama": (Runtime.OLLAMA, r"hf\.co/.*:([^:]+)"),
    "lms": (Runtime.LM_STUDIO, r"https://huggingface\.co/.*@([^@]+)"),
}


def promises(record: Record, repo: Repo) -> Iterator[tuple[Runtime, str, Row]]:
    """(runtime, variant, what the table says of them) for every command. Raises for a command that nobody knows."""
    for title, block in commands(record, repo, chat=True):
        found = list(_python(block, repo) if "```python" in block else _shell(block, repo))
        assert found or "hf download" in block, f"{title}: {block}"
        for runtime, variant in found:
            yield runtime, variant, answer(variant, runtime, also_of(record))


def _shell(block: str, repo: Repo) -> Iterator[tuple[Runtime, str]]:
    [code] = re.findall(r"```sh\n(.*?)\n```", block, re.DOTALL)
    lines = code.replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        match words:
            case ["vllm", "serve", _, *more]:
                yield Runtime.VLLM, _revision(more, repo)
            case ["python", "-m", "sglang.launch_server", *more]:
                yield Runtime.SGLANG, _revision(more, repo)
            case [("llama-server" | "ollama" | "lms") as program, _, which, *_]:
                runtime, pattern = _NAMED[program]
                named = re.fullmatch(pattern, which)
                assert named, line
                yield runtime, named[1]
            case ["curl" | "hf", *_]:
                continue
            case []:
                yield from _others(line, lines, repo)
            case _:
                raise AssertionError(line)


def _others(line: str, lines: list[str], repo: Repo) -> Iterator[tuple[Runtime, str]]:
    """`# other variants: --revision A or B`, of the server that the block starts."""
    runtime = Runtime.VLLM if any(each.startswith("vllm") for each in lines) else Runtime.SGLANG
    if line.startswith("# other variants: --revision "):
        for revision in line.removeprefix("# other variants: --revision ").split(" or "):
            yield runtime, _variant(revision, repo).name


def _revision(words: list[str], repo: Repo) -> str:
    revision = words[words.index("--revision") + 1] if "--revision" in words else "main"
    return _variant(revision, repo).name


def _python(block: str, repo: Repo) -> Iterator[tuple[Runtime, str]]:
    line = re.search(r"^revision = (.*)$", block, re.MULTILINE)
    for revision in re.findall(r'"([^"]+)"', line[1]) if line else ["main"]:
        yield Runtime.TRANSFORMERS, _variant(revision, repo).name


def _variant(revision: str, repo: Repo) -> VariantRecord:
    return next(variant for variant in repo.variants if repo.revision(variant) == revision)
