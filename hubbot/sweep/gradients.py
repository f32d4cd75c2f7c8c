"""What errors of the layers' outputs do to the loss of the whole model: a pass forth and one back, before the sweep.

Forth, every block's inputs are kept on the disk. At the head labels are drawn from the model's own predictions, so that the
gradients' products are the Fisher information, which for small errors is the divergence. Back, block by block, each
is computed again, and its layers' gradients are summed. One block is resident at a time, whatever the model's size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hubbot.errors import Unsupported
from hubbot.formats.protocol import Band
from hubbot.machine.shortage import translated_shortages
from hubbot.model.foreign import foreign
from hubbot.model.parts import Part
from hubbot.sweep.arguments import Arguments
from hubbot.sweep.batches import DRAWS, GRADIENT_TOKENS, gradient_batch_tokens, logit_bytes
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.given import BlockArguments
from hubbot.sweep.group import Group
from hubbot.sweep.outputs import OutputSums
from hubbot.sweep.windows import Windows

__all__ = ["bands_of", "measure_gradients"]

_KEPT = torch.bfloat16  # of the blocks' inputs: the gradients' means are over far fewer tokens than would show it
_SEED = 1
_INSTEAD = "Leave -e2e out of the variants' names."

Weights = Callable[[Part], Mapping[str, torch.Tensor]]


def measure_gradients(
    model: BlockModel, parts: Sequence[Part], weights: Weights, calibration: Windows, folder: Path, group: Group
) -> None:
    """Let `bands_of` know every block's bands, of part of the calibration; nothing is done where it knows them all.

    model: without weights, as it is left. weights: of a part. folder: where they are kept; a pass that was killed is made
    anew. Raises Unsupported where blocks are given more than hidden states, or nothing passes back through one.
    """
    if all(group.all_gather(folder.exists())):
        return
    passing = model.passage
    if passing.companions or any(passing.shared) or any(passing.handed):
        msg = f"Gradients pass back from block to block, and blocks of {type(model.model).__name__} are given more than the hidden states of the block before. {_INSTEAD}"
        raise Unsupported(msg)
    partial = folder.with_suffix(".partial")
    for left in (folder, partial):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    walk = _Walk(model, weights, _chosen(calibration), partial, group)
    walk.back(parts, *walk.forth(parts))
    partial.replace(folder)


def bands_of(folder: Path, part: Part, device: torch.device) -> dict[str, tuple[Band, ...]]:
    """Checkpoint name of a layer's weight -> the bands of all layers with its inputs."""
    path = folder / f"{part.name}.safetensors"
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        found: dict[str, tuple[Band, ...]] = {}
        for number, bands in enumerate(json.loads(file.metadata()["bands"])):
            own = []
            for place, rows in enumerate(bands):
                deviation = file.get_tensor(f"{number}.{place}.deviation").to(device)
                matrix = file.get_tensor(f"{number}.{place}.correlation").to(device).float()
                matrix.mul_(deviation).mul_(deviation[:, None])
                own.append(Band(rows={name: slice(*ends) for name, ends in rows.items()}, matrix=matrix))
            found |= dict.fromkeys(bands[0], tuple(own))
    return found


def _save(path: Path, bands: Mapping[str, tuple[Band, ...]]) -> None:
    """Correlations in float16, which ends far below what the solver's damping leaves of them."""
    sets = list({id(some): some for some in bands.values()}.values())
    tensors: dict[str, torch.Tensor] = {}
    for number, some in enumerate(sets):
        for place, band in enumerate(some):
            deviation = band.matrix.diagonal().sqrt()
            divisor = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
            tensors[f"{number}.{place}.deviation"] = deviation.cpu()
            tensors[f"{number}.{place}.correlation"] = (band.matrix / divisor / divisor[:, None]).half().cpu()
    rows = [[{name: (own.start, own.stop) for name, own in band.rows.items()} for band in some] for some in sets]
    save_file(tensors, path, {"bands": json.dumps(rows)})


