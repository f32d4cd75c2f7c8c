"""A family is added in the places that CONTRIBUTING names and nowhere else, and a whole job knows it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import options
from tests.models import make_model

ROOT = Path(__file__).parents[2]

DATACLASS = """@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    family: ClassVar[Family] = Family.RAW
    name: str = "raw-f16"
    bits: int = 16


"""


def _insert(path: Path, before: str, text: str) -> None:
    whole = path.read_text()
    assert whole.count(before) == 1, f"{path.name} has another form; tell this test where things stand now"
    path.write_text(whole.replace(before, text + before))


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of hubbot with one more family."""
    copy = tmp_path / "house"
    for name in ("hubbot", "templates"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    domain, table = copy / "hubbot" / "domain.py", copy / "hubbot" / "formats" / "__init__.py"
    _insert(domain, "\n\n# --- the job", '    RAW = "raw"\n')  # a member of Family ...
    _insert(domain, "# --- the source", DATACLASS)  # ... and the dataclass of its variants
    shutil.copytree(ROOT / "tests" / "formats" / "raw", copy / "hubbot" / "formats" / "raw")  # a folder
    _insert(table, "from hubbot.formats.family", "from hubbot.formats import raw\n")
    _insert(table, "\n\ndef calibration_needs", "FAMILIES[Family.RAW] = raw\n")  # a row
    return copy


@pytest.mark.slow
@pytest.mark.heavy
def test_a_family_in_a_folder_and_a_row_is_planned_made_measured_checked_and_described(house, tmp_path) -> None:
    model = make_model("llama", tmp_path / "tiny", tied=True)
    out = tmp_path / "out"
    environ = {**os.environ, "PYTHONPATH": str(house)}

    def hubbot(*words: str) -> str:
        command = [sys.executable, "-c", "from hubbot.cli import main; main()", *words]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    asked = options(tmp_path, variants="RAW-f16,Q8_0", out=str(out))
    planned = json.loads(hubbot("plan", str(model), *asked, "--json"))["variants"]
    hubbot("run", str(model), *asked, "--benchmark")

    record = json.loads((out / "hubbot.json").read_text())
    assert [variant["name"] for variant in record["variants"]] == ["raw-f16", "Q8_0"]
    raw = record["variants"][0]
    assert (raw["family"], raw["status"]) == ("raw", "passed")
    assert sum(file["size"] for file in raw["files"]) == planned[0]["file_bytes"]
    assert raw["load_check"]["passed"]
    assert raw["kld"]["mean"] < 1e-3
    assert raw["speed"]["generation_tokens_per_second"] > 0
    assert record["tools"]["numpy"]  # its package's version
    assert (out / "raw" / "raw-f16" / "model.safetensors").is_file()
    card = (out / "cards" / "tiny-raw" / "README.md").read_text()
    assert "raw-f16" in card
    assert "- float16" in card  # its tag
    assert ".raw{" in (out / "report.html").read_text()
