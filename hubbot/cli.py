"""The command line: parse, call, exit code."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from hubbot import __version__, log
from hubbot.bot.cli import app as bot
from hubbot.confine import isolate
from hubbot.confine.isolate import Call
from hubbot.domain import Record
from hubbot.errors import BadSettings, HubbotError, ToolMissing, VariantsRefused
from hubbot.machine.shortage import telling_what_ran_out
from hubbot.settings import Settings, load_settings

__all__ = ["app", "main"]

app = typer.Typer(
    name="hubbot",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Quantizes models of the Hugging Face Hub to GGUF, GPTQ and bitsandbytes, measures every variant with one "
    "evaluator, refuses the bad ones and publishes the rest with a model card.",
    epilog="Exit codes: 0 done, 2 settings, 3 source, 4 unsupported, 5 budget, 6 text, 7 refused by the gate, 8 Hub, "
    "9 tool missing, 10 hubbot.json, 11 state file, 1 anything else. docs/errors.md explains them.",
)

app.add_typer(bot)

_SOURCE = "What to quantize"
_TEXT = "Calibration and evaluation"
_MACHINE = "Machine and output"
_PUBLISH = "Publishing"

Model = Annotated[str, typer.Argument(help="Hub id (org/name) or a local folder", show_default=False)]
Revision = Annotated[
    str | None, typer.Option(help="branch, tag or commit of the model", rich_help_panel=_SOURCE, show_default="main")
]
Variants = Annotated[
    str | None,
    typer.Option(
        help="comma list of variants (Q4_K_M, gptq-4bit-128g, bnb-nf4) or a preset: default, small, gguf, gguf-all, gptq, bnb",
        rich_help_panel=_SOURCE,
        show_default="default",
    ),
]
Config = Annotated[
    Path | None, typer.Option(help="hubbot.toml; flags win over it", rich_help_panel=_SOURCE, show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="output folder", rich_help_panel=_MACHINE, show_default="out")]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or cuda:N", rich_help_panel=_MACHINE, show_default="auto")
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Hub dataset (NAME[:CONFIG[:SPLIT]]) or local .txt, .jsonl, .parquet",
        rich_help_panel=_TEXT,
        show_default="allenai/c4, English",
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="number of calibration windows", rich_help_panel=_TEXT, show_default="128")
]
Length = Annotated[
    int | None, typer.Option(help="tokens per calibration window", rich_help_panel=_TEXT, show_default="2048")
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        help="Hub dataset (NAME[:CONFIG[:SPLIT]]), local file, or none",
        rich_help_panel=_TEXT,
        show_default="Salesforce/wikitext, test",
    ),
]
Context = Annotated[
    int | None, typer.Option(help="tokens per evaluation window", rich_help_panel=_TEXT, show_default="2048")
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="tokens from one evaluation window to the next", rich_help_panel=_TEXT, show_default="the context"
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="seed of the choice of calibration windows", rich_help_panel=_TEXT, show_default="0")
]
Imatrix = Annotated[
    bool | None,
    typer.Option(
        "--imatrix/--no-imatrix",
        help="weigh GGUF's error by the importance matrix, or make static files",
        rich_help_panel=_SOURCE,
        show_default="--imatrix",
    ),
]
Publish = Annotated[
    str | None,
    typer.Option(help="none, pr (one pull request a repo) or main", rich_help_panel=_PUBLISH, show_default="none"),
]
Namespace = Annotated[
    str | None,
    typer.Option(help="user or organisation of the published repos", rich_help_panel=_PUBLISH, show_default=False),
]
Gate = Annotated[
    bool | None,
    typer.Option(
        "--gate/--no-gate",
        help="refuse variants past their limits; without the gate nothing is published",
        rich_help_panel=_PUBLISH,
        show_default="--gate",
    ),
]
Benchmark = Annotated[
    bool | None,
    typer.Option("--benchmark", help="measure speed and memory of each variant", rich_help_panel=_MACHINE),
]
Force = Annotated[
    bool | None,
    typer.Option(
        "--force", help="make again what is done; allow calibrating on evaluation text", rich_help_panel=_MACHINE
    ),
]
Unlicensed = Annotated[
    bool | None,
    typer.Option(
        "--allow-unlicensed",
        help="go on where the model names no licence or one that forbids copies, as you have the right by other means",
        rich_help_panel=_SOURCE,
    ),
]
Pickle = Annotated[
    bool | None,
    typer.Option(
        "--allow-pickle",
        help="read a pickle-only checkpoint with torch's weights-only loader",
        rich_help_panel=_SOURCE,
    ),
]
FromWebhook = Annotated[
    bool,
    typer.Option(
        "--from-webhook",
        help="take model and revision from the webhook that started this Hugging Face Job",
        rich_help_panel=_SOURCE,
    ),
]


@app.command()
def run(
    caller: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Hub id (org/name) or a local folder", show_default=False)] = None,
    revision: Revision = None,
    variants: Variants = None,
    config: Config = None,
    out: Out = None,
    publish: Publish = None,
    namespace: Namespace = None,
    calibration: Calibration = None,
    samples: Samples = None,
    length: Length = None,
    evaluation: Evaluation = None,
    context: Context = None,
    stride: Stride = None,
    seed: Seed = None,
    imatrix: Imatrix = None,
    device: Device = None,
    gate: Gate = None,
    benchmark: Benchmark = None,
    force: Force = None,
    allow_unlicensed: Unlicensed = None,
    allow_pickle: Pickle = None,
    from_webhook: FromWebhook = False,
) -> None:
    """Make, measure, judge and publish the variants of a model.

    Everything lands in the output folder: files, hubbot.json, cards, report.html. The same command goes on where a
    killed run stopped, and does nothing where all is done.
    """
    if from_webhook:
        told = _told(model, revision)
        if told is None:
            log.say("The webhook tells of nothing that makes a model new: another branch, a pull request, no model.")
            return
        model, revision = told
    if model is None:
        raise BadSettings(
            "Which model? Name it as org/name or as a local folder; `hubbot run --help` shows the options."
        )
    flags = {
        "revision": revision,
        "variants": variants,
        "out": out,
        "device": device,
        "benchmark": benchmark,
        "force": force,
        "allow_pickle": allow_pickle,
        "licence.allow_unlicensed": allow_unlicensed,
        "publish.mode": publish,
        "publish.namespace": namespace,
        "gguf.imatrix": imatrix,
        "gate.enabled": gate,
        **_dataset("calibration", calibration),
        "calibration.samples": samples,
        "calibration.length": length,
        "calibration.seed": seed,
        **_dataset("evaluation", evaluation),
        "evaluation.context": context,
        "evaluation.stride": stride,
    }
    _run(model, load_settings(config, flags), caller.obj)


@app.command()
def plan(
    caller: typer.Context,
    model: Model,
    revision: Revision = None,
    variants: Variants = None,
    config: Config = None,
    out: Out = None,
    calibration: Calibration = None,
    samples: Samples = None,
    length: Length = None,
    evaluation: Evaluation = None,
    context: Context = None,
    stride: Stride = None,
    imatrix: Imatrix = None,
    device: Device = None,
    allow_unlicensed: Unlicensed = None,
    allow_pickle: Pickle = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
    as_matrix: Annotated[bool, typer.Option("--matrix", help="print GitHub's job matrix")] = False,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="for another machine: the budgets in hubbot.toml say what it has")
    ] = False,
) -> None:
    """Say what a run would make and need, before anything is downloaded but headers."""
    from hubbot.job import pipeline
    from hubbot.planning.plan import matrix, require
    from hubbot.planning.plan_view import as_json as plan_json
    from hubbot.planning.plan_view import as_table

    flags = {
        "revision": revision,
        "variants": variants,
        "out": out,
        "device": device,
        "allow_pickle": allow_pickle,
        "licence.allow_unlicensed": allow_unlicensed,
        "gguf.imatrix": imatrix,
        **_dataset("calibration", calibration),
        "calibration.samples": samples,
        "calibration.length": length,
        **_dataset("evaluation", evaluation),
        "evaluation.context": context,
        "evaluation.stride": stride,
    }
    settings = load_settings(config, flags)
    found = pipeline.plan(_job(model, settings), caller.obj, elsewhere=elsewhere)
    if as_json:
        sys.stdout.write(json.dumps({**plan_json(found), "matrix": matrix(found)}, indent=2) + "\n")
    if as_matrix:
        sys.stdout.write(json.dumps(matrix(found)) + "\n")
    if not (as_json or as_matrix):
        Console().print(as_table(found))
    require(found)


@app.command()
def evaluate(
    caller: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="GGUF files, or folders with a GPTQ or bitsandbytes checkpoint")],
    base: Annotated[str, typer.Option(help="the model that they were made from: Hub id or folder")],
    revision: Revision = None,
    config: Config = None,
    out: Out = None,
    evaluation: Evaluation = None,
    context: Context = None,
    stride: Stride = None,
    device: Device = None,
    allow_pickle: Pickle = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the scores as JSON")] = False,
) -> None:
    """Measure artefacts, also ones made elsewhere, against their base model."""
    from hubbot.cards.scores import scores_table
    from hubbot.job import pipeline

    flags = {
        "revision": revision,
        "out": out,
        "device": device,
        "allow_pickle": allow_pickle,
        **_dataset("evaluation", evaluation),
        "evaluation.context": context,
        "evaluation.stride": stride,
    }
    found = pipeline.evaluate(_job(base, load_settings(config, flags)), paths, caller.obj)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
    else:
        Console().print(scores_table(found.evaluation, found.base, found.scores))


@app.command()
def publish(
    out: Annotated[Path, typer.Argument(help="output folder of a run")] = Path("out"),
    config: Config = None,
    mode: Annotated[str, typer.Option("--publish", help="pr (one pull request a repo) or main")] = "pr",
    namespace: Namespace = None,
    force: Force = None,
    allow_unlicensed: Unlicensed = None,
) -> None:
    """Publish what lies in an output folder. A retry goes on with what is there and never does a thing twice."""
    from hubbot.job import pipeline
    from hubbot.record.file import FILE_NAME, read_record

    record = read_record(out / FILE_NAME)
    flags = {
        "out": out,
        "publish.mode": mode,
        "publish.namespace": namespace,
        "publish.quantized_by": _maker(record),
        "force": force,
        "licence.allow_unlicensed": allow_unlicensed,
    }
    job = _job(record.source.repo or record.source.folder, load_settings(config, flags))
    pipeline.release_record(job, record)


@app.command()
def demo(
    caller: typer.Context, out: Out = None, variants: Variants = None, config: Config = None, device: Device = None
) -> None:
    """Train a small language model on this machine's own text and run the main job on it."""
    from hubbot.demo.train import demo_model, demo_settings

    with log.stage("train the demo model"):
        folder = demo_model(log=log.say)
    flags = {**demo_settings(folder), "out": out, "device": device}
    flags |= {"variants": variants} if variants else {}
    _run(str(folder), load_settings(config, flags), caller.obj)


