"""What this machine has and lacks for hubbot's work, each with the next step. Asks nothing of the network.

Tools that load native libraries are imported in a child process: a broken one takes only that child along.
What the Hub says of the token is found out elsewhere (hubbot.hub.rights) and not here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from hubbot import llamacpp
from hubbot.confine import isolate
from hubbot.confine.ask import NoAnswer, ask
from hubbot.confine.environment import allowed
from hubbot.confine.stage import Stage
from hubbot.confine.walls import Walls
from hubbot.doctor.finding import Finding, Status
from hubbot.doctor.runtimes import runtimes_here
from hubbot.environment import PROCESS
from hubbot.errors import HubbotError, ToolMissing
from hubbot.formats.gguf import compiled
from hubbot.machine import Machine, measure_machine
from hubbot.machine.place import REMEDIES, Place, place
from hubbot.machine.versions import INSTALL
from hubbot.runtimes.table import versions_seen

__all__ = ["Finding", "Status", "examine"]

_GIB = 2**30
_DISK = 20 * _GIB  # a 7B model with the default variants needs about twice that, the demo a tenth
_RAM = 8 * _GIB
_COPIES = 5e9  # bytes a second: below, a slot or a riser is not what it should be
_SHARE = 0.25  # of what the clock allows; a good card reaches 0.8
_PATIENCE = 180  # seconds for one import on a busy machine

_AGAIN = INSTALL["bitsandbytes"]
_FEW_WORKERS = {"GPTQMODEL_CPU_WORKERS": "2"}  # it hangs on two cores without
_SETUP = "Run `hubbot setup`."


Ask = Callable[[str], str]  # a line of Python -> what it printed; raises ToolMissing with the last line of its error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Import:
    """A package that must not only be installed but load."""

    package: str
    code: str
    serves: str
    remedy: str = _AGAIN


_IMPORTS = (
    _Import(package="transformers", code="import transformers", serves="reads every model"),
    _Import(package="bitsandbytes", code="import bitsandbytes", serves="makes and loads bnb variants"),
    _Import(
        package="compressed-tensors",
        code="import compressed_tensors",
        serves="loads w4a16 and w8a16 variants",
    ),
    _Import(
        package="gptqmodel",
        code="import gptqmodel, optimum",
        serves="loads GPTQ variants",
        remedy=INSTALL["gptqmodel"],
    ),
)


def examine(
    work: Path, *, device: str = "auto", token: bool, vllm: Path | None = None, environ: Mapping[str, str] = PROCESS
) -> list[Finding]:
    """Look at everything once, in the order of a report.

    work: the folder that runs will write to. token: whether a Hub token was given; its value is not wanted here.
    vllm: the environment of vLLM that `check.vllm` names.
    """
    machine = measure_machine(work, device)
    findings = [_python(sys.version_info[:3])]
    findings += [_torch(machine, _ask), *_rates(machine, device, _ask), *_gpu_road(machine, Path("/"), environ)]
    findings += [
        _llama_cpp(),
        *_llama_cpp_on_cards(machine, _ask),
        _bindings(_ask),
        *(_imported(each, _ask) for each in _IMPORTS),
        _walls(_built),
    ]
    findings += runtimes_here(vllm)
    return [*findings, _disk(machine, work), _ram(machine), _token(token)]


def _python(version: tuple[int, int, int]) -> Finding:
    found = ".".join(map(str, version))
    if version < (3, 11, 0):
        return Finding(name="Python", status=Status.FAIL, found=found, remedy="Install Python 3.11 or newer.")
    return Finding(name="Python", status=Status.OK, found=found)


def _torch(machine: Machine, ask: Ask) -> Finding:
    """Whether torch and the driver agree about the GPU."""
    try:
        answer = ask("import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())")
    except ToolMissing as error:
        return Finding(name="torch", status=Status.FAIL, found=str(error), remedy=_AGAIN)
    version, cuda, sees = answer.split()
    if machine.gpu and sees != "True":
        build = "is a build for CPUs" if cuda == "None" else f"was built for CUDA {cuda}"
        return Finding(
            name="torch",
            status=Status.WARN,
            found=f"{version} {build} and does not see the {machine.gpu} (driver {machine.driver})",
            remedy="Install torch's CUDA build, or update the driver; until then everything runs on the CPU.",
        )
    where = f"CUDA {cuda} on {machine.gpu}, driver {machine.driver}" if sees == "True" else "CPU"
    return Finding(name="torch", status=Status.OK, found=f"{version}, {where}")


def _rates(machine: Machine, device: str, ask: Ask) -> Iterator[Finding]:
    """Whether the card copies and multiplies about as fast as one of its kind does."""
    if not machine.gpu:
        return
    name = "the card's rates"
    card = "cuda:0" if device == "auto" else device
    try:
        answer = ask(
            "import json; from dataclasses import asdict; from hubbot.machine.rates import measure_rates; "
            f"print(json.dumps(asdict(measure_rates({card!r}))))"
        )
    except ToolMissing as error:
        remedy = "Look at what holds the card: nvidia-smi."
        yield Finding(name=name, status=Status.WARN, found=f"could not be measured: {error}", remedy=remedy)
        return
    told = json.loads(answer)
    of = f" of {told['peak'] / 1e12:.0f}" if told["peak"] else ""
    found = (
        f"copies at {told['to_card'] / 1e9:.0f} GB/s to it and {told['from_card'] / 1e9:.0f} back, "
        f"TF32 products at {told['product'] / 1e12:.0f}{of} TFLOP/s"
    )
    slow = list(_slow(told))
    yield Finding(name=name, status=Status.WARN if slow else Status.OK, found=found, remedy=" ".join(slow))


def _slow(told: Mapping[str, float]) -> Iterator[str]:
    if min(told["to_card"], told["from_card"]) < _COPIES:
        yield (
            "Copies are slow for a card: look at its slot, Link Width and PCIe Generation in what `nvidia-smi -q` prints "
            "(16 lanes of generation 3 give 12 GB/s)."
        )
    if told["peak"] and told["product"] < _SHARE * told["peak"]:
        yield (
            "Products are slow for this card: look for heat or a power limit with `nvidia-smi -q -d PERFORMANCE`, and for "
            "others on it with `nvidia-smi`."
        )


def _gpu_road(machine: Machine, root: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """How a GPU gets into a container: a Docker action cannot ask for one, so it must be the runner's default."""
    marks = (root / ".dockerenv", root / "run/.containerenv")
    inside = any(mark.exists() for mark in marks) or "container" in environ
    if inside and not machine.gpu:
        yield Finding(
            name="GPU in the container",
            status=Status.WARN,
            found="this is a container without a GPU",
            remedy=REMEDIES[where if (where := place(environ, marks)) is not Place.MACHINE else Place.CONTAINER],
        )
    elif not inside and machine.gpu and shutil.which("docker"):
        yield _docker_runtime(root / "etc/docker/daemon.json")


