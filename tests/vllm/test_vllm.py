"""The table of runtimes against vLLM itself, in the environment that $HUBBOT_VLLM names: `make test-vllm`."""

import json
import os
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hubbot.cards.commands import commands
from hubbot.child import in_vllm
from hubbot.child.trials import _request, _text
from hubbot.domain import Family, Record, Status
from hubbot.formats.gptq.format import GPTQ
from hubbot.formats.packed.checkpoint import PACKED
from hubbot.release.repos import Repo, plan_repos
from hubbot.runtimes.table import Runtime, answer
from hubbot.settings import PublishSettings
from tests.conformance.models import write_tiny
from tests.formats.mixtures import swept
from tests.jobs import make
from tests.models import make_model
from tests.promises import FOLDERS
from tests.quantized import bnb_format, encode_all, gptq_format, logits, packed_format, statistics, tokens
from tests.records import record, variant

VLLM = os.environ.get("HUBBOT_VLLM")
HERE = Path(__file__).parent
NAMES = [
    *FOLDERS,
    "gptq-4bit-32g",
    "gptq-4bit--1g-actorder",
    "w4a16--1g",
]
# Mean difference of log-probabilities between float32 and vLLM's float16, of random models: 0.0005 were measured.
TOLERANCE = 0.003

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM, reason="$HUBBOT_VLLM names no environment with vLLM")]


def environment() -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": f"{VLLM}/home",  # where it keeps what it found out about architectures
        "PYTHONPATH": str(HERE / "plain"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, dict[str, Path], dict[str, dict[str, torch.Tensor]]]:
    """The model, and of every variant its folder and decoded weights."""
    work = tmp_path_factory.mktemp("vllm")
    model = make_model("llama", work / "tiny", tied=False)
    seen = statistics(model)
    kinds: dict[str, Any] = {"gptq": gptq_format, "w": packed_format, "bnb": bnb_format}
    made: dict[str, Path] = {}
    decoded: dict[str, dict[str, torch.Tensor]] = {}
    for start, open_format in kinds.items():
        form = open_format(model, [name for name in NAMES if name.startswith(start)], work / "out")
        decoded |= encode_all(form, model, seen)
        made |= {name: files.paths[0].parent for name, files in form.finish().items()}
    return model, made, decoded


@pytest.fixture(scope="module")
def answers(folders) -> dict[str, dict[str, Any]]:
    """What vLLM says to every folder, one after another in one process."""
    _, made, _ = folders
    asked = {
        "tokens": tokens(2, 48).tolist(),
        "prompts": [[5, 6, 7, 8]],
        "new_tokens": 8,
        "length": 128,
        "dtype": "float16",
        "weights": "auto",
    }
    requests = "".join(json.dumps({"folder": str(made[name]), **asked}) + "\n" for name in NAMES)
    command = [f"{VLLM}/bin/python", "-P", in_vllm.__file__]
    done = subprocess.run(command, input=requests, capture_output=True, text=True, check=False, env=environment())
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(NAMES), done.stderr[-2000:]
    return dict(zip(NAMES, lines, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_vllm_reads_what_the_table_says_and_refuses_the_rest(folders, answers, name) -> None:
    row, found = answer(name, Runtime.VLLM), answers[name]
    if not row.reads or row.only == "GPU":
        assert "error" in found, f"vLLM reads {name} by now: {row.how}"
        return
    assert "error" not in found, found
    model, _, decoded = folders
    wanted = logits(model, decoded[name]).log_softmax(-1)[:, :-1].gather(-1, tokens(2, 48)[:, 1:, None])[..., 0]
    assert float((torch.tensor(found["logprobs"]) - wanted).abs().mean()) < TOLERANCE
    assert len(found["continuations"][0]) > 0


@pytest.mark.parametrize("name", [name for name in NAMES if not answer(name, Runtime.VLLM).reads])
def test_vllm_refuses_with_the_words_that_the_table_quotes(answers, name) -> None:
    quoted = answer(name, Runtime.VLLM).how.split('"')[1]
    assert quoted in answers[name]["error"]


@pytest.mark.parametrize("name", ["w4a16-128g", "gptq-4bit-128g"])
def test_vllm_computes_with_experts_of_codes_under_the_checkpoints_own_names(mixture, name) -> None:
    """Its own loader finds, splits and routes them; on a CPU without AMX a plain kernel multiplies."""
    text, found = mixture[name]
    assert "error" not in found, found
    logprobs = torch.tensor([window[text.first :] for window in found["logprobs"]])
    assert float((logprobs - text.logprobs).abs().mean()) < TOLERANCE


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Variant -> the text with what the sweep's decoded weights say of it, and what vLLM does."""
    work = tmp_path_factory.mktemp("mixture")
    folder = write_tiny("Qwen3MoeForCausalLM", work / "tiny")
    result, references = swept(folder, work, {"w4a16-128g": PACKED, "gptq-4bit-128g": GPTQ})
    texts = {name: _text(path) for name, path in references.items() if name in result.files}
    requests = [_request(result.files[name].paths[0].parent, text, on_gpu=False) for name, text in texts.items()]
    command = [f"{VLLM}/bin/python", "-P", in_vllm.__file__]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, env=environment())
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (text, found) for (name, text), found in zip(texts.items(), answers, strict=True)}


