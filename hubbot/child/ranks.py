"""One sweep on several cards: a process a card, variants dealt out by their cost, one answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TypeAlias, TypeVar

import torch

from hubbot.child.messages import MakeAnswer, MakeQuestion
from hubbot.domain import Conversations, Variant
from hubbot.errors import HubbotError
from hubbot.formats import calibration_needs
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Needs
from hubbot.machine.shortage import translated_shortages
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings
from hubbot.sweep.exchange import Exchange, exchanges
from hubbot.sweep.group import Group

__all__ = ["FOLDER", "deal", "make_together"]

V = TypeVar("V")

MakeOn: TypeAlias = Callable[[MakeQuestion, str, Group], MakeAnswer]

FOLDER = "rank-*"  # in the sweep's work folder: what the second process and those after it keep

# Seconds on one card for a block of Llama 3 8B, docs/benchmarks.md: rounding by the Hessian, and everything else.
_SOLVED, _ELSE = 0.7, 0.2
_WEIGHED = 2  # times as long by the loss of the whole model, docs/quality.md; timed on a CPU alone
_ONE_CARD = "With --device cuda:0 one card does it all."


def make_together(question: MakeQuestion, devices: Sequence[str], make: MakeOn) -> MakeAnswer:
    """What `make` makes on one device; this process is the first of as many as there are devices or hands to deal out."""
    hands = deal(parse_variants(",".join(question.variants)), len(devices), question.settings)
    context = get_context("spawn")
    group = exchanges(len(hands), context)
    questions = [_of_rank(question, rank, hand) for rank, hand in enumerate(hands)]
    answers: dict[int, Connection] = {}
    processes: dict[int, SpawnProcess] = {}
    allowed = os.sched_getaffinity(0)
    for rank in range(1, len(hands)):
        os.sched_setaffinity(0, _cores_of(rank, len(hands), allowed))  # which a process inherits
        answers[rank], end = context.Pipe(duplex=False)
        work = (make, questions[rank], devices[rank], group[rank], end)
        processes[rank] = context.Process(target=_work, args=work, name=f"rank-{rank}", daemon=True)
        processes[rank].start()
        group[rank].close()  # here: an end that only its process holds tells the others when it is gone
        end.close()
    os.sched_setaffinity(0, _cores_of(0, len(hands), allowed))
    torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
    try:
        found = [make(questions[0], devices[0], group[0])]
        found += filter(None, (_heard(rank, answers[rank], processes[rank]) for rank in processes))
        return _joined(question, found)
    except (EOFError, ConnectionError):
        group[0].close()  # so that nobody waits for this one
        for rank, process in processes.items():
            _heard(rank, answers[rank], process)  # one of them tells why
        raise
    finally:
        os.sched_setaffinity(0, allowed)
        for process in processes.values():
            process.terminate()


def _cores_of(rank: int, size: int, allowed: Collection[int]) -> Collection[int]:
    """A share of the cores: threads of several processes on all of them would wait for each other."""
    cores = sorted(allowed)
    return cores[len(cores) * rank // size : len(cores) * (rank + 1) // size] or cores


def deal(variants: Sequence[Variant], hands: int, settings: Settings) -> list[list[Variant]]:
    """The variants in at most so many hands of about the same cost; those that share a solution in one hand."""
    alike: dict[object, list[Variant]] = {}
    for variant in variants:
        alike.setdefault(getattr(variant, "layout", variant.name), []).append(variant)
    costs = {key: _cost(group, settings) for key, group in alike.items()}
    dealt: list[list[Variant]] = [[] for _ in range(min(hands, len(alike)))]
    spent = [0.0] * len(dealt)
    for key in sorted(alike, key=lambda key: -costs[key]):
        least = spent.index(min(spent))
        dealt[least] += alike[key]
        spent[least] += costs[key]
    return dealt


def _cost(group: Sequence[Variant], settings: Settings) -> float:
    needs = calibration_needs(group, shaping(settings))
    solved = _SOLVED * (_WEIGHED if needs is Needs.GRADIENTS else 1) if needs.hessian else 0.0
    return _ELSE * len(group) + solved


def _of_rank(question: MakeQuestion, rank: int, hand: Sequence[Variant]) -> MakeQuestion:
    work = question.work / FOLDER.replace("*", str(rank)) if rank else question.work
    work.mkdir(exist_ok=True)
    return replace(question, work=work, variants=tuple(variant.name for variant in hand))


def _work(make: MakeOn, question: MakeQuestion, device: str, group: Exchange, end: Connection) -> None:
    """What a further process does: its answer goes back, or the error that kept it from one; None if that was another's."""
    try:
        with translated_shortages(question.work):
            end.send(make(question, device, group))
    except (EOFError, ConnectionError):
        end.send(None)
    except HubbotError as error:
        end.send(error)
    except Exception as error:
        end.send(HubbotError(f"The process of {device} failed with {type(error).__name__}: {error}. {_ONE_CARD}"))
        raise


def _heard(rank: int, end: Connection, process: SpawnProcess) -> MakeAnswer | None:
    """The answer of a process. Raises its error, and HubbotError where it ended without a word."""
    with suppress(EOFError):
        found: MakeAnswer | HubbotError | None = end.recv()
        if isinstance(found, HubbotError):
            raise found
        return found
    process.join()
    msg = (
        f"The process of card {rank} ended with {process.exitcode} and without an answer. Where that is -9 the machine's memory "
        f"is the likeliest reason: ask for fewer variants at a time. {_ONE_CARD}"
    )
    raise HubbotError(msg)


def _joined(question: MakeQuestion, answers: Sequence[MakeAnswer]) -> MakeAnswer:
    """One answer, in the question's order. Steps took as long as the slowest process needed."""
    made = {name: found for answer in answers for name, found in answer.made.items()}
    return replace(
        answers[0],
        made={name: made[name] for name in question.variants if name in made},
        failed=_united([answer.failed for answer in answers]),
        seconds=max((answer.seconds for answer in answers), key=lambda steps: sum(steps.values())),
        references=_united([answer.references for answer in reversed(answers)]),
        conversations=Conversations.together(answer.conversations for answer in answers),
    )


def _united(found: Sequence[Mapping[str, V]]) -> dict[str, V]:
    return {name: value for each in found for name, value in each.items()}