def _docker_runtime(path: Path) -> Finding:
    try:
        runtime = json.loads(path.read_text(encoding="utf-8")).get("default-runtime", "runc")
    except (OSError, ValueError, AttributeError):
        runtime = "runc"
    name = "GPU in containers"
    if runtime == "nvidia":
        return Finding(name=name, status=Status.OK, found="nvidia is Docker's default runtime")
    return Finding(
        name=name,
        status=Status.WARN,
        found=f"Docker's default runtime is {runtime}: a Docker action of GitHub will see no GPU",
        remedy="nvidia-ctk runtime configure --runtime=docker --set-as-default, then restart Docker.",
    )


def _llama_cpp() -> Finding:
    try:
        place = llamacpp.find()
        missing = [name for name in ("llama-quantize", "llama-bench") if not (place.bin / name).is_file()]
        found = f"{llamacpp.runtime_name()} in {place.bin}"
    except ToolMissing as error:
        return Finding(name="llama.cpp", status=Status.FAIL, found="not there", remedy=str(error))
    if missing:
        return Finding(
            name="llama.cpp", status=Status.FAIL, found=f"{place.bin} lacks {', '.join(missing)}", remedy=_SETUP
        )
    if compiled.missing():
        lacks = (
            f"{found}, without hubbot's own {' and '.join(compiled.missing())}: GGUF files take several times as long"
        )
        return Finding(name="llama.cpp", status=Status.WARN, found=lacks, remedy=_SETUP)
    return Finding(name="llama.cpp", status=Status.OK, found=found)