def _chosen(calibration: Windows) -> Windows:
    """As many windows as have GRADIENT_TOKENS, evenly spread; all of them several times where there are fewer."""
    most = max(1, GRADIENT_TOKENS // calibration.length)
    if calibration.count >= most:
        places = torch.arange(most) * calibration.count // most
    else:
        places = torch.arange(calibration.count).repeat(min(DRAWS, most // calibration.count))
    return Windows(tokens=calibration.tokens[places], first_target=tuple(calibration.first_target[i] for i in places))


class _Walk:
    def __init__(self, model: BlockModel, weights: Weights, windows: Windows, folder: Path, group: Group) -> None:
        self._model, self._weights, self._folder, self._group = model, weights, folder, group
        self._batch = max(1, gradient_batch_tokens(str(model.device)) // windows.length)
        self._share = windows.share(group.rank, group.size, self._batch)
        self._windows = windows.only(self._share)
        self._arguments = Arguments(model)

    def forth(self, parts: Sequence[Part]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Each block's inputs, [windows, length, width], and the gradient of the loss at the last one's output."""
        embedding, *blocks, head = parts
        kept = [self._room(0)]
        with self._entered(embedding):
            for some in self._batches():
                kept[0][some] = self._model.embed(self._windows.tokens[some]).cpu()
        for part in blocks:
            kept.append(self._room(len(kept)))
            with self._entered(part):
                for some in self._batches():
                    rows, arguments = self._rows(kept[-2], some), self._arguments_of(part, some)
                    kept[-1][some] = self._model.run_block(part.index, rows, arguments, {}).cpu()
        with self._entered(head):
            if self._model.tied:
                table = self._weights(embedding)
                self._model.install({name: table[name] for name in table if self._model.serves_head(name)})
            gradient = self._of_loss(kept.pop())
        self._model.remove(embedding)
        self._path(len(kept)).unlink(missing_ok=True)
        return kept, gradient

    def back(self, parts: Sequence[Part], kept: list[torch.Tensor], gradient: torch.Tensor) -> None:
        """gradient: at the output of the last block; becomes that at its input, and so on to the first."""
        for part in reversed(parts[1:-1]):
            sums = OutputSums(self._model.linear_weights(part), self._model.device)
            inputs, does = kept.pop(), f"pass gradients back through {part.name}"
            with self._entered(part), self._together(does), sums.listening():
                for some in self._batches():
                    gradient[some] = self._through(part, some, inputs, gradient)
                    sums.next_batch()
            _save(self._folder / f"{part.name}.safetensors", sums.bands(self._group))
            self._path(len(kept)).unlink(missing_ok=True)

    @contextmanager
    def _entered(self, part: Part) -> Iterator[None]:
        """Inside, the part has its weights."""
        self._model.install(self._weights(part))
        yield
        self._model.remove(part)

    def _through(self, part: Part, some: slice, inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        rows = self._rows(inputs, some).requires_grad_()
        output = self._model.block_output(part.index, rows, self._arguments_of(part, some), {})
        (found,) = torch.autograd.grad(output, rows, gradient[some].to(output.device))
        return found.cpu()

    def _of_loss(self, outputs: torch.Tensor) -> torch.Tensor:
        """Of the log-likelihood of labels that are drawn, with respect to the last block's outputs; float32."""
        gradient = torch.empty(outputs.shape)
        with self._together("pass gradients back through the head"):
            for number in range(len(outputs)):
                generator = torch.Generator().manual_seed(
                    _SEED + self._share.start + number
                )  # whoever carries the window
                size = max(16, logit_bytes(str(self._model.device)) // (4 * self._model.vocab_size))
                for first in range(0, self._windows.length, size):
                    some = slice(first, first + size)
                    rows = self._rows(outputs[number], some).requires_grad_()
                    gradient[number, some] = _gradient(rows, self._model.head_output(rows).float(), generator)
        return gradient

    @contextmanager
    def _together(self, does: str) -> Iterator[None]:
        """Raise Unsupported in every process where something fails in one of them."""
        told: str | None = None
        try:
            with foreign("torch", does, then=_INSTEAD, kind=Unsupported), translated_shortages(self._folder):
                yield
        except Unsupported as error:
            told = str(error)
        if failed := next(filter(None, self._group.all_gather(told)), None):
            raise Unsupported(failed)

    def _arguments_of(self, part: Part, some: slice) -> BlockArguments:
        """As a pass back can go through them: those that were noted in inference mode cannot be."""
        noted = self._arguments.of(self._windows.length, some.stop - some.start)[part.index]
        return noted.with_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def _rows(self, kept: torch.Tensor, some: slice) -> torch.Tensor:
        return kept[some].to(self._model.device, torch.float32)

    def _batches(self) -> Iterator[slice]:
        for first in range(0, self._windows.count, self._batch):
            yield slice(first, min(first + self._batch, self._windows.count))

    def _room(self, number: int) -> torch.Tensor:
        """A block's inputs, mapped from a file."""
        shape = (self._windows.count, self._windows.length, self._model.passage.layout.width)
        size = shape[0] * shape[1] * shape[2]
        if not size:
            return torch.empty(shape, dtype=_KEPT)
        return torch.from_file(str(self._path(number)), shared=True, size=size, dtype=_KEPT).view(shape)

    def _path(self, number: int) -> Path:
        return self._folder / f"inputs.{number}"


def _gradient(rows: torch.Tensor, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """With respect to the rows, of the log-likelihood of one label drawn for each by the logits, float32 [n, vocab]."""
    likely = logits.log_softmax(-1)
    uniform = torch.rand((len(rows), 1), generator=generator).to(logits.device)
    sums = likely.detach().exp().cumsum(-1)
    labels = torch.searchsorted(sums, uniform * sums[:, -1:]).clamp_max(logits.shape[-1] - 1)
    (found,) = torch.autograd.grad(likely.gather(1, labels).sum(), rows)
    return found.cpu()
