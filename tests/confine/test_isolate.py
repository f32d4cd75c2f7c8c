"""hubbot.confine.isolate: what the child cannot do, and that it can still do its work."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hubbot import llamacpp
from hubbot.confine.environment import confined
from hubbot.confine.isolate import call
from hubbot.confine.places import HUBBOT
from hubbot.confine.stage import Stage
from hubbot.errors import BudgetExceeded, HubbotError, ToolMissing, UnsafeSource
from tests.disk import small_disk

__all__ = ["small_disk"]

TESTS = Path(__file__).parents[1]
TOKENS = (
    "HF_TOKEN HUGGING_FACE_HUB_TOKEN GITHUB_TOKEN ACTIONS_RUNTIME_TOKEN ACTIONS_ID_TOKEN_REQUEST_TOKEN INPUT_HF-TOKEN "
    "INPUT_TOKEN AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID WEBHOOK_SECRET CUDA_TOKEN TORCH_PASSWORD"
).split()


def stage(function):
    return Stage(target=f"inside:{function}", question=Any, answer=Any)


@pytest.fixture
def inside(tmp_path):
    """Call a function of tests/inside.py in confinement, work folder tmp_path/work."""

    def run(function, argument=None, **options):
        environ = os.environ | {"PYTHONPATH": str(TESTS)} | dict.fromkeys(TOKENS, "hf_leaked")
        return call(stage(function), argument, work=tmp_path / "work", environ=environ, **options)

    return run


@pytest.fixture
def attempt(inside):
    return lambda do, **argument: inside("attempt", {"do": do} | argument).value


@pytest.fixture(scope="module")
def walled(tmp_path_factory):
    """Skip where the kernel builds no walls; where it does, every refusal below must hold."""
    work = tmp_path_factory.mktemp("walled")
    if not call(stage("echo"), None, work=work, environ=os.environ | {"PYTHONPATH": str(TESTS)}).walls.complete:
        pytest.skip("this kernel has no Landlock or no seccomp")


def test_values_pass_through_as_json(inside):
    value = {"a": [1, 2.5, None, True], "b": "ü\n"}
    assert inside("echo", value).value == value


def test_no_token_is_in_the_childs_environment(inside):
    seen = inside("environment").value
    assert "PATH=" in seen
    assert "hf_leaked" not in seen


def test_the_environment_is_an_allow_list():
    kept = confined({"PATH": "/bin", "UNHEARD_OF": "1", "OMP_NUM_THREADS": "2"}, home=Path("/w"))
    assert kept["PATH"] == "/bin"
    assert kept["OMP_NUM_THREADS"] == "2"
    assert "UNHEARD_OF" not in kept


def test_the_childs_home_and_caches_lie_in_the_work_folder(inside, tmp_path):
    variables = dict(line.split("=", 1) for line in inside("environment").value.split("\0") if line)
    for name in ("HOME", "HF_HOME", "TMPDIR", "XDG_CACHE_HOME"):
        assert Path(variables[name]).is_relative_to((tmp_path / "work").resolve())
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_relative_python_path_cannot_bring_in_the_models_folder():
    listed = os.pathsep.join([".", "", "/abs", str(Path.cwd()), str(Path.cwd().parent)])
    kept = confined({"PYTHONPATH": listed}, home=Path("/w"))
    assert kept["PYTHONPATH"].split(os.pathsep) == [str(HUBBOT.parent), "/abs"]


@pytest.mark.usefixtures("walled")
def test_no_connection_leaves_the_child_even_to_loopback(inside):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):  # it does listen
            pass
        ways = ["connect", "datagram", "ring", "netlink"]
        stopped = inside("attempts", [{"do": way, "port": port} for way in ways]).value
        assert stopped == ["PermissionError"] * len(ways)


@pytest.mark.usefixtures("walled")
def test_no_unix_socket_such_as_dockers_is_reachable(attempt, tmp_path):
    path = tmp_path / "work" / "daemon.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:  # it does listen
            client.connect(str(path))
        assert attempt("unix", path=str(path)) == "ConnectionRefusedError"


@pytest.mark.usefixtures("walled")
def test_files_outside_the_work_folder_are_out_of_reach(inside, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    ways = ["write", "append", "truncate", "remove", "read", "grandchild"]
    stopped = inside("attempts", [{"do": way, "path": str(outside)} for way in ways]).value
    assert stopped == ["PermissionError"] * len(ways)
    assert outside.read_text() == "kept"


@pytest.mark.usefixtures("walled")
def test_a_link_out_of_the_work_folder_does_not_lead_out(attempt, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    link = tmp_path / "work" / "home" / "link"
    assert attempt("link", path=str(link), to=str(outside)) == "done"
    assert attempt("write", path=str(link)) == "PermissionError"
    assert attempt("read", path=str(link)) == "PermissionError"


@pytest.mark.usefixtures("walled")
def test_no_link_for_the_publisher_to_follow_can_be_put_into_the_output_folder(inside, tmp_path):
    out, secret = tmp_path / "out", tmp_path / "token"
    out.mkdir()
    secret.write_text("hf_x")

    def attempt(do):
        argument = {"do": do, "path": str(out / "model.gguf"), "to": str(secret)}
        return inside("attempt", argument, writable=[out]).value

    assert attempt("link") == "PermissionError"
    assert attempt("hardlink") == "OSError"  # EXDEV, as between file systems
    assert attempt("move-link") == "PermissionError"
    assert not (out / "model.gguf").exists()
    assert attempt("write") == "done"


@pytest.mark.usefixtures("walled")
def test_readable_folders_can_be_read_and_not_written(inside, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    argument = {"path": str(model / "config.json")}
    assert inside("attempt", argument | {"do": "read"}, readable=[model]).value == "done"
    assert inside("attempt", argument | {"do": "write"}, readable=[model]).value == "PermissionError"


@pytest.mark.usefixtures("walled")
def test_of_a_checkout_hubbots_modules_alone_are_readable_and_of_etc_what_is_listed(inside, tmp_path, monkeypatch):
    """A token that lies beside hubbot.toml, where the bot is started, or in /etc."""
    folder = tmp_path / "srv"
    folder.mkdir()
    (folder / "token").write_text("hf_x")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    etc = next(
        path for path in map(Path, ("/etc/shadow", "/etc/fstab", "/etc/profile", "/etc/hostname")) if path.exists()
    )
    secrets = [folder / "token", HUBBOT.parent / "pyproject.toml", etc]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(folder)])}
    ways = [{"do": "read", "path": str(path)} for path in secrets] + [{"do": "import-hubbot"}]
    stopped = call(stage("attempts"), ways, work=tmp_path / "work", environ=environ).value
    assert stopped == ["PermissionError"] * len(secrets) + ["done"]


def test_what_a_child_leaves_in_its_home_is_not_run_before_the_next_one_has_its_walls(inside, tmp_path):
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for place in (f"home/.local/lib/{version}/site-packages", "home"):
        folder = tmp_path / "work" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("usercustomize.py", "sitecustomize.py", "evil.pth"):
            (folder / name).write_text(f"import os; open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "PYTHONNOUSERSITE=1" in inside("environment").value
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("walled")
def test_the_parents_secrets_cannot_be_read_through_proc(inside):
    ways = ["parent-environment", "parent-memory"]
    assert inside("attempts", [{"do": way} for way in ways]).value == ["PermissionError"] * len(ways)


def test_the_work_folder_can_be_written(attempt, tmp_path):
    assert attempt("write", path=str(tmp_path / "work" / "file")) == "done"
    assert (tmp_path / "work" / "file").read_text() == "x"


def test_an_error_keeps_its_class_and_message(inside):
    with pytest.raises(UnsafeSource, match=r"^the tokenizer is a symlink$"):
        inside("refuse", "the tokenizer is a symlink")


@pytest.mark.parametrize(("function", "says"), [("crash", "KeyError"), ("unserialisable", "TypeError")])
def test_a_defect_is_reported_with_its_cause(inside, function, says):
    with pytest.raises(HubbotError, match=says):
        inside(function)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("quota", "The disk under .* is full"),
        ("memory", r"Memory \(RAM\) ran out"),
        ("torch", r"Memory \(RAM\) ran out"),
        ("gpu", "GPU memory ran out .*--device cpu"),
    ],
)
def test_what_ran_out_is_told_as_no_defect(inside, what, says):
    with pytest.raises(BudgetExceeded, match=says):
        inside("run_out_of", what)


@pytest.mark.parametrize("how", ["bytes", "tensors"])
def test_a_full_disk_is_told_as_one_whoever_writes(inside, small_disk, how):
    with pytest.raises(BudgetExceeded, match=r"is full .* --out"):
        inside("fill", {"folder": str(small_disk), "how": how}, writable=[small_disk])


def test_an_answer_of_another_type_is_refused(tmp_path):
    environ = os.environ | {"PYTHONPATH": str(TESTS)}
    with pytest.raises(HubbotError, match=r"an answer that is none \(the whole: .*valid integer"):
        call(Stage(target="inside:echo", question=str, answer=int), "5", work=tmp_path / "work", environ=environ)


def test_a_killed_child_is_reported_with_the_signal(inside):
    with pytest.raises(HubbotError, match="SIGKILL"):
        inside("kill_itself")


def test_an_unknown_error_class_or_garbage_does_not_choose_what_is_raised():
    from hubbot.confine.isolate import _judge

    built = {"files": "none", "network": "none", "rights": "none"}
    with pytest.raises(HubbotError) as caught:
        _judge(stage("t"), json.dumps({"error": "SystemExit", "message": "0", "walls": built}).encode(), 1)
    assert type(caught.value) is HubbotError
    with pytest.raises(HubbotError, match="gave no answer"):
        _judge(stage("t"), b"[" * 100_000, 1)


def _parent(tmp_path):
    """A program that calls inside:wait and the pid of the confined child."""
    pid = tmp_path / "work" / "pid"
    code = (
        "import sys; from pathlib import Path; from typing import Any;"
        "from hubbot.confine.isolate import call; from hubbot.confine.stage import Stage;"
        f"call(Stage(target='inside:wait', question=Any, answer=Any), {{'pid': {str(pid)!r}}}, work=Path({str(tmp_path / 'work')!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(TESTS)})
    _until(lambda: pid.exists() and pid.read_text())
    return parent, int(pid.read_text())


def _until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _gone(pid):
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(tmp_path, number):
    parent, child = _parent(tmp_path)
    parent.send_signal(number)
    assert parent.wait(timeout=30) == -number
    _until(lambda: _gone(child))


@pytest.mark.slow
@pytest.mark.usefixtures("walled")
def test_torch_and_llama_cpp_work_inside(inside):
    assert inside("compute").value == 64.0**3
    try:
        llamacpp.find()
    except ToolMissing:
        pytest.skip("llama.cpp is not built here")
    assert inside("load_llama").value == str(llamacpp.find().bin)


def test_missing_walls_are_said_once(tmp_path, monkeypatch, capsys):
    from hubbot.confine import isolate
    from hubbot.confine.walls import Walls

    built = Walls(files="none", network="seccomp", rights="none")
    reply = json.dumps({"walls": {"files": "none", "network": "seccomp", "rights": "none"}}).encode() + b"\n1"
    monkeypatch.setattr(isolate, "_exchange", lambda *_: (reply, 0))
    isolate._warn.cache_clear()
    for _ in range(3):
        assert call(stage("echo"), None, work=tmp_path).walls == built
    assert capsys.readouterr().err.count("files: none") == 1
    isolate._warn.cache_clear()
