"""The sweep measures what a plain computation over whole models measures."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from hubbot.errors import Unsupported
from hubbot.formats.protocol import Encoded, InputStatistics, Needs
from hubbot.model.parts import Part
from hubbot.sweep.references import References
from hubbot.sweep.walk import SweepResult
from hubbot.sweep.windows import Windows
from tests.sweep.rounding import RoundingFormat, decoded_checkpoint
from tests.sweeps import run_sweep

VOCABULARY, LENGTH = 320, 48


@pytest.fixture(scope="module", params=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=request.param == "tied",
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp(request.param)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text('{"model": {}}')  # token ids are given here
    return path


def windows(seed: int, count: int, first_target: int = 1) -> Windows:
    tokens = torch.randint(3, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Windows(tokens=tokens, first_target=(1, *[first_target] * (count - 1)))


def run(folder: Path, out: Path, formats: list[RoundingFormat], **changes: object) -> SweepResult:
    texts: dict[str, object] = {"calibration": windows(1, 5), "evaluation": windows(2, 7)}
    return run_sweep(folder, out, formats, **texts | changes)


def plain(folder: Path, weights: dict[str, torch.Tensor] | None = None) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if weights:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
        model.tie_weights()
    return model.eval()


@torch.inference_mode()
def plain_log_probs(model: torch.nn.Module, evaluation: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all scored rows and their targets, window by window, by a plain forward."""
    rows, targets = [], []
    for tokens, first in zip(evaluation.tokens, evaluation.first_target, strict=True):
        logits = model(tokens[None]).logits[0, first - 1 : -1]
        rows.append(logits.log_softmax(-1))
        targets.append(tokens[first:])
    return torch.cat(rows).double(), torch.cat(targets)


def spread_of_windows(values: torch.Tensor) -> float:
    """The standard error of a mean whose independent pieces are windows of one length."""
    return values.reshape(7, LENGTH - 1).mean(1).std().item() / math.sqrt(7)


def test_scores_equal_a_plain_computation_over_whole_models(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path, [RoundingFormat(tmp_path, {"same": None, "fine": 60, "coarse": 4})])
    evaluation = windows(2, 7)
    base, targets = plain_log_probs(plain(folder), evaluation)
    assert result.base is not None
    assert result.base.tokens == len(targets) == 7 * (LENGTH - 1)
    assert result.base.perplexity == pytest.approx(math.exp(-base.gather(1, targets[:, None]).mean()), rel=1e-5)
    for name, levels in (("fine", 60), ("coarse", 4)):
        variant, _ = plain_log_probs(plain(folder, decoded_checkpoint(folder, levels)), evaluation)
        kl = (base.exp() * (base - variant)).sum(-1)
        score = result.scores[name]
        assert score.perplexity == pytest.approx(math.exp(-variant.gather(1, targets[:, None]).mean()), rel=1e-4)
        assert score.kld.mean == pytest.approx(kl.mean().item(), rel=1e-3)
        assert score.kld.max == pytest.approx(kl.max().item(), rel=1e-3)
        assert score.kld.median == pytest.approx(kl.median().item(), rel=1e-3)
        assert score.top1 == pytest.approx((base.argmax(1) == variant.argmax(1)).double().mean().item(), abs=1e-2)
        dp = (variant - 0).exp().gather(1, targets[:, None]) - base.exp().gather(1, targets[:, None])
        assert score.rms_dp == pytest.approx(dp.square().mean().sqrt().item(), rel=1e-3)
        moved = (base - variant).gather(1, targets[:, None])
        assert score.ratio_stderr == pytest.approx(score.ratio * spread_of_windows(moved), rel=1e-3)
        assert score.kld.stderr == pytest.approx(spread_of_windows(kl), rel=1e-3)
        assert score.ratio == pytest.approx(score.perplexity / result.base.perplexity)
    assert result.scores["coarse"].kld.mean > 10 * result.scores["fine"].kld.mean > 0
    assert result.scores["same"].kld.max == 0
    assert result.scores["same"].top1 == 1
    assert result.scores["same"].ratio_stderr == 0