def test_a_run_that_names_the_environment_has_every_variant_that_vllm_reads_loaded_there(folders, tmp_path) -> None:
    python = tmp_path / "environment" / "bin" / "python"  # the environment, with the plain kernel
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={HERE / "plain"}\nexec {VLLM}/bin/python "$@"\n')
    python.chmod(0o755)
    model, _, _ = folders
    names = "w4a16-128g,gptq-4bit-128g-asym,Q8_0"
    record = make(model, tmp_path, variants=names, evaluation__samples=False, check__vllm=python.parents[1])
    trials = {variant.name: variant.trials for variant in record.variants}
    assert {name for name, found in trials.items() if found} == {"w4a16-128g"}
    [found] = trials["w4a16-128g"]
    assert (found.runtime, found.verdict, found.error) == ("vLLM", "agrees", None)
    assert found.difference < TOLERANCE
    assert {variant.status for variant in record.variants} == {Status.PASSED}


def test_a_cards_command_serves_and_its_request_is_answered(folders, tmp_path) -> None:
    _, made, _ = folders
    port = free_port()
    where, options, body = _printed("w4a16-128g")
    words = ["--model", str(made["w4a16-128g"]), "--served-model-name", where, *options]
    here = [*answer("w4a16-128g", Runtime.VLLM).on_cpu.split(), "--enforce-eager", "--port", str(port)]
    command = [f"{VLLM}/bin/python", "-m", "vllm.entrypoints.openai.api_server", *words, *here]
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), start_new_session=True)
    try:
        reply = _post(f"http://127.0.0.1:{port}/v1/chat/completions", body, server, log)
        assert reply["choices"][0]["message"]["role"] == "assistant"
        assert reply["usage"]["completion_tokens"] > 0
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _printed(name: str) -> tuple[str, list[str], dict[str, Any]]:
    """What the card of a variant prints for vLLM."""
    run = record()
    one = replace(variant("gptq-4bit-128g"), name=name, family=Family.PACKED)
    run = replace(run, source=replace(run.source, context_length=128), variants=(one,))
    [repo] = plan_repos(run, PublishSettings(namespace="test-press"))
    return printed(run, repo)


def printed(run: Record, repo: Repo) -> tuple[str, list[str], dict[str, Any]]:
    """Of a card's lines for vLLM the repo, the options of the server, and the request."""
    [block] = [text for title, text in commands(run, repo, chat=True) if title == Runtime.VLLM]
    lines = block.strip("`").removeprefix("sh").strip().splitlines()
    advice, served, *asked = [line for line in lines if line != "# your picture in the place of the address:"]
    assert advice == "# without a GPU add --dtype float16"
    program, _, where, *options = shlex.split(served)
    assert program == "vllm"
    return where, options, json.loads(shlex.split(" ".join(asked).replace("\\", ""))[-1])


def _post(url: str, body: dict[str, Any], server: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while server.poll() is None:
        try:
            with urllib.request.urlopen(request) as answered:
                found: dict[str, Any] = json.load(answered)
                return found
        except ConnectionError:
            time.sleep(1)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])