def _llama_cpp_on_cards(machine: Machine, ask: Ask) -> Iterator[Finding]:
    """Whether GGUF files are read on the card, where a check takes seconds; on the CPU it takes minutes for large ones."""
    if not machine.gpu:
        return
    name = "llama.cpp on the card"
    try:
        sees = ask("from hubbot.llamacpp import open_cards; print(open_cards())") == "True"
        found = "it computes there" if sees else "it was not built for cards"
    except ToolMissing as error:
        sees, found = False, f"it does not load: {error}"
    if sees:
        yield Finding(name=name, status=Status.OK, found=found)
    elif (backend := llamacpp.cuda_backend()) is None:
        yield Finding(name=name, status=Status.WARN, found=f"{found}: GGUF files are read on the CPU", remedy=_SETUP)
    else:
        found = f"{backend} does not see the {machine.gpu}: GGUF files are read on the CPU"
        remedy = f"Remove {backend.parent} and run `hubbot setup`, which builds it for this card and this driver."
        yield Finding(name=name, status=Status.WARN, found=found, remedy=remedy)


def _bindings(ask: Ask) -> Finding:
    name = "llama.cpp's bindings"
    try:
        version = ask("from hubbot.llamacpp import bindings; print(bindings().__version__)")
    except ToolMissing as error:
        return Finding(name=name, status=Status.FAIL, found=f"they do not load: {error}", remedy=_SETUP)
    return Finding(name=name, status=Status.OK, found=version)


def _imported(each: _Import, ask: Ask, seen: Mapping[str, str] | None = None) -> Finding:
    """seen: as `versions_seen` has it, the releases that the table of runtimes was made with."""
    try:
        version = metadata.version(each.package)
    except metadata.PackageNotFoundError:
        found = f"not installed; it {each.serves}"
        return Finding(name=each.package, status=Status.FAIL, found=found, remedy=each.remedy)
    try:
        ask(each.code)
    except ToolMissing as error:
        found = f"{version} does not load: {error}"
        return Finding(name=each.package, status=Status.FAIL, found=found, remedy=each.remedy)
    tested = (versions_seen() if seen is None else seen).get(each.package, version)
    if tested != version:
        found = f"{version}, tested with {tested}"
        return Finding(name=each.package, status=Status.WARN, found=found, remedy=each.remedy)
    return Finding(name=each.package, status=Status.OK, found=version)


def _built() -> Walls:
    """The walls that a confined process on this machine gets."""
    with TemporaryDirectory() as work:
        return isolate.call(_STAND_BEHIND, None, work=Path(work)).walls


def stand_behind(_: None) -> None:
    """What the confined process does: nothing."""


_STAND_BEHIND = Stage(target=f"{__name__}:stand_behind", question=type(None), answer=type(None))


def _walls(build: Callable[[], Walls]) -> Finding:
    name = "walls around models"
    try:
        built = build()
    except HubbotError as error:
        return Finding(name=name, status=Status.FAIL, found=str(error), remedy=_AGAIN)
    found = f"files: {built.files}, network: {built.network}, rights: {built.rights}, processes: {built.processes}"
    if built.complete:
        return Finding(name=name, status=Status.OK, found=found)
    remedy = (
        "What reads strangers' files has no token, but the kernel keeps it from less than it could: docs/security.md says "
        "which kernel and container has what. Run models that you do not trust elsewhere."
    )
    return Finding(name=name, status=Status.WARN, found=found, remedy=remedy)


def _ask(code: str) -> str:
    """Run a line of Python in a child that inherits no token."""
    try:
        answer = ask([sys.executable, "-c", code], seconds=_PATIENCE, environment=allowed() | _FEW_WORKERS)
    except NoAnswer as error:
        raise ToolMissing((error.said or str(error)).splitlines()[-1]) from None
    lines = answer.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _disk(machine: Machine, work: Path) -> Finding:
    found = f"{machine.disk_free / _GIB:.0f} GiB free for {work}"
    if machine.disk_free < _DISK:
        remedy = (
            "Enough for small models only; `hubbot plan MODEL` says what a model needs. Name a larger disk by --out."
        )
        return Finding(name="disk", status=Status.WARN, found=found, remedy=remedy)
    return Finding(name="disk", status=Status.OK, found=found)


def _ram(machine: Machine) -> Finding:
    found = f"{machine.ram_free / _GIB:.1f} of {machine.ram / _GIB:.1f} GiB free, {machine.cores} cores"
    if machine.ram < _RAM:
        remedy = "Enough for small models only; `hubbot plan MODEL` says what a model needs."
        return Finding(name="memory", status=Status.WARN, found=found, remedy=remedy)
    return Finding(name="memory", status=Status.OK, found=found)


def _token(given: bool) -> Finding:
    if given:
        return Finding(name="Hub token", status=Status.OK, found="given")
    return Finding(
        name="Hub token",
        status=Status.WARN,
        found="none",
        remedy="Public models can be read without one; set HF_TOKEN to read gated models and to publish.",
    )
