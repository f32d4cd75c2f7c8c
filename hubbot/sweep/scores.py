"""Perplexity and divergence, token by token, of every variant against the base on the same tokens.

NLL_t   = -log q(x_t | x_<t)                     perplexity = exp(mean NLL)
ratio   = exp(mean of NLL_t(q) - NLL_t(p)), whose standard error is that of the differences
KL_t    = sum_v p(v) (log p(v) - log q(v))       p: base, q: variant, in nats
top-1   = share of t with argmax p = argmax q
dp_t    = q(x_t) - p(x_t)                        its root mean square

Tokens of one window resemble each other, windows do not: a standard error of a mean m over N tokens of W windows is
sqrt(W / (W - 1) * sum over windows of (sum over its tokens of (x_t - m))^2) / N (Liang and Zeger 1986, clusters). Of a
single window there is none. Intervals are bootstrapped over windows: hubbot.release.paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from hubbot.domain import Divergence, Perplexity, Score, WindowMeans
from hubbot.release.paired import change_of, divergence_of, interval

__all__ = ["BaseScores", "VariantScores"]

_STRETCHES = 512  # that a record keeps means of; of more windows neighbours are taken together


class BaseScores:
    """The base model's negative log-likelihood of every scored token."""

    def __init__(self) -> None:
        self._nll: list[torch.Tensor] = []
        self._windows: list[torch.Tensor] = []

    def add(self, log_probs: torch.Tensor, targets: torch.Tensor, *, window: int) -> None:
        """log_probs float32 [n, vocab]; targets int64 [n], all of one window."""
        self._nll.append(-_pick(log_probs, targets).cpu())
        self._windows.append(torch.full((len(targets),), window))

    def result(self) -> Perplexity:
        nll = _joined(self._nll)
        perplexity, stderr = _perplexity(nll, torch.cat(self._windows))
        return Perplexity(perplexity=perplexity, stderr=stderr, tokens=len(nll))


class VariantScores:
    """What is kept of one variant: five numbers a token."""

    def __init__(self) -> None:
        self._nll: list[torch.Tensor] = []
        self._change: list[torch.Tensor] = []
        self._kl: list[torch.Tensor] = []
        self._agrees: list[torch.Tensor] = []
        self._dp: list[torch.Tensor] = []
        self._windows: list[torch.Tensor] = []

    def add(self, base: torch.Tensor, variant: torch.Tensor, targets: torch.Tensor, *, window: int) -> None:
        """base and variant: log-probabilities, float32 [n, vocab]; targets int64 [n], all of one window."""
        p_true, q_true = _pick(base, targets), _pick(variant, targets)
        self._nll.append(-q_true.cpu())
        self._change.append((p_true - q_true).cpu())
        self._kl.append(_divergence(base, variant).cpu())
        self._agrees.append((base.argmax(-1) == variant.argmax(-1)).cpu())
        self._dp.append((q_true.exp() - p_true.exp()).cpu())
        self._windows.append(torch.full((len(targets),), window))

    def result(self, base: Perplexity) -> Score:
        kl, dp, windows = _joined(self._kl), _joined(self._dp), torch.cat(self._windows)
        perplexity, stderr = _perplexity(_joined(self._nll), windows)
        ratio, change = perplexity / base.perplexity, _joined(self._change)
        means = _window_means(kl, change, windows)
        moved = interval(change_of(means))
        return Score(
            perplexity=perplexity,
            stderr=stderr,
            ratio=ratio,
            ratio_stderr=ratio * _standard_error(change, windows),
            kld=Divergence(
                mean=kl.mean().item(),
                stderr=_standard_error(kl, windows),
                median=kl.median().item(),
                p99=kl.kthvalue(max(1, math.ceil(0.99 * len(kl)))).values.item(),
                max=kl.max().item(),
            ),
            top1=torch.cat(self._agrees).double().mean().item(),
            rms_dp=dp.square().mean().sqrt().item(),
            ratio_interval=_ratios(moved),
            kld_interval=interval(divergence_of(means)),
            windows=means,
        )


def _window_means(kl: torch.Tensor, change: torch.Tensor, windows: torch.Tensor) -> WindowMeans | None:
    """Means by windows, or by stretches of neighbours of about the same length; None where one is not finite."""
    if not (kl.isfinite().all() and change.isfinite().all()):
        return None
    numbers, of = torch.unique(windows, return_inverse=True)
    if len(numbers) > _STRETCHES:
        of = of * _STRETCHES // len(numbers)
    tokens = of.bincount()

    def means(values: torch.Tensor) -> tuple[float, ...]:
        found = torch.zeros(len(tokens), dtype=values.dtype).index_add_(0, of, values) / tokens
        return tuple(float(f"{mean:.6g}") for mean in found.tolist())

    return WindowMeans(tokens=tuple(tokens.tolist()), kld=means(kl), change=means(change))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _ratios(moved: tuple[float, float] | None) -> tuple[float, float] | None:
    """Ends of the perplexity ratio for those of the mean change; None where a float cannot hold one."""
    ends = moved and (_exp(moved[0]), _exp(moved[1]))
    return ends if ends and math.isfinite(ends[1]) else None


def _divergence(base: torch.Tensor, variant: torch.Tensor) -> torch.Tensor:
    # Summed in float32 over the vocabulary, p (log p - log q) loses nothing that matters: for equal
    # distributions it is exactly 0, and rounding (1e-7 of a term) stays below any variant's divergence.
    return (base - variant).mul_(base.exp()).sum(-1)


def _pick(log_probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _joined(pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(pieces)).double()


def _perplexity(nll: torch.Tensor, windows: torch.Tensor) -> tuple[float, float]:
    mean = nll.mean().item()
    value = _exp(mean)
    return value, value * _standard_error(nll, windows)


def _standard_error(values: torch.Tensor, windows: torch.Tensor) -> float:
    """Of the mean. values: float64 [n]; windows: int64 [n], which window each is of."""
    numbers, of = torch.unique(windows, return_inverse=True)
    if len(numbers) < 2:
        return math.nan
    sums = torch.zeros(len(numbers), dtype=values.dtype).index_add_(0, of, values - values.mean())
    return math.sqrt(len(numbers) / (len(numbers) - 1) * sums.square().sum().item()) / len(values)
