"""A folder of a model that sees, served by vLLM and asked about a picture with the card's own request: `make test-vllm`."""

from __future__ import annotations

import base64
import inspect
import io
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CompressedTensorsConfig, PreTrainedModel

from hubbot.cards.python import PICTURE
from hubbot.domain import Record
from hubbot.formats.check import from_pretrained
from hubbot.formats.images import Pixels, draw_image
from hubbot.model.config import read_values
from hubbot.release.repos import plan_repos
from hubbot.runtimes.table import Runtime, answer
from hubbot.settings import PublishSettings
from tests.jobs import make
from tests.vision import make_vision
from tests.vllm.test_vllm import HERE, VLLM, _post, environment, free_port, printed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM, reason="$HUBBOT_VLLM names no environment with vLLM")]

VARIANT = "w4a16-32g"
PIECES = 4  # of two by two patches, in either direction: nobody has to resize such a picture
NEW_TOKENS = 8
# Mean difference of log-probabilities between float32 and vLLM's float16, in the tower too: 0.0020 and 0.0031 were measured.
TOLERANCE = 0.01


def shown(folder: Path) -> Pixels:
    patch = read_values(folder / "config.json")["vision_config"]["patch_size"]
    return draw_image({"vision_config": {"image_size": 2 * patch * PIECES}})


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """The folder of codes, and the record of the job that made it."""
    work = tmp_path_factory.mktemp("sight")
    model = make_vision(request.param, work / f"tiny-{request.param}")
    record = make(model, work, variants=VARIANT, evaluation__samples=False)
    return work / "out" / "compressed-tensors" / VARIANT, record


@pytest.fixture(scope="module")
def said(made: tuple[Path, Record], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The server's answer to the request of the card, with the picture in the place of its address."""
    folder, record = made
    [repo] = plan_repos(record, PublishSettings(namespace="test-press"))
    where, options, body = printed(record, repo)
    [message] = body["messages"]
    [picture] = [part for part in message["content"] if part["type"] == "image_url"]
    assert picture["image_url"]["url"] == PICTURE
    picture["image_url"]["url"] = _address(shown(folder))
    body |= {"temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": True, "return_token_ids": True}
    words = ["--model", str(folder), "--served-model-name", where, *options, "--enforce-eager"]
    port = free_port()
    command = [f"{VLLM}/bin/python", "-m", "vllm.entrypoints.openai.api_server", *words]
    command += [*answer(VARIANT, Runtime.VLLM).on_cpu.split(), "--port", str(port), "--max-num-seqs", "1"]
    log = tmp_path_factory.mktemp("log") / "log"
    seeing = {"PYTHONPATH": os.pathsep.join([str(HERE / "sight"), str(HERE / "plain"), f"{VLLM}/sight"])}
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment() | seeing, start_new_session=True)
    try:
        yield _post(f"http://127.0.0.1:{port}/v1/chat/completions", body, server, log)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _address(pixels: Pixels) -> str:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def test_a_served_model_shown_the_cards_picture_says_what_transformers_says(
    made: tuple[Path, Record], said: dict[str, Any]
) -> None:
    folder, _ = made
    model = from_pretrained(folder, "cpu", torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True))
    [choice] = said["choices"]
    prompt, spoken = said["prompt_token_ids"], choice["token_ids"]
    assert prompt.count(model.config.image_token_id) == PIECES**2
    wanted = _wanted(folder, model, prompt, spoken)
    assert [int(row.argmax()) for row in wanted] == spoken
    told = torch.tensor([entry["logprob"] for entry in choice["logprobs"]["content"]])
    ours = torch.stack([row[token] for row, token in zip(wanted, spoken, strict=True)])
    assert float((told - ours).abs().mean()) < TOLERANCE


@torch.inference_mode()
def _wanted(folder: Path, model: PreTrainedModel, prompt: list[int], spoken: list[int]) -> torch.Tensor:
    """transformers' log-probabilities of every token that was said, [tokens, vocabulary]."""
    given = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(shown(folder)), return_tensors="pt")
    ids = torch.tensor([prompt + spoken])
    kinds = [name for name in ("mm_token_type_ids",) if name in inspect.signature(model.forward).parameters]
    marked = {name: (ids == model.config.image_token_id).long() for name in kinds}
    logits = model(input_ids=ids, use_cache=False, **given, **marked).logits[0]
    return logits[len(prompt) - 1 : -1].float().log_softmax(-1)
