"""What errors of the layers' outputs do to the loss of the whole model: a pass forth and one back, before the sweep.

Forth, every block's inputs are kept on the disk. At the head labels are drawn from the model's own predictions, so that the
gradients' products are the Fisher information, which for small errors is the divergence. Back, block by block, each
is computed again, and its layers' gradients are summed. One block is resident at a time, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from hubbot.errors import HubbotError, Unsupported
from hubbot.machine.shortage import translate_shortage
from hubbot.model.foreign import foreign, said
from hubbot.model.parts import Part, PartKind
from hubbot.sweep.arguments import Arguments
from hubbot.sweep.batches import DRAWS, GRADIENT_TOKENS, gradient_batch_tokens, logit_bytes
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.companions import Companions
from hubbot.sweep.given import BlockArguments
from hubbot.sweep.group import Failed, FailedElsewhere, Group
from hubbot.sweep.installed import Weights
from hubbot.sweep.kept import NOTHING, Kept
from hubbot.sweep.outputs import OutputSums
from hubbot.sweep.telling import Telling, silently
from hubbot.sweep.windows import Windows

__all__ = ["measure_gradients"]

_SEED = 1
_INSTEAD = "Leave -e2e out of the variants' names."


def measure_gradients(
    model: BlockModel,
    parts: Sequence[Part],
    weights: Weights,
    calibration: Windows,
    folder: Path,
    group: Group,
    telling: Telling = silently,
) -> float:
    """Let `bands_of` know every block's bands, of part of the calibration; nothing is done where it knows them all.

    model: without weights, as it is left. weights: of a part. folder: where they are kept; a pass that was killed goes on
    behind the last part that it had done. Returns the seconds that earlier processes have spent on it.
    Raises Unsupported where blocks are given more than hidden states, nothing passes back through one, what passes is not
    finite or there is too little room for it: in every process of the group, and nothing is left of the pass.
    """
    if all(group.all_gather(folder.exists())):
        return 0.0
    if not model.passage.alone:
        msg = f"Gradients pass back from block to block, and blocks of {type(model.model).__name__} are given more of earlier blocks than the hidden states of the one before. {_INSTEAD}"
        raise Unsupported(msg)
    walk = _Walk(model, weights, calibration, folder.with_suffix(".partial"), group)
    try:
        walk.through(parts, telling)
    except Unsupported:
        walk.kept.forget()
        raise
    walk.kept.finish(folder)
    return walk.kept.seconds


def _chosen(calibration: Windows) -> tuple[Windows, int]:
    """As many windows as have GRADIENT_TOKENS, evenly spread; all of them where there are fewer, and how often labels are drawn."""
    most = max(1, GRADIENT_TOKENS // calibration.length)
    if calibration.count < most:
        return calibration, min(DRAWS, most // calibration.count)
    places = torch.arange(most) * calibration.count // most
    first = tuple(calibration.first_target[place] for place in places)
    return Windows(tokens=calibration.tokens[places], first_target=first), 1


class _Walk:
    """Gradients are float32 [draws, windows, length, width]."""

    def __init__(self, model: BlockModel, weights: Weights, calibration: Windows, folder: Path, group: Group) -> None:
        self._model, self._weights, self._group = model, weights, group
        windows, self._draws = _chosen(calibration)
        self._batch = max(1, gradient_batch_tokens(str(model.device)) // windows.length)
        share = windows.share(group.rank, group.size, self._batch)
        self._windows = windows.only(share)
        # of every draw by the window alone, whoever carries it
        self._seeds = [
            range(_SEED + draw * windows.count, _SEED + (draw + 1) * windows.count)[share]
            for draw in range(self._draws)
        ]
        self._arguments = Arguments(model)
        # of all windows, though it carries a share: whoever has none has an empty one
        self._companions = Companions(model, folder / "companions", [windows], self._batch)
        shape = (self._windows.count, windows.length, model.passage.layout.width)
        self.kept = Kept(folder, shape, group)

    def through(self, parts: Sequence[Part], telling: Telling) -> None:
        """Forth through all parts, back through the blocks; what an earlier process has done is passed over."""
        done, gradient = self.kept.taken_up()
        back = [part for part in reversed(parts) if part.kind is PartKind.BLOCK]
        with telling("gradients, 1 of 2: forth", len(parts), "parts") as advance:
            for number, part in enumerate(parts):
                if number >= done:
                    with self._together(f"carry the calibration through {part.name}"):
                        gradient = self._forth(number, part, parts[0])
                        self.kept.step(number + 1, gradient)
                advance(1)
        self.kept.drop(len(back))  # what the head was given
        with telling("gradients, 2 of 2: back", len(back), "blocks") as advance:
            for number, part in enumerate(back, start=len(parts)):
                if number >= done:
                    self._back(number, part, gradient)
                advance(1)

    def _forth(self, number: int, part: Part, embedding: Part) -> torch.Tensor:
        """Through one part: the inputs of the next one are kept. Gives the gradient of the loss behind the head, else nothing."""
        with self._entered(part):
            match part.kind:
                case PartKind.EMBEDDING:
                    self._companions.make("base")
                    after = self.kept.inputs(number)
                    for some in self._batches():
                        after[some] = self._model.embed(self._windows.tokens[some]).cpu()
                case PartKind.BLOCK:
                    before, after = self.kept.inputs(number - 1), self.kept.inputs(number)
                    for some in self._batches():
                        rows, arguments = self._rows(before, some), self._arguments_of(part, some)
                        after[some] = self._model.run_block(part.index, rows, arguments, {}).cpu()
                case PartKind.HEAD:
                    return self._at_head(self.kept.inputs(number - 1), embedding)
        return NOTHING

    def _at_head(self, outputs: torch.Tensor, embedding: Part) -> torch.Tensor:
        """The gradient of the loss with respect to the last block's outputs."""
        if not self._model.tied:
            return self._of_loss(outputs)
        table = self._weights(embedding)
        self._model.install({name: table[name] for name in table if self._model.serves_head(name)})
        try:
            return self._of_loss(outputs)
        finally:
            self._model.remove(embedding)

    def _back(self, number: int, part: Part, gradient: torch.Tensor) -> None:
        """gradient: at the block's output; becomes that at its input."""
        with self._together(f"pass gradients back through {part.name}"):
            sums = OutputSums(self._model.linear_weights(part), self._model.device)
            inputs = self.kept.inputs(part.index)
            with self._entered(part), sums.listening():
                for some in self._batches():
                    gradient[:, some] = self._through(part, some, inputs, gradient, sums.next_batch)
            _refuse_infinite(gradient, f"at the inputs of {part.name}")
        with self._together(f"sum up the gradients of {part.name}"):
            bands = sums.bands(self._group)
        with self._together(f"keep the products of the gradients of {part.name}"):
            self.kept.keep_bands(part, bands)
            self.kept.step(number + 1, gradient)
            self.kept.drop(part.index)

    @contextmanager
    def _entered(self, part: Part) -> Iterator[None]:
        """Inside, the part has its weights."""
        self._model.enter(part, self._weights)
        try:
            yield
        finally:
            self._model.remove(part)

    def _through(
        self, part: Part, some: slice, inputs: torch.Tensor, gradient: torch.Tensor, passed: Callable[[], None]
    ) -> torch.Tensor:
        """Of some windows, in all draws. passed: called behind each draw."""
        rows = self._rows(inputs, some).requires_grad_()
        given = rows.clone()  # a block may write into what it is given
        output = self._model.block_output(part.index, given, self._arguments_of(part, some), {})
        found = torch.empty((self._draws, *rows.shape))
        for draw, own in enumerate(gradient[:, some]):
            further = draw + 1 < self._draws
            (found[draw],) = torch.autograd.grad(output, rows, own.to(output.device), retain_graph=further)
            passed()
        return found

    def _of_loss(self, outputs: torch.Tensor) -> torch.Tensor:
        """Of the log-likelihood of labels that are drawn, with respect to the last block's outputs."""
        gradient = torch.empty((self._draws, *outputs.shape))
        size = max(16, logit_bytes(str(self._model.device)) // (4 * self._model.vocab_size))
        for number in range(len(outputs)):
            generators = [torch.Generator().manual_seed(seeds[number]) for seeds in self._seeds]
            for first in range(0, self._windows.length, size):
                some = slice(first, first + size)
                rows = self._rows(outputs[number], some).requires_grad_()
                gradient[:, number, some] = _gradients(rows, self._model.head_output(rows).float(), generators)
        _refuse_infinite(gradient, "at the head")
        return gradient

    @contextmanager
    def _together(self, does: str) -> Iterator[None]:
        """Raise Unsupported in every process where something fails in one of them, on the way or where others wait for it."""
        try:
            with foreign("torch", does, then=_INSTEAD, kind=Unsupported), _told_shortages(does):
                yield
            self._group.all_gather(None)
        except FailedElsewhere:
            raise
        except Unsupported as error:
            everywhere: list[Failed | None] = [*self._group.all_gather(Failed(str(error)))]
            first = next(filter(None, everywhere))
            raise Unsupported(first.told) from error

    def _arguments_of(self, part: Part, some: slice) -> BlockArguments:
        """As a pass back can go through them: those that were noted in inference mode cannot be."""
        noted = self._arguments.of(self._windows.length, some.stop - some.start)[part.index]
        noted = noted.replaced(self._companions.of("base", part.index, self._windows.tokens[some]))
        return noted.with_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def _rows(self, kept: torch.Tensor, some: slice) -> torch.Tensor:
        return kept[some].to(self._model.device, torch.float32)

    def _batches(self) -> Iterator[slice]:
        for first in range(0, self._windows.count, self._batch):
            yield slice(first, min(first + self._batch, self._windows.count))


@contextmanager
def _told_shortages(does: str) -> Iterator[None]:
    """What runs out here costs the variants that asked for the pass, and no others."""
    try:
        yield
    except HubbotError:
        raise
    except Exception as error:
        if translate_shortage(error) is None:
            raise
        msg = f"There was too little room to {does} ({said(error)}). {_INSTEAD} Or use a machine with more memory or disk."
        raise Unsupported(msg) from error


def _refuse_infinite(gradient: torch.Tensor, where: str) -> None:
    if gradient.numel() and not torch.stack(gradient.aminmax()).isfinite().all():
        msg = f"The gradients of the model's loss are not finite {where} on the calibration text. {_INSTEAD}"
        raise Unsupported(msg)


def _gradients(rows: torch.Tensor, logits: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """With respect to the rows, [draws, n, width], of the log-likelihood of one label drawn for each by the logits, float32
    [n, vocab].
    """
    likely = logits.log_softmax(-1)
    sums = likely.detach().exp().cumsum(-1)
    found = torch.empty((len(generators), *rows.shape))
    for draw, generator in enumerate(generators):
        uniform = torch.rand((len(rows), 1), generator=generator).to(logits.device)
        labels = torch.searchsorted(sums, uniform * sums[:, -1:]).clamp_max(logits.shape[-1] - 1)
        further = draw + 1 < len(generators)
        (found[draw],) = torch.autograd.grad(likely.gather(1, labels).sum(), rows, retain_graph=further)
    return found
