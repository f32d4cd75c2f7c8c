"""Standard errors of what hangs together inside of a window."""

from __future__ import annotations

import math

import pytest
import torch

from hubbot.domain import Perplexity
from hubbot.sweep.scores import VariantScores

VOCABULARY = 5


def scores(tokens_a_window: list[int], *, alike: bool) -> VariantScores:
    """Log-probabilities that move by one amount a window, or by one a token."""
    found, generator, shifts = VariantScores(), torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    for window, count in enumerate(tokens_a_window):
        base = torch.randn(count, VOCABULARY, generator=generator).log_softmax(-1)
        moved = torch.randn(1 if alike else count, VOCABULARY, generator=shifts) / 10
        targets = torch.arange(count) % VOCABULARY
        half = count // 2  # a window arrives in pieces
        for rows in (slice(0, half), slice(half, count)):
            variant = (base + moved).log_softmax(-1)
            found.add(base[rows], variant[rows], targets[rows], window=window)
    return found


def test_a_window_counts_once_however_many_tokens_repeat_what_it_says():
    base = Perplexity(perplexity=5.0, stderr=0.1, tokens=1)
    few, many = (scores([tokens] * 12, alike=True).result(base) for tokens in (40, 4000))
    assert few.kld.stderr == pytest.approx(many.kld.stderr, rel=0.5)
    independent = scores([4000] * 12, alike=False).result(base)
    assert independent.kld.stderr < many.kld.stderr / 10


def test_one_window_has_no_standard_error():
    score = scores([40], alike=True).result(Perplexity(perplexity=5.0, stderr=0.1, tokens=40))
    assert math.isnan(score.kld.stderr)
    assert math.isnan(score.ratio_stderr)
    assert math.isfinite(score.kld.mean)


def test_a_score_keeps_its_windows_and_what_they_say_of_its_means():
    base = Perplexity(perplexity=5.0, stderr=0.1, tokens=1)
    score = scores([40] * 12, alike=True).result(base)
    assert score.windows is not None
    assert score.windows.tokens == (40,) * 12
    assert sum(score.windows.kld) / 12 == pytest.approx(score.kld.mean, rel=1e-5)
    assert score.kld_interval[0] < score.kld.mean < score.kld_interval[1]
    assert score.kld_interval[1] - score.kld_interval[0] == pytest.approx(4.4 * score.kld.stderr, rel=0.3)
    moved = math.exp(sum(score.windows.change) / 12)
    assert score.ratio_interval[0] < moved < score.ratio_interval[1]


def test_many_windows_are_kept_as_stretches_of_neighbours():
    windows = scores([4, 2] * 600, alike=True).result(Perplexity(perplexity=5.0, stderr=0.1, tokens=1)).windows
    assert len(windows.tokens) == 512
    assert sum(windows.tokens) == 3600
    assert max(windows.tokens) <= 12


def test_a_ratio_whose_end_no_float_holds_has_no_interval():
    found, base, targets = VariantScores(), torch.zeros(8, VOCABULARY).log_softmax(-1), torch.arange(8) % VOCABULARY
    for window in range(12):
        found.add(base, base - 650 - 10 * window, targets, window=window)
    score = found.result(Perplexity(perplexity=5.0, stderr=0.1, tokens=1))
    assert score.windows is not None
    assert score.kld_interval is not None
    assert score.ratio_interval is None
