"""`python -m hubbot.hub.read.stream`: rows of a Hub dataset into a file, in a process of its own.

`datasets` takes the Hub's address from the environment when it is imported and keeps it for good, so
it is given one program for each text. The request, with the token, comes as JSON on standard input; the
answer is one line of JSON on standard output.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

from hubbot.confine.walls import hide_memory
from hubbot.hub.read.rows import as_line, as_row, length
from hubbot.hub.retry import is_transient, status_of

LARGEST = 2**28  # characters; 60 million tokens, more than any calibration or evaluation reads


def main() -> None:
    hide_memory()
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = _write(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it in the user's words
        answer = {
            "error": type(error).__name__,
            "message": str(error)[:2000],
            "status": status_of(error),
            "transient": is_transient(error),
            "full": isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        }
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the readers' threads are not worth waiting for


def _write(request: dict[str, Any]) -> dict[str, Any]:
    from datasets import load_dataset  # after the environment was set; it takes seconds

    rows = load_dataset(
        request["dataset"],
        request["config"],
        split=request["split"],
        revision=request["revision"],
        token=request["token"] or False,
        streaming=True,
    )
    column, limit = request["column"], min(request["characters"] or LARGEST, LARGEST)
    count = characters = 0
    with open(request["out"], "w", encoding="utf-8") as stream:  # noqa: PTH123
        for row in rows:
            if column not in row:
                return {"columns": sorted(map(str, row))}
            found = as_row(row[column], request["kind"])
            if found is None:
                return {"type": type(row[column]).__name__}
            stream.write(as_line(found))
            count, characters = count + 1, characters + length(found)
            if characters >= limit:
                break
    return {"rows": count, "characters": characters}


if __name__ == "__main__":
    main()
