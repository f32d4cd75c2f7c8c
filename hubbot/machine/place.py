"""Where hubbot runs, and how that place is given a GPU. docs/github.md shows the same sentences."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

__all__ = ["REMEDIES", "Place", "place"]


class Place(StrEnum):
    ACTION = "a step with `uses: hubbot/hubbot`"
    JOB_CONTAINER = "a job container"
    CONTAINER = "a plain container"
    MACHINE = "no container"


REMEDIES: dict[Place, str] = {
    Place.ACTION: "This docker action got no GPU, and cannot ask for one. Make nvidia the default runtime of the runner's Docker: "
    "`sudo nvidia-ctk runtime configure --runtime=docker --set-as-default && sudo systemctl restart docker`. "
    "Or use the reusable workflow, whose job container asks for the GPU itself.",
    Place.JOB_CONTAINER: "This job container got no GPU. Start it with `container: {options: --gpus all}`; in the reusable "
    "workflow that is the variable HUBBOT_GPU, empty or `--gpus all`. The runner needs the NVIDIA Container Toolkit: "
    "`sudo apt-get install -y nvidia-container-toolkit && sudo nvidia-ctk runtime configure --runtime=docker && "
    "sudo systemctl restart docker`.",
    Place.CONTAINER: "This container got no GPU. Start it with `docker run --gpus all`, on a host with the NVIDIA driver and "
    "the NVIDIA Container Toolkit.",
    Place.MACHINE: "No NVIDIA driver answers on this machine. Install it (`sudo ubuntu-drivers install` on Ubuntu), restart, "
    "and see that `nvidia-smi` lists the GPU. Without one, hubbot uses the CPU.",
}

_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))  # Docker's and podman's


def place(environ: Mapping[str, str], marks: tuple[Path, ...] = _MARKS) -> Place:
    """Where this process runs. A docker action's workspace is /github/workspace, a job container's lies in /__w."""
    contained = any(mark.exists() for mark in marks)
    if environ.get("GITHUB_ACTIONS") == "true":
        workspace = environ.get("GITHUB_WORKSPACE", "")
        if workspace == "/github/workspace":
            return Place.ACTION
        if contained or workspace.startswith("/__w/"):
            return Place.JOB_CONTAINER
    return Place.CONTAINER if contained else Place.MACHINE
