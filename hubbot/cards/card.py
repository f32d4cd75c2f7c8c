"""The model card of one repo, from the record alone. docs/card.md says what stands in it.

Every section is a template of its own in templates/card; one that has nothing to say renders to
nothing and is left out. A number that is null in the record takes its row or column with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubbot.cards import figures
from hubbot.cards.advice import advice
from hubbot.cards.beside import beside_table, kept_beside
from hubbot.cards.card_facts import facts, link, notes, samples, speed_table
from hubbot.cards.commands import also_of, commands
from hubbot.cards.escape import code, inline, line
from hubbot.cards.experts import experts_table
from hubbot.cards.frontmatter import dump, front_matter, licence_link
from hubbot.cards.layout import markdown_environment
from hubbot.cards.marks import merge, wrap
from hubbot.cards.memory import BUFFERS, context, memory_needed
from hubbot.cards.picture import Point, draw, known
from hubbot.cards.prompt import PromptFormat, prompt_format
from hubbot.cards.scores import measured_points
from hubbot.cards.sight import picture_said, seeing_table
from hubbot.domain import Measured, Record, Status, VariantRecord
from hubbot.errors import BadRecord
from hubbot.formats.gguf.naming import is_text, is_vision
from hubbot.release.licence import judge_licence
from hubbot.release.paired import divergence_of
from hubbot.release.repos import Repo, kind_of, plan_repos
from hubbot.runtimes.table import runs_in
from hubbot.settings import PublishSettings

__all__ = ["CARDS", "PICTURE", "check_files", "picture", "quality_points", "render_card", "write_cards"]

CARDS = "cards"  # folder below the output folder
PICTURE = "hubbot-quality.svg"
_SECTIONS = ("head", "files", "picture", "beside", "use", "prompt", "speed", "samples", "made", "licence")


def write_cards(record: Record, publish: PublishSettings, out: Path) -> dict[str, Path]:
    """Write OUT/cards/<repo>/README.md and the picture for every repo of a gated record.

    Returns repo id -> its folder. A card that lies there already keeps what was written outside the
    marks. Raises BadRecord when a file of the record is absent or has another size.
    """
    check_files(record, out)
    beside = kept_beside(record, out)
    written = {}
    for repo in plan_repos(record, publish):
        folder = out / CARDS / line(repo.name, limit=96).replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "README.md"
        text = render_card(record, repo, quantized_by=publish.quantized_by or publish.namespace, beside=beside)
        card.write_text(merge(card.read_text(encoding="utf-8") if card.exists() else None, text), encoding="utf-8")
        if drawing := picture(record, repo, beside):
            (folder / PICTURE).write_text(drawing, encoding="utf-8")
        written[repo.repo_id] = folder
    return written


def render_card(record: Record, repo: Repo, *, quantized_by: str | None = None, beside: Measured | None = None) -> str:
    """The whole README.md: YAML head, then every section between its marks. beside: files of others."""
    environment = markdown_environment()
    view = {**_view(record, repo), "beside": _beside(record, repo, beside)}
    rendered = {name: environment.get_template(f"card/{name}.md.j2").render(view).strip() for name in _SECTIONS}
    body = wrap({name: text for name, text in rendered.items() if text})
    return f"{dump(front_matter(record, repo, quantized_by=quantized_by))}\n{body}"


def picture(record: Record, repo: Repo | None, beside: Measured | None = None) -> str:
    """Size against divergence of every variant of the run, whatever its format, and of files of others; empty without measurements."""
    return draw(
        [*quality_points(record, repo.recommended if repo else None), *(measured_points(beside) if beside else ())],
        title=f"{line(record.source.name, limit=48)}: size against divergence",
    )


def _beside(record: Record, repo: Repo, beside: Measured | None) -> str | None:
    names = {variant.name for variant in repo.variants}
    ours = [point for point in quality_points(record, None) if point.label in names]
    return beside_table(beside, ours) if beside else None


def quality_points(record: Record, recommended: VariantRecord | None) -> list[Point]:
    return [
        Point(
            label=variant.name,
            family=variant.family,
            size=sum(file.size for file in variant.files),
            value=variant.score.kld.mean,
            error=known(variant.score.kld.stderr),
            means=divergence_of(variant.score.windows),
            refused=variant.status is Status.REFUSED,
            recommended=recommended is not None and variant.name == recommended.name,
        )
        for variant in record.variants
        if variant.score is not None and variant.files
    ]


def check_files(record: Record, out: Path) -> None:
    """Every file of a variant that passed lies in `out` with the size that the record names."""
    for variant in record.variants:
        if not variant.passed:
            continue
        for file in variant.files:
            path = out / file.path
            found = path.stat().st_size if path.is_file() else None
            if found != file.size:
                state = "is not there" if found is None else f"has {found:,} bytes"
                msg = (
                    f"{path} {state}; the record says {file.size:,} bytes. A card must not promise it: "
                    "run `hubbot run` with the same arguments again."
                )
                raise BadRecord(msg)


def _view(record: Record, repo: Repo) -> Mapping[str, Any]:
    best = repo.recommended
    thing = "variant" if repo.about.folder else "file"
    base = link(record.source.repo, record.source.name)
    spoken = samples(best)
    speeds = speed_table(repo)
    prompt = _prompt(record)
    return {
        "title": f"{line(record.source.name, limit=96)} · {repo.kind.title.removesuffix(' for llama.cpp')}",
        "base_link": base,
        "base_plain": record.source.repo,
        "family": repo.kind.title,
        "maker": "[hubbot](#how-it-was-made)",
        "thing": thing,
        "things": f"{thing}s",
        "runtimes": _runtimes(v.load_check.runtime for v in repo.variants if v.load_check) or "its runtime",
        "tokens": f"{record.base.tokens:,}" if record.base and any(v.score for v in repo.variants) else None,
        "recommended": best.name if len(repo.variants) > 1 else None,
        "recommended_facts": _why(best),
        "overlap": bool(record.calibration and record.calibration.overlap_forced),
        "ungated": " ".join(n for v in repo.variants for n in v.notes if n.startswith("not gated"))[:400],
        "table": files_table(record, repo),
        "legend": _legend(record, repo),
        "seeing": seeing_table(repo),
        "picture_said": picture_said(best),
        "refused": _refused(record, repo),
        "picture": PICTURE if picture(record, repo) else None,
        "alt": f"Size against divergence of the variants of {line(record.source.name, limit=48)}",
        "commands": commands(record, repo, chat=bool(prompt.text)),
        "prompt": prompt,
        "speed": speeds,
        "speed_runtimes": _runtimes(v.speed.runtime for v in repo.variants if v.speed),
        "machine": _machine(record),
        "sampled": best.name,
        "samples": spoken[0],
        "more_samples": spoken[1],
        "more_count": spoken[2],
        "facts": facts(record, repo),
        "experts": experts_table(record, repo),
        "command": record.command,
        "notes": notes(repo),
        "licence": _licence(record),
        "duty": judge_licence(record.source.license, record.source.license_name).duty,
        "gated": record.source.gated,
    }


def files_table(record: Record, repo: Repo, *, links: bool = True) -> str:
    """ "Which file should I take": the largest first, the original as the last line.

    links: link file names by their path in the repo, which only its card can resolve.
    """
    thing = "Variant" if repo.about.folder else "File"
    head = [(thing, ":--"), ("Revision", ":--"), ("Size", "--:"), ("Advice", ":--"), ("Bits/weight", "--:")]
    head += [
        ("Perplexity", "--:"),
        ("Change", "--:"),
        ("KL mean", "--:"),
        ("KL in chat", "--:"),
        ("KL 99 %", "--:"),
        ("Same top token", "--:"),
    ]
    head += [("Memory", "--:"), ("Runs in", ":--")]
    rows = [
        _row(record, repo, variant, links=links)
        for variant in sorted(repo.variants, key=lambda v: (-_bytes(v), v.name))
    ]
    if record.base and any(variant.score for variant in repo.variants):
        shown = figures.perplexity(record.base.perplexity, record.base.stderr)
        rows.append(["*original*", *[None] * 4, shown, *[None] * (len(head) - 6)])
    return figures.table(head, rows)


def _row(record: Record, repo: Repo, variant: VariantRecord, *, links: bool) -> list[str | None]:
    score, best = variant.score, variant is repo.recommended and len(repo.variants) > 1
    heard = record.conversations.scores.get(variant.name) if record.conversations else None
    several = repo.about.folder and len(repo.variants) > 1
    name = _name(repo, variant) if links else code(variant.name, cell=True)
    return [
        f"**{name}** ★" if best else name,
        code(repo.revision(variant), cell=True) if several else None,
        figures.size(_bytes(variant)),
        _advice(record, repo, variant),
        figures.bits(variant.bits_per_weight),
        figures.perplexity(score.perplexity, score.stderr) if score else None,
        figures.ratio(score.ratio, score.ratio_interval) if score else None,
        figures.nats(score.kld.mean, score.kld_interval) if score else None,
        figures.nats(heard.kld.mean, heard.kld_interval) if heard else None,
        figures.nats(score.kld.p99) if score else None,
        figures.percent(score.top1) if score else None,
        figures.size(memory_needed(variant, record.source)),
        None if _runs_alike(record, repo) else _runs_in(record, variant),
    ]


def _advice(record: Record, repo: Repo, variant: VariantRecord) -> str | None:
    """In words; None where nothing finite was measured."""
    names = {one.name for one in repo.variants}
    points = [point for point in quality_points(record, None) if point.label in names and math.isfinite(point.value)]
    return next((inline(advice(point, points)) for point in points if point.label == variant.name), None)


def _runs_in(record: Record, variant: VariantRecord) -> str:
    sharded = sum(is_text(file.path) for file in variant.files) > 1
    return runs_in(variant.name, also_of(record), sharded=sharded)


def _runs_alike(record: Record, repo: Repo) -> bool:
    """Whether a sentence says for all variants what a column would repeat."""
    return len({_runs_in(record, variant) for variant in repo.variants}) == 1


def _name(repo: Repo, variant: VariantRecord) -> str:
    """GGUF files are linked by their path; a sharded one by its first shard, with their number."""
    files = [file for file in variant.files if is_text(file.path)]
    if repo.about.folder or not files:
        return code(variant.name, cell=True)
    place = repo.place(variant, files[0])
    target = "".join(char if char.isascii() and (char.isalnum() or char in "._-/") else "" for char in place)
    shown = inline(variant.name) if target != place else f"[{inline(variant.name)}](./{target})"
    return f"{shown} ({len(files)} files)" if len(files) > 1 else shown


def _bytes(variant: VariantRecord) -> int:
    """Without the files of the part that sees images, which its variants share."""
    return sum(file.size for file in variant.files if not is_vision(file.path))


def _why(best: VariantRecord) -> str:
    facts_ = [figures.size(_bytes(best))]
    if best.score and math.isfinite(best.score.kld.mean):
        facts_.append(f"{figures.nats(best.score.kld.mean)} nats from the original")
        facts_.append(f"the same most likely token in {figures.percent(best.score.top1)} of all places")
    return f": {', '.join(fact for fact in facts_ if fact)}"


def _floors(repo: Repo) -> dict[str, list[float]]:
    """Runtime -> how far its logits lay from those of the same bytes, of each variant that it was compared on."""
    found: dict[str, list[float]] = {}
    for variant in repo.variants:
        check = variant.load_check
        if variant.score and check and check.kld is not None and math.isfinite(check.kld):
            found.setdefault(check.runtime, []).append(max(check.kld, 0.0))
    return found


def _floor(runtime: str, found: Sequence[float]) -> str:
    low, high = figures.nats(min(found)), figures.nats(max(found))
    lay = f"{low} nats" if low == high else f"{low} to {high} nats"
    return (
        f"The floor: by its own rounding the answers of {inline(runtime, limit=80)} lay {lay} from those of the same bytes in hubbot's pass, "
        "and no number above holds that. What differs by less is alike there."
    )


def _legend(record: Record, repo: Repo) -> list[str]:
    lines = []
    if any(variant.score for variant in repo.variants):
        lines.append(
            "Perplexity ± its standard error; *change* is against the original. KL is the divergence of the next-token "
            "distribution from the original's, in nats per token (mean, and 99th percentile): the smaller, the closer."
        )
    if any(variant.score and variant.score.kld_interval for variant in repo.variants):
        lines.append(
            "In brackets: the interval that holds the number in 95 % of all draws of the text's windows. One file is said to be "
            "closer than another where the interval of their difference on the same windows leaves no doubt."
        )
    if record.conversations and any(variant.name in record.conversations.scores for variant in repo.variants):
        lines.append(
            f"*KL in chat* is the same divergence on {record.conversations.base.tokens:,} tokens of conversations, as the chat template "
            "writes them. The gate and ★ go by the evaluation text alone."
        )
    lines += [_floor(runtime, found) for runtime, found in _floors(repo).items()]
    cache = record.source.kv_bytes_per_token
    tokens = context(record.source)
    rest = (
        f"a 16-bit key/value cache of {tokens:,} tokens ({figures.size(cache * tokens)})"
        if cache
        else "no key/value cache (its size is not known here)"
    )
    if _runs_alike(record, repo):
        lines.append(f"Runs in {_runs_in(record, repo.recommended)}.")
    lines += [f"Loaded as users load it: {seen}."] if (seen := _seen(repo)) else []
    lines.append(f"Memory is the weight files, plus {rest}, plus {figures.size(BUFFERS)} for buffers.")
    if len(repo.variants) > 1:
        lines.append(
            "★ is the smallest one that surely stays within 0.05 nats, or else the smallest that none surely beats."
        )
    return lines


def _seen(repo: Repo) -> str:
    """The runtimes that ran variants with a type and kernels of their own choice, and which."""
    ran: dict[str, list[str]] = {}
    for variant in repo.variants:
        for trial in variant.trials:
            if trial.verdict == "agrees":
                ran.setdefault(line(f"{trial.runtime} {trial.release}", limit=120), []).append(variant.name)
    everything = len(repo.variants)
    return "; ".join(
        inline(runtime) if len(names) == everything else f"{', '.join(map(code, names))} in {inline(runtime)}"
        for runtime, names in ran.items()
    )


def _refused(record: Record, repo: Repo) -> list[tuple[str, str]]:
    mine = [v for v in record.variants if kind_of(v) is repo.kind and not v.passed]
    return [(variant.name, line(variant.reason or "no reason recorded", limit=300)) for variant in mine]


def _prompt(record: Record) -> PromptFormat:
    if not record.chat_template:
        return PromptFormat()
    return prompt_format(record.chat_template, record.special_tokens, date=record.created or "")


def _runtimes(names: Any) -> str:
    return " and ".join(sorted({line(name, limit=80) for name in names}))


def _machine(record: Record) -> str:
    shown = [str(record.hardware[key]) for key in ("gpu", "cpu") if record.hardware.get(key)]
    return line(shown[0], limit=120) if shown else "the machine that made it"


def _licence(record: Record) -> str | None:
    source = record.source
    if not source.license:
        return None
    name = inline(
        source.license_name if source.license == "other" and source.license_name else source.license, limit=120
    )
    target = licence_link(record)
    return f"[{name}]({target})" if target else name
