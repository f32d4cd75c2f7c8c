"""Commands that a reader can paste: every word from outside is quoted for the shell or for Python."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from hubbot.cards.escape import fence, line, repo_id, shell
from hubbot.domain import VariantRecord
from hubbot.release.repos import Kind, Repo

__all__ = ["commands"]


def commands(repo: Repo) -> list[tuple[str, str]]:
    """(tool, Markdown block) for the recommended variant, and how to get another one."""
    where = repo_id(repo.repo_id) or f"your-name/{line(repo.name, limit=96)}"
    if repo.kind is Kind.GGUF:
        return _gguf(repo, where)
    return _transformers(repo, where)


def _gguf(repo: Repo, where: str) -> list[tuple[str, str]]:
    best = repo.recommended
    tagged = f"{where}:{best.name}"
    files = [PurePosixPath(file.path).name for file in best.files if file.path.endswith(".gguf")]
    blocks = [
        ("llama.cpp", f"llama-server -hf {shell(tagged)}"),
        ("Ollama", f"ollama run {shell(f'hf.co/{tagged}')}"),
        ("LM Studio", f"lms get {shell(f'https://huggingface.co/{where}')}"),
    ]
    if files:
        wanted = " ".join(shell(name) for name in files)
        blocks.append(("Only the file", f"hf download {shell(where)} {wanted} --local-dir ."))
    return [(tool, fence(text, "sh")) for tool, text in blocks]


def _transformers(repo: Repo, where: str) -> list[tuple[str, str]]:
    gptq = repo.kind is Kind.GPTQ
    needs = "transformers accelerate optimum gptqmodel" if gptq else "transformers accelerate bitsandbytes"
    serve = f"vllm serve {shell(where)}"
    others = [variant for variant in repo.variants if repo.revision(variant) != "main"]
    if others:
        serve += f"\n# another variant: vllm serve {shell(where)} --revision {shell(repo.revision(others[0]))}"
    python = [
        f"# pip install {needs}",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"name = {json.dumps(where)}",
        *_revision_hint(repo, others),
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f'model = AutoModelForCausalLM.from_pretrained(name{", revision=revision" if others else ""}, device_map="auto")',
        'inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))",
    ]
    return [("vLLM", fence(serve, "sh")), ("transformers", fence("\n".join(python), "python"))]


def _revision_hint(repo: Repo, others: list[VariantRecord]) -> list[str]:
    names = ", ".join(json.dumps(line(repo.revision(variant), limit=96)) for variant in others[:8])
    return [f'revision = "main"  # or {names}'] if others else []
