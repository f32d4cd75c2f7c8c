"""Tensors that lie in files."""

import errno
import os
from pathlib import Path

import pytest
import torch

from hubbot.sweep.mapped import mapped


def test_what_is_written_into_a_mapped_tensor_is_read_back_from_its_file(tmp_path: Path) -> None:
    mapped(tmp_path / "x", (3, 2), torch.bfloat16, written=True)[1] = 5
    assert mapped(tmp_path / "x", (3, 2), torch.bfloat16, written=False).tolist() == [[0, 0], [5, 5], [0, 0]]
    assert mapped(tmp_path / "none", (0, 2), torch.float32, written=True).shape == (0, 2)


def test_a_disk_without_room_is_told_before_a_page_is_written(tmp_path: Path) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no folder in memory whose size is known")
    shared = os.statvfs("/dev/shm")
    more = shared.f_frsize * shared.f_blocks + 2**20
    path = Path("/dev/shm") / f"hubbot-{os.getpid()}"
    try:
        with pytest.raises(OSError) as told:  # noqa: PT011 - of its number below
            mapped(path, (more,), torch.uint8, written=True)
        assert told.value.errno in (errno.ENOSPC, errno.EFBIG)
    finally:
        path.unlink(missing_ok=True)
