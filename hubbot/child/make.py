"""One sweep on all devices. What a walk needs takes seconds to import: each process of several does it, all at the same time."""

from __future__ import annotations

from hubbot.child.device import settle_devices
from hubbot.child.messages import MakeAnswer, MakeQuestion
from hubbot.child.ranks import make_together
from hubbot.sweep.group import ALONE, Group

__all__ = ["make", "make_on"]


def make(question: MakeQuestion) -> MakeAnswer:
    """Make and measure the question's variants in one walk over the model, on all cards that the settings' device names."""
    devices = settle_devices(question.settings.device)
    return make_on(question, devices[0]) if len(devices) == 1 else make_together(question, devices, make_on)


def make_on(question: MakeQuestion, device: str, group: Group = ALONE) -> MakeAnswer:
    """As `hubbot.child.one_device` does it."""
    from hubbot.child import one_device

    return one_device.make_on(question, device, group)
