"""The command line: parse, call, exit code."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hubbot import __version__, log
from hubbot.bot.cli import app as bot
from hubbot.bot.verdicts import Action, Verdict
from hubbot.confine import isolate
from hubbot.confine.isolate import Call
from hubbot.confine.walls import hide_memory
from hubbot.domain import Record
from hubbot.environment import PROCESS
from hubbot.errors import BadSettings, HubbotError, ToolMissing, VariantsRefused
from hubbot.hub.client import hub_of_environment
from hubbot.machine.shortage import translated_shortages
from hubbot.settings import Settings, load_settings
from hubbot.settings.flags import SOURCE, Flags, takes

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

Model = Annotated[str, typer.Argument(help="Hub id (org/name) or a local folder", show_default=False)]
Config = Annotated[
    Path | None, typer.Option(help="hubbot.toml; flags win over it", show_default=False, rich_help_panel=SOURCE)
]
_TEXTS = ("calibration", "samples", "length", "evaluation", "conversations", "context", "stride")
_CONSENT = ("allow-unlicensed", "allow-pickle")


@app.command()
@takes(
    "revision",
    "variants",
    "out",
    "publish",
    "namespace",
    *_TEXTS,
    "seed",
    "imatrix",
    "device",
    "gate",
    "check-vllm",
    "benchmark",
    "force",
    "strict",
    *_CONSENT,
)
def run(
    flags: Flags,
    caller: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Hub id (org/name) or a local folder", show_default=False)] = None,
    config: Config = None,
    from_webhook: Annotated[
        bool,
        typer.Option(
            "--from-webhook",
            help="take model and revision from the webhook that started this Hugging Face Job",
            rich_help_panel=SOURCE,
        ),
    ] = False,
) -> None:
    """Make, measure, judge and publish the variants of a model.

    Everything lands in the output folder: files, hubbot.json, cards, report.html. The same command goes on where a
    killed run stopped, and does nothing where all is done.
    """
    if from_webhook:
        told = _told(model, flags["revision"], load_settings(config, flags))
        if told is None:
            return
        model, flags = told.model, {**flags, "revision": told.revision}
    if model is None:
        raise BadSettings(
            "Which model? Name it as org/name or as a local folder; `hubbot run --help` shows the options."
        )
    _run(model, load_settings(config, flags), caller.obj)


@app.command()
@takes("revision", "variants", "strict", "out", *_TEXTS, "imatrix", "device", *_CONSENT)
def plan(
    flags: Flags,
    caller: typer.Context,
    model: Model,
    config: Config = None,
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
@takes("revision", "variants", "out", "calibration", "samples", "length", "seed", "device", "allow-pickle")
def allocate(flags: Flags, caller: typer.Context, model: Model, config: Config = None) -> None:
    """Measure which tensor should get which GGUF type, as a run does for Q4_K_M_D, and print it: lines for hubbot.toml.

    With them there a run measures nothing and gives these types. After a run into the same --out nothing is measured again.
    """
    from hubbot.job import pipeline

    flags = {**flags, "evaluation.dataset": "none", "variants": flags["variants"] or "Q4_K_M_D"}
    for mix, types in pipeline.allocate(_job(model, load_settings(config, flags)), caller.obj).items():
        lines = "".join(f'"{tensor}" = "{kind}"\n' for tensor, kind in types.items())
        sys.stdout.write(f"[gguf.allocation.{mix}]\n{lines}\n")


@app.command()
@takes("revision", "out", "evaluation", "conversations", "context", "stride", "device", "allow-pickle")
def evaluate(
    flags: Flags,
    caller: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="GGUF files, or folders with a GPTQ or bitsandbytes checkpoint")],
    base: Annotated[str, typer.Option(help="the model that they were made from: Hub id or folder")],
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the scores as JSON")] = False,
    picture: Annotated[Path | None, typer.Option(help="draw size against divergence into this .svg file")] = None,
) -> None:
    """Measure artefacts, also ones made elsewhere, against their base model: one table, one picture, the same tokens."""
    from hubbot.cards.picture import draw
    from hubbot.cards.scores import measured_points, scores_table
    from hubbot.job import pipeline

    found = pipeline.evaluate(_job(base, load_settings(config, flags)), paths, caller.obj).measured
    if picture:
        picture.write_text(draw(measured_points(found), title="Size against divergence"), encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
    else:
        for measured in filter(None, (found, found.spoken)):
            Console().print(scores_table(measured))


@app.command()
@takes("namespace", "force", "allow-unlicensed")
def publish(
    flags: Flags,
    out: Annotated[Path, typer.Argument(help="output folder of a run")] = Path("out"),
    config: Config = None,
    mode: Annotated[str, typer.Option("--publish", help="pr (one pull request a repo) or main")] = "pr",
) -> None:
    """Publish what lies in an output folder. A retry goes on with what is there and never does a thing twice."""
    from hubbot.job import pipeline
    from hubbot.record.file import FILE_NAME, read_record

    record = read_record(out / FILE_NAME)
    settings = load_settings(
        config, {**flags, "out": out, "publish.mode": mode, "publish.quantized_by": _maker(record)}
    )
    job = _job(record.source.repo or record.source.folder, settings)
    pipeline.release_record(job, record)


@app.command()
@takes("out", "variants", "device")
def demo(flags: Flags, caller: typer.Context, config: Config = None) -> None:
    """Train a small language model on this machine's own text and run the main job on it."""
    PROCESS.setdefault("OMP_WAIT_POLICY", "passive")  # as for the children; torch reads it when it is imported
    from hubbot.demo.train import demo_model, demo_settings

    with log.stage("train the demo model"):
        folder = demo_model(log=log.say)
    given = {setting: value for setting, value in flags.items() if value is not None}
    _run(str(folder), load_settings(config, {**demo_settings(folder), **given}), caller.obj)