@app.command()
def setup(
    cmake: Annotated[
        list[str] | None, typer.Option(help="a further option for cmake, as -DGGML_CUDA=ON", show_default=False)
    ] = None,
) -> None:
    """Build what pip cannot bring: the pinned llama.cpp and faster GGUF encoders. Once for each machine.

    It goes into ~/.cache/hubbot, or where HUBBOT_LLAMA_CPP says, and takes about 4 minutes on two cores; where it is
    there already, nothing is done.
    """
    from hubbot import llamacpp
    from hubbot.formats.gguf import fast
    from hubbot.setup import build

    build(llamacpp.place(), cmake or [], say=log.say)
    try:
        fast.build()
    except ToolMissing as error:
        log.warning(str(error))
    log.say(f"{llamacpp.runtime_name()} in {llamacpp.find().bin}")


@app.command()
def doctor(
    namespace: Annotated[list[str] | None, typer.Option(help="ask the Hub what the token may do there")] = None,
    config: Config = None,
) -> None:
    """Look at tools, versions, GPU, disk and token, and say how to mend what is amiss."""
    from hubbot.doctor.view import show

    if not show(load_settings(config, {}), namespaces=namespace or [], token=_token(), endpoint=_endpoint()):
        raise typer.Exit(ToolMissing.exit_code)


