"""Commands that a reader can paste: every word from outside is quoted for the shell or for Python.

What a runtime refuses, by the table of runtimes, is not printed for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from hubbot.cards.escape import fence, inline, line, repo_id, shell
from hubbot.cards.memory import context
from hubbot.cards.python import PICTURE, PICTURE_QUESTION, QUESTION, START, python_lines
from hubbot.cards.sight import seeing_files, shows_pictures
from hubbot.domain import Record, VariantRecord
from hubbot.formats.gguf.naming import is_text
from hubbot.model.architectures import sees_images
from hubbot.model.companions import MODULES
from hubbot.release.repos import Repo
from hubbot.runtimes.layouts import Layout, layouts_of_run
from hubbot.runtimes.table import Row, Runtime, answer

__all__ = ["also_of", "commands"]

_SHOWN = 8  # revisions that a comment names


def commands(record: Record, repo: Repo, *, chat: bool = False) -> list[tuple[str, str]]:
    """(tool, Markdown block) for the recommended variant, and how to get another one.

    chat: whether the model has a chat template that renders.
    """
    where = repo_id(repo.repo_id) or f"your-name/{line(repo.name, limit=96)}"
    form = _gguf if repo.about.library == "gguf" else _folders
    return list(form(record, repo, where, chat=chat))


def also_of(record: Record) -> tuple[Layout, ...]:
    """What the model and the settings of a run make of its GPTQ variants."""
    settings = record.config.get("gptq")
    head = bool(settings.get("lm_head")) if isinstance(settings, dict) else False
    return layouts_of_run(quantized_head=head, experts=record.source.experts, architecture=record.source.architecture)


def _gguf(record: Record, repo: Repo, where: str, *, chat: bool) -> Iterator[tuple[str, str]]:
    best = repo.recommended
    tagged = f"{where}:{best.name}"
    files = [PurePosixPath(file.path).name for file in best.files if is_text(file.path)]
    seeing = seeing_files(best)
    pooled = MODULES in record.source.files  # an embedding model: the file says how tokens become one
    server = [f"llama-server -hf {shell(tagged)} -c {context(record.source)}{' --embeddings' if pooled else ''}"]
    server += ["# which fetches a file that sees too; your picture in the place of the address:"] if seeing else []
    asked = _request(tagged, 8080, chat=chat, sees=bool(seeing), pooled=pooled)
    yield "llama.cpp", fence("\n".join([*server, asked]), "sh")
    if len(files) == 1:  # the Hub refuses to hand a file in shards to Ollama
        yield "Ollama", fence(f"ollama run {shell(f'hf.co/{tagged}')}", "sh")
    yield "LM Studio", fence(f"lms get {shell(f'https://huggingface.co/{where}@{best.name}')}", "sh")
    if files:
        wanted = [*files, *seeing[:1]]
        named = " ".join(shell(name) for name in wanted)
        options = any(name.startswith("-") for name in wanted)  # by their looks: what follows `--` is none
        local = [
            f"hf download --local-dir . -- {shell(where)} {named}"
            if options
            else f"hf download {shell(where)} {named} --local-dir ."
        ]
        local += [f"llama-server -m {_file(files[0])} --mmproj {_file(seeing[0])}"] if seeing else []
        yield "Only the file", fence("\n".join(local), "sh")


def _file(name: str) -> str:
    """A file of the folder that a reader is in, as no option looks."""
    return shell(f"./{name}" if name.startswith("-") else name)


def _folders(record: Record, repo: Repo, where: str, *, chat: bool) -> Iterator[tuple[str, str]]:
    for runtime in (Runtime.VLLM, Runtime.SGLANG):
        served = [(variant, row) for variant in repo.variants if (row := _row(record, variant, runtime)).reads]
        if served:
            yield runtime, fence("\n".join(_server(record, repo, where, served, chat=chat)), "sh")
    yield from _python(record, repo, where, chat=chat)


def _python(record: Record, repo: Repo, where: str, *, chat: bool) -> Iterator[tuple[str, str]]:
    """The lines of every variant, those that are the same once; of one whose lines were seen to fail, that they did."""
    sees, picture = sees_images(record.source.architecture), PICTURE if shows_pictures(record.source) else None
    also, alike = also_of(record), dict[tuple[str, str | None], list[VariantRecord]]()
    for variant in repo.variants:
        lines = "\n".join(python_lines(where, variant.name, also=also, chat=chat, sees=sees, picture=picture))
        alike.setdefault((lines, _failed(variant)), []).append(variant)
    for number, ((_, error), variants) in enumerate(alike.items()):
        alone = also and not _row(record, variants[0], Runtime.TRANSFORMERS).reads
        title = "GPTQModel" if alone else "transformers"
        if number:
            title += f", for {', '.join(repo.revision(variant) for variant in variants[:_SHOWN])}"
        if error:
            yield title, f"Its lines failed on the machine that made this: {inline(error, limit=300)}"
            continue
        first, *others = [repo.revision(variant) for variant in variants]
        python = python_lines(
            where, variants[0].name, also=also, chat=chat, sees=sees, picture=picture, revision=first, revisions=others
        )
        yield title, fence("\n".join(python), "python")


def _failed(variant: VariantRecord) -> str | None:
    """What its lines ended with, where they were run and did not do."""
    trials = (trial for trial in variant.trials if trial.runtime != Runtime.VLLM and trial.verdict != "agrees")
    return next((trial.error or trial.verdict for trial in trials), None)


def _row(record: Record, variant: VariantRecord, runtime: Runtime) -> Row:
    return answer(variant.name, runtime, also=also_of(record))


def _server(
    record: Record, repo: Repo, where: str, served: list[tuple[VariantRecord, Row]], *, chat: bool
) -> Iterator[str]:
    """A command for the first of the variants that a runtime serves, and what else may stand in it."""
    (best, row), *others = served
    needs = [*([f"on a {row.only}"] if row.only else []), *([f"pip install {row.packages}"] if row.packages else [])]
    if row.on_cpu and not row.only:
        needs.append(f"without a GPU add {row.on_cpu}")
    if needs:
        yield f"# {'; '.join(needs)}"
    length = context(record.source)
    revision = repo.revision(best)
    branch = f" --revision {shell(revision)}" if revision != "main" else ""
    options = f" {row.options}" if row.options else ""
    if row.runtime is Runtime.SGLANG:
        yield f"python -m sglang.launch_server --model-path {shell(where)}{branch}{options} --context-length {length}"
    else:
        yield f"vllm serve {shell(where)}{branch}{options} --max-model-len {length}"
    names = [shell(repo.revision(variant)) for variant, other in others if other == row]
    if names:
        yield f"# other variants: --revision {' or '.join(names[:_SHOWN])}"
    sees = chat and shows_pictures(record.source)
    if sees:
        yield "# your picture in the place of the address:"
    yield _request(where, 30000 if row.runtime is Runtime.SGLANG else 8000, chat=chat, sees=sees)


def _request(model: str, port: int, *, chat: bool, sees: bool = False, pooled: bool = False) -> str:
    """What to ask a server that speaks OpenAI's protocol; `model` has no character that a shell would read."""
    asked: dict[str, object] = {"prompt": START, "max_tokens": 50}
    if chat:
        asked = {"messages": [{"role": "user", "content": QUESTION}]}
    if sees:
        picture = {"type": "image_url", "image_url": {"url": PICTURE}}
        asked = {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": PICTURE_QUESTION}]}]}
    path = "embeddings" if pooled else "chat/completions" if chat or sees else "completions"
    body = {"model": model, **({"input": QUESTION} if pooled else asked)}
    return (
        f"curl http://localhost:{port}/v1/{path} -H 'Content-Type: application/json' \\\n  -d {shell(json.dumps(body))}"
    )
