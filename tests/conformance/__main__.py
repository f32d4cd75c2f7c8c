"""Runs the architectures, each in a process of its own with one thread, and writes the page."""

from __future__ import annotations

import argparse
import ast
import datetime
import difflib
import faulthandler
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GPTQMODEL_CPU_WORKERS": "2"}

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from hubbot import llamacpp
from hubbot.machine.versions import tools
from hubbot.model.architectures import _assigned, known_to_llama_cpp
from tests.conformance.models import _HUB_NAMES, BEYOND, SEEING, model_type_of
from tests.conformance.page import as_page
from tests.conformance.trial import try_architecture

DOCS = Path(__file__).parents[2] / "docs"
SECONDS = 600  # that one architecture may take
_FORKING = threading.Lock()  # filelock refuses a fork while another thread is in one


def main() -> None:
    asked = arguments()
    path = DOCS / "architectures.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else {}
    rows = {name: {**_row(name), "outcomes": before.get(name, {}).get("outcomes", {})} for name in architectures()}
    possible = [name for name in rows if model_type_of(name) or name in SEEING]
    if strange := [name for name in asked.architectures if name not in possible]:
        sys.exit(_unknown(strange[0], possible))
    wanted = asked.architectures or possible
    llamacpp.conversion()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(asked.processes) as pool:
        running = {pool.submit(apart, name): name for name in wanted}
        for number, done in enumerate(as_completed(running), 1):
            name = running[done]
            rows[name]["outcomes"] = done.result()
            _tell(f"{number}/{len(wanted)} {name}", rows[name]["outcomes"])
            path.write_text(json.dumps({"made": made(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    (DOCS / "architectures.md").write_text(as_page(json.loads(path.read_text())), encoding="utf-8")
    if lost := [told for name in wanted for told in _lost(name, before.get(name, {}), rows[name])]:
        sys.exit("\n".join(["What passed before does not:", *lost]))


def _unknown(name: str, possible: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, possible, 3)
    said = f"did you mean {' or '.join(close)}?" if close else "docs/architectures.md has the classes that have one."
    return f"There is no tiny model of {name}: {said} A new class needs a row of BEYOND or PLANS in tests/conformance."


def _lost(name: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    passed = [column for column, outcome in before.get("outcomes", {}).items() if outcome["kind"] == "passes"]
    outcomes = now["outcomes"]
    return [f"{name}, {column}" for column in passed if outcomes.get(column, {}).get("kind") != "passes"]


def architectures() -> list[str]:
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()}
    return sorted({name for name in known if known_to_llama_cpp(name)} | {*BEYOND, *SEEING})


def _row(name: str) -> dict[str, bool]:
    known = known_to_llama_cpp(_HUB_NAMES.get(name, name))
    return {"llama_cpp": known, "gptqmodel": (SEEING.get(name) or model_type_of(name)) in _gptqmodel()}


@cache
def _gptqmodel() -> frozenset[str]:
    """Model types that GPTQModel defines, read off its source: importing it starts threads, which a fork would lack."""
    found = importlib.util.find_spec("gptqmodel")
    assert found
    assert found.submodule_search_locations
    source = Path(found.submodule_search_locations[0]) / "models" / "auto.py"
    table = _assigned(source, "MODEL_MAP")
    return frozenset(ast.literal_eval(key) for key in table.keys if key is not None)


def apart(architecture: str) -> dict[str, Any]:
    """In a fork, so that torch and the libraries are imported once; one that dies or hangs is a row like others."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        work = Path(name)
        process = multiprocessing.get_context("fork").Process(target=_run, args=(architecture, work))
        start = time.monotonic()
        with _FORKING:
            process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        found = work / "outcomes.json"
        if found.exists():
            return dict(json.loads(found.read_text()))
        told = f"ended with {process.exitcode} after {time.monotonic() - start:.0f} s"
        return {"base": {"kind": "crashed", "told": told, "divergence": None}}


def _run(architecture: str, work: Path) -> None:
    if not os.environ.get("HUBBOT_CONFORMANCE_TRACE"):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    else:
        faulthandler.dump_traceback_later(100)
    found = {column: asdict(outcome) for column, outcome in try_architecture(architecture, work).items()}
    (work / "outcomes.json").write_text(json.dumps(found), encoding="utf-8")


def made() -> dict[str, str]:
    versions = {name: str(version) for name, version in tools().items()}
    wanted = ("transformers", "llama.cpp", "gptqmodel", "bitsandbytes", "torch")
    told = ", ".join(f"{name} {versions[name]}" for name in wanted if name in versions)
    machine = f"{platform.machine()} with {os.cpu_count()} cores"
    return {"tools": told, "machine": machine, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def _tell(name: str, outcomes: dict[str, Any]) -> None:
    kinds = " ".join(f"{column}:{outcome['kind']}" for column, outcome in outcomes.items())
    print(
        name,
        kinds,
        *{outcome["told"][:300] for outcome in outcomes.values() if outcome["told"]},
        sep="\n   ",
        flush=True,
    )
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", metavar="CLASS")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":
    main()