@app.command()
def card(
    out: Annotated[Path, typer.Argument(help="output folder of a run")] = Path("out"),
    config: Config = None,
    namespace: Namespace = None,
) -> None:
    """Render the model cards and the report again from hubbot.json; with --namespace for that owner's repos."""
    from hubbot.cards.card import write_cards
    from hubbot.cards.report import write_report
    from hubbot.record.file import FILE_NAME, read_record

    record = read_record(out / FILE_NAME)
    flags = {"publish.namespace": namespace, "publish.quantized_by": _maker(record)}
    for repo, folder in write_cards(record, load_settings(config, flags).publish, out).items():
        sys.stdout.write(f"{repo}: {folder / 'README.md'}\n")
    sys.stdout.write(f"report: {write_report(record, out)}\n")


@app.command()
def review(
    pull: Annotated[str, typer.Argument(metavar="PR_URL", help="address of a pull request on the Hub, or org/name#3")],
    plain: Annotated[bool, typer.Option("--plain", help="print the Markdown as it is")] = False,
) -> None:
    """Show a waiting pull request: its card, the gate's verdicts and the numbers against main."""
    from hubbot.job.review import parse_pull_request, review_text

    text = review_text(parse_pull_request(pull, endpoint=_endpoint()), token=_token(), endpoint=_endpoint())
    if plain:
        sys.stdout.write(text)
    else:
        Console().print(Markdown(text))