@app.command()
def setup(
    cmake: Annotated[
        list[str] | None, typer.Option(help="a further option for cmake, as -DGGML_NATIVE=OFF", show_default=False)
    ] = None,
    cuda: Annotated[
        bool, typer.Option(help="also llama.cpp's part for the cards of this machine, if it has any")
    ] = True,
) -> None:
    """Build what pip cannot bring: the pinned llama.cpp and faster GGUF encoders. Once for each machine.

    It goes into ~/.cache/hubbot, or where HUBBOT_LLAMA_CPP says, and takes less than 10 minutes on two cores, and 40
    minutes of one core more for each kind of NVIDIA's cards that are here; where it is there already, nothing is done.
    """
    from hubbot import llamacpp, setup_cuda
    from hubbot.formats.gguf import descent, fast
    from hubbot.machine.nvidia import gpus_of
    from hubbot.setup import build

    build(llamacpp.place(), cmake or [], say=log.say)
    cards = [card.capability for card in gpus_of("cuda")] if cuda else []
    for compile_library in (fast.build, descent.build, partial(setup_cuda.build, llamacpp.place(), cards, say=log.say)):
        try:
            compile_library()
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

    if not show(load_settings(config, {}), namespaces=namespace or [], hub=hub_of_environment()):
        raise typer.Exit(ToolMissing.exit_code)


@app.command()
@takes("namespace")
def card(
    flags: Flags,
    out: Annotated[Path, typer.Argument(help="output folder of a run")] = Path("out"),
    config: Config = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="what `hubbot evaluate … --json` said of files of others, to stand in the card; again for more"
        ),
    ] = None,
) -> None:
    """Render the model cards and the report again from hubbot.json; with --namespace for that owner's repos."""
    from hubbot.cards.beside import keep_beside
    from hubbot.cards.card import write_cards
    from hubbot.cards.report import write_report
    from hubbot.record.file import FILE_NAME, read_record

    record = read_record(out / FILE_NAME)
    settings = load_settings(config, {**flags, "publish.quantized_by": _maker(record)})
    if beside:
        keep_beside(beside, record, out)
    for repo, folder in write_cards(record, settings.publish, out).items():
        sys.stdout.write(f"{repo}: {folder / 'README.md'}\n")
    sys.stdout.write(f"report: {write_report(record, out)}\n")


@app.command()
def review(
    pull: Annotated[str, typer.Argument(metavar="PR_URL", help="address of a pull request on the Hub, or org/name#3")],
    plain: Annotated[bool, typer.Option("--plain", help="print the Markdown as it is")] = False,
) -> None:
    """Show a waiting pull request: its card, the gate's verdicts and the numbers against main."""
    from hubbot.job.review import parse_pull_request, review_text

    hub = hub_of_environment()
    text = review_text(parse_pull_request(pull, hub), hub)
    if plain:
        sys.stdout.write(text)
    else:
        from rich.markdown import Markdown

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
    _say_where(job.out, record)
    refused = [variant.name for variant in record.variants if variant.status in ("refused", "failed")]
    if refused:
        msg = f"{len(refused)} of {len(record.variants)} variants did not pass: {', '.join(refused)}. Their reasons stand above and in {job.out}/hubbot.json."
        raise VariantsRefused(msg)


def _told(model: str | None, revision: str | None, settings: Settings) -> Verdict | None:
    """What a webhook told of, as the rules of the watch judge it now; None: it is not made, and it was said why."""
    from hubbot.bot.ledger.store import open_ledger
    from hubbot.bot.round import judge_now
    from hubbot.bot.webhook import from_job
    from hubbot.hub.read.reader import Reader

    if model or revision:
        raise BadSettings("--from-webhook takes model and revision from the webhook; leave them out.")
    events = from_job(PROCESS)
    if not events:
        log.say("The webhook tells of nothing that makes a model new: another branch, a pull request, no model.")
        return None
    with open_ledger(settings.watch.state) as ledger:
        found = judge_now(Reader(hub_of_environment()), ledger, settings, events[-1].model, version=__version__)
    if found is None or found.action is not Action.RUN:
        why = f"{found.reason} (rule {found.rule})" if found else "the Hub shows it no more"
        log.say(f"{events[-1].model} is not made: {why}.")
        return None
    return found


def _say_where(out: Path, record: Record) -> None:
    lines = [f"record   {out}/hubbot.json", f"cards    {out}/cards/", f"report   {out}/report.html"]
    paths = (file.path for variant in record.variants for file in variant.files)
    if folders := dict.fromkeys(f"{out}/{path.split('/')[0]}" for path in paths):
        lines.append(f"files    {', '.join(folders)}")
    sys.stdout.write("\n" + "\n".join(lines) + "\n")


def _job(model: str, settings: Settings) -> Any:
    from hubbot.job.pipeline import Run

    command = shlex.join(["hubbot", *sys.argv[1:]])
    return Run(
        model=model,
        settings=settings,
        hub=hub_of_environment(),
        command=command,
    )


def main(argv: list[str] | None = None, program: Callable[..., Any] = app, call: Call = isolate.call) -> None:
    """Entry point: errors become one paragraph and their exit code. call: who asks the confined child.

    From the first moment on no process of the same user reads the environment, where tokens and secrets are.
    """
    hide_memory()
    try:
        with translated_shortages():
            program(argv, standalone_mode=True, obj=call)
    except HubbotError as error:
        log.error(str(error))
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        sys.stdout.write(f"hubbot {__version__}\n")
        raise typer.Exit