def test_overlapping_windows_score_every_token_once(folder: Path, tmp_path: Path) -> None:
    evaluation = windows(3, 4, first_target=LENGTH - 10)
    result = run(folder, tmp_path, [RoundingFormat(tmp_path, {"fine": 60})], evaluation=evaluation)
    base, targets = plain_log_probs(plain(folder), evaluation)
    assert result.base is not None
    assert result.base.tokens == LENGTH - 1 + 3 * 10
    assert result.base.perplexity == pytest.approx(math.exp(-base.gather(1, targets[:, None]).mean()), rel=1e-5)


def test_statistics_are_the_inputs_of_the_original_model(folder: Path, tmp_path: Path) -> None:
    made = RoundingFormat(tmp_path, {"coarse": 4})
    run(folder, tmp_path, [made])
    model, inputs = plain(folder), {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, path=path: inputs.setdefault(f"{path}.weight", []).append(args[0].flatten(0, 1))
            )
    with torch.inference_mode():
        model(windows(1, 5).tokens)
    if model.config.tie_word_embeddings:  # type: ignore[union-attr]  # the head is the embedding, which no layer's inputs describe
        del inputs["lm_head.weight"]
    assert set(made.seen) == set(inputs)
    for name, pieces in inputs.items():
        x = torch.cat(pieces).double()
        assert made.seen[name].tokens == len(x) == 5 * LENGTH
        torch.testing.assert_close(made.seen[name].hessian.double(), x.T @ x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.seen[name].squares.double(), x.square().sum(0), rtol=1e-4, atol=1e-4)
    query, key = (made.seen[f"model.layers.1.self_attn.{letter}_proj.weight"] for letter in "qk")
    assert query.hessian is key.hessian, "layers with one input share one sum"


def test_static_variants_that_nobody_evaluates_need_no_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubbot.sweep.walk.BlockModel", None)
    made = RoundingFormat(tmp_path, {"coarse": 4}, Needs.NOTHING)
    result = run(folder, tmp_path, [made], evaluation=None)
    assert result.base is None
    assert len(result.files["coarse"].paths) == 5


@pytest.mark.parametrize(("tokens", "count"), [(2 * LENGTH - 8, 2), (16, 1)])
def test_references_are_the_last_logits_of_whole_windows_in_every_stream(
    folder: Path, tmp_path: Path, tokens: int, count: int
) -> None:
    evaluation = windows(2, 7)
    references = References(evaluation, tokens=tokens)
    rows = tokens // count
    run(folder, tmp_path, [RoundingFormat(tmp_path, {"coarse": 4})], references=references)
    saved = {name: load_file(path) for name, path in references.save(tmp_path / "references").items()}
    assert set(saved) == {"base", "coarse"}
    for name, levels in (("base", None), ("coarse", 4)):
        model = plain(folder, decoded_checkpoint(folder, levels) if levels else None)
        with torch.inference_mode():
            expected = model(saved[name]["tokens"]).logits[:, LENGTH - 1 - rows : LENGTH - 1]
        assert torch.equal(saved[name]["tokens"], evaluation.tokens[:count])
        assert int(saved[name]["first"]) == LENGTH - 1 - rows
        torch.testing.assert_close(saved[name]["logits"], expected, rtol=1e-3, atol=1e-3)


def test_references_can_be_of_the_beginning_of_a_window(folder: Path, tmp_path: Path) -> None:
    evaluation = windows(2, 7)
    references = References(evaluation, tokens=8, reach=LENGTH - 4)
    run(folder, tmp_path, [RoundingFormat(tmp_path, {"coarse": 4})], references=references)
    saved = load_file(references.save(tmp_path / "references")["base"])
    assert torch.equal(saved["tokens"], evaluation.tokens[:1, : LENGTH - 4])
    with torch.inference_mode():
        expected = plain(folder)(evaluation.tokens[:1]).logits[:, LENGTH - 12 : LENGTH - 4]
    assert int(saved["first"]) == LENGTH - 12
    torch.testing.assert_close(saved["logits"], expected, rtol=1e-3, atol=1e-3)


