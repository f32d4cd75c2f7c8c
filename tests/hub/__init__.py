"""A Hub server for tests: real files, commits, branches and pull requests over HTTP on loopback.

    with Hub() as hub:
        token = hub.user("ada")
        hub.model("ada/tiny", {"config.json": "{}"})
        HfApi(endpoint=hub.endpoint, token=token).model_info("ada/tiny")

`python -m tests.hub --port 8080 --user ada:hf_ada` runs it as a program.
"""

from tests.hub.faults import Fault
from tests.hub.server import Hub

__all__ = ["Fault", "Hub"]