@app.command()
def schema() -> None:
    """Print the JSON Schema of hubbot.json."""
    from hubbot.record.schema import schema as record_schema

    sys.stdout.write(json.dumps(record_schema(), indent=2) + "\n")


def _maker(record: Record) -> str | None:
    """Who is named in the files as having made them; cards say the same."""
    name = record.config.get("quantized_by")
    return name if isinstance(name, str) else None


def _run(model: str, settings: Settings, call: Call) -> None:
    from hubbot.cards.summary import reasons, results_table
    from hubbot.job import pipeline

    job = _job(model, settings)
    record = pipeline.run(job, call).record
    console = Console()
    console.print(results_table(record, width=console.width))
    for line in reasons(record):
        log.say(line)
    _say_where(job.out)
    refused = [variant.name for variant in record.variants if variant.status in ("refused", "failed")]
    if refused:
        msg = f"{len(refused)} of {len(record.variants)} variants did not pass: {', '.join(refused)}. Their reasons stand above and in {job.out}/hubbot.json."
        raise VariantsRefused(msg)


def _told(model: str | None, revision: str | None) -> tuple[str, str] | None:
    """Model and commit that a webhook told of; None: nothing to do."""
    from hubbot.bot.webhook import from_job

    if model or revision:
        raise BadSettings("--from-webhook takes model and revision from the webhook; leave them out.")
    events = from_job(os.environ)
    return (events[-1].model, events[-1].sha) if events else None


def _say_where(out: Path) -> None:
    sys.stdout.write(
        f"\nrecord   {out}/hubbot.json\ncards    {out}/cards/\nreport   {out}/report.html\nfiles    {out}/gguf, {out}/gptq, {out}/bnb\n"
    )


def _job(model: str, settings: Settings) -> Any:
    from hubbot.job.pipeline import Run

    command = shlex.join(["hubbot", *sys.argv[1:]])
    return Run(
        model=model,
        settings=settings,
        token=_token(),
        endpoint=_endpoint(),
        command=command,
    )


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _dataset(section: str, name: str | None) -> dict[str, Any]:
    """NAME, NAME:CONFIG or NAME:CONFIG:SPLIT of a Hub dataset; a local file is named by its path alone.

    A dataset named by a flag is used by itself: the default dataset's configuration does not belong to it.
    """
    if name is None:
        return {}
    dataset, _, rest = (name, "", "") if Path(name).exists() else name.partition(":")
    config, _, split = rest.partition(":")
    return {f"{section}.dataset": dataset, f"{section}.config": config, f"{section}.split": split or None}


def main(argv: list[str] | None = None, program: Callable[..., Any] = app, call: Call = isolate.call) -> None:
    """Entry point: errors become one paragraph and their exit code. call: who asks the confined child."""
    try:
        with telling_what_ran_out():
            program(argv, standalone_mode=True, obj=call)
    except HubbotError as error:
        log.error(str(error))
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        sys.stdout.write(f"hubbot {__version__}\n")
        raise typer.Exit