class Hopeless(RoundingFormat):
    """Finds in the second block that it cannot go on."""

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        if part.name == "block-00001":
            raise Unsupported("no such thing as this block")
        return super().encode(part, weights, statistics)


def test_a_family_that_cannot_go_on_leaves_the_others_as_they_would_be_without_it(folder: Path, tmp_path: Path) -> None:
    alone = run(folder, tmp_path / "alone", [RoundingFormat(tmp_path / "alone", {"fine": 60}, Needs.SQUARES)])
    out = tmp_path / "both"
    out.mkdir()
    formats = [Hopeless(out, {"one": 4, "two": 9}), RoundingFormat(out, {"fine": 60}, Needs.SQUARES)]
    both = run(folder, out, formats)
    assert both.failed == dict.fromkeys(["one", "two"], "no such thing as this block")
    assert both.scores == alone.scores
    assert [path.read_bytes() for path in both.files["fine"].paths] == [
        path.read_bytes() for path in alone.files["fine"].paths
    ]
    again = run(folder, out, [Hopeless(out, {"one": 4, "two": 9}), RoundingFormat(out, {"fine": 60}, Needs.SQUARES)])
    assert (again.failed, again.scores) == (both.failed, both.scores)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.sweep.test_walk import run
from tests.sweep.rounding import RoundingFormat
class Fatal(RoundingFormat):
    def encode(self, part, weights, statistics):
        made = super().encode(part, weights, statistics)
        if part.name == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        return made
out = Path(sys.argv[2])
run(Path(sys.argv[1]), out, [Fatal(out, {"fine": 60, "coarse": 4})])
"""


@pytest.mark.slow
def test_a_sweep_begins_anew_where_what_it_had_stored_is_gone(folder: Path, tmp_path: Path) -> None:
    whole = run(folder, tmp_path / "whole", [RoundingFormat(tmp_path / "whole", {"fine": 60})])
    out = tmp_path / "killed"
    out.mkdir()
    command = [sys.executable, "-c", KILLED, str(folder), str(out), "block-00002"]
    subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert (out / "streams.safetensors").exists()
    (out / "fine" / "embedding.safetensors").unlink()  # the part that every checkpoint has behind it
    done = run(folder, out, [RoundingFormat(out, {"fine": 60})])
    left, right = ([path.read_bytes() for path in made.files["fine"].paths] for made in (whole, done))
    assert left == right


@pytest.mark.slow
@pytest.mark.parametrize("part", ["embedding", "block-00000", "block-00002", "head"])
def test_a_killed_sweep_goes_on_and_ends_with_the_same_bytes_and_numbers(
    folder: Path, tmp_path: Path, part: str
) -> None:
    whole = run(folder, tmp_path / "whole", [RoundingFormat(tmp_path / "whole", {"fine": 60, "coarse": 4})])
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "killed"), part]
    killed = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert killed.returncode == -signal.SIGKILL
    done = run(folder, tmp_path / "killed", [RoundingFormat(tmp_path / "killed", {"fine": 60, "coarse": 4})])
    assert done.scores == whole.scores
    assert done.base == whole.base
    assert done.layer_errors == whole.layer_errors
    for name in whole.files:
        left, right = (result.files[name].paths for result in (whole, done))
        assert [path.read_bytes() for path in left] == [path.read_bytes() for path in right]


def test_a_second_text_is_measured_in_the_same_walk_and_changes_nothing_of_the_first(
    folder: Path, tmp_path: Path
) -> None:
    evaluation, spoken = windows(2, 7), windows(3, 4)

    def of(name: str, **texts: Windows | None) -> SweepResult:
        out = tmp_path / name
        out.mkdir()
        return run(folder, out, [RoundingFormat(out, {"fine": 60, "coarse": 4})], **texts)

    both = of("both", evaluation=evaluation, conversations=spoken)
    first, second = of("first", evaluation=evaluation), of("second", evaluation=spoken)
    assert (both.base, both.scores) == (first.base, first.scores)
    assert first.conversations is None
    assert both.conversations is not None
    assert (both.conversations.base, both.conversations.scores) == (second.base, second.scores)
