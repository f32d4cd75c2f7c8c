"""A stage as `hubbot.child.make:make` is on a machine with two cards, on two processes without any."""

from __future__ import annotations

import os

from hubbot.child.make import make_on
from hubbot.child.messages import MakeAnswer, MakeQuestion
from hubbot.child.ranks import make_together
from hubbot.errors import Unsupported
from hubbot.sweep.group import ALONE, Group

TWO = ["cpu", "cpu"]


def on_two(question: MakeQuestion) -> MakeAnswer:
    return make_together(question, TWO, make_on)


def on_two_of_which_one_refuses(question: MakeQuestion) -> MakeAnswer:
    return make_together(question, TWO, _second_refuses)


def on_three_of_which_the_last_refuses(question: MakeQuestion) -> MakeAnswer:
    return make_together(question, [*TWO, "cpu"], _last_refuses)


def on_two_of_which_one_dies(question: MakeQuestion) -> MakeAnswer:
    return make_together(question, TWO, _second_dies)


def on_two_of_which_one_fails(question: MakeQuestion) -> MakeAnswer:
    return make_together(question, TWO, _second_fails)


def _second_fails(question: MakeQuestion, device: str, group: Group = ALONE) -> MakeAnswer:
    if group.rank:
        raise RuntimeError("the driver does not start")
    return make_on(question, device, group)


def _second_refuses(question: MakeQuestion, device: str, group: Group = ALONE) -> MakeAnswer:
    if group.rank:
        raise Unsupported("the second card's own reason")
    return make_on(question, device, group)


def _last_refuses(question: MakeQuestion, device: str, group: Group = ALONE) -> MakeAnswer:
    if group.rank == 2:
        raise Unsupported("the third card's own reason")
    return make_on(question, device, group)


def _second_dies(question: MakeQuestion, device: str, group: Group = ALONE) -> MakeAnswer:
    if group.rank:
        os._exit(7)
    return make_on(question, device, group)
