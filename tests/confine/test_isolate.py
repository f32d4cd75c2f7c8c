"""hubbot.confine.isolate: what the child cannot do, and that it can still do its work."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from hubbot import llamacpp
from hubbot.confine import isolate
from hubbot.confine.environment import confined
from hubbot.confine.isolate import call
from hubbot.confine.keeper import NAMESPACE
from hubbot.confine.places import HUBBOT, system_places
from hubbot.confine.stage import Stage
from hubbot.errors import BudgetExceeded, HubbotError, ToolMissing, UnsafeSource
from hubbot.machine import measure_machine
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


def test_threads_wait_passively_unless_the_environment_says_otherwise():
    assert confined({}, home=Path("/w"))["OMP_WAIT_POLICY"] == "passive"
    assert confined({"OMP_WAIT_POLICY": "active"}, home=Path("/w"))["OMP_WAIT_POLICY"] == "active"
    assert confined({}, home=Path("/w"))["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


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


_WALLS = b'{"files": "none", "network": "seccomp", "rights": "none"}\n'


def test_an_unknown_error_class_or_garbage_does_not_choose_what_is_raised():
    with pytest.raises(HubbotError) as caught:
        isolate._judge(stage("t"), _WALLS + json.dumps({"error": "SystemExit", "message": "0"}).encode(), 1)
    assert type(caught.value) is HubbotError
    for garbage in (b"[" * 100_000, _WALLS + b"[" * 100_000, _WALLS):
        with pytest.raises(HubbotError, match="gave no answer"):
            isolate._judge(stage("t"), garbage, 1)


def test_walls_are_believed_where_they_are_said_before_anything_of_a_strangers_is_read():
    later = json.dumps({"walls": {"files": "landlock 9", "network": "seccomp", "rights": "files only"}}).encode()
    with pytest.raises(HubbotError, match="gave no answer"):
        isolate._judge(stage("t"), _WALLS + later + b"\n1", 0)
    assert isolate._judge(stage("t"), _WALLS + b"{}\n1", 0).walls.files == "none"


@pytest.mark.usefixtures("walled")
def test_owner_mode_times_and_attributes_of_files_are_left_alone_outside_and_inside(inside, tmp_path):
    places = tmp_path / "outside", tmp_path / "work" / "inside"
    (tmp_path / "work").mkdir()
    for place in places:
        place.write_text("kept")
        place.chmod(0o640)
    before = [place.stat() for place in places]
    ways = ["chmod", "utime", "chown", "xattr"]
    stopped = inside("attempts", [{"do": way, "path": str(place)} for place in places for way in ways]).value
    assert (
        stopped == ["done", "done", "PermissionError", "PermissionError"] * 2
    )  # copying needs the first two to answer
    assert inside("attempt", {"do": "fchmod", "path": str(places[1])}).value == "done"
    for place, was in zip(places, before, strict=True):
        now = place.stat()
        assert (now.st_mode, now.st_uid, now.st_mtime, now.st_ctime) == (
            was.st_mode,
            was.st_uid,
            was.st_mtime,
            was.st_ctime,
        )
    to = str(tmp_path / "work" / "copy")
    assert inside("copy", {"path": str(places[1]), "to": to}).value == to


@pytest.mark.usefixtures("walled")
def test_no_file_is_made_that_runs_as_its_owner(inside, tmp_path):
    path = str(tmp_path / "work" / "file")
    assert (
        inside("attempts", [{"do": way, "path": path} for way in ("setuid-file", "setuid-node")]).value
        == ["PermissionError"] * 2
    )


@pytest.mark.usefixtures("walled")
def test_no_datagram_reaches_a_socket_by_its_path(inside, tmp_path):
    path = tmp_path / "work" / "log.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.setblocking(False)
        ways = ["datagram-by-path", "datagram-of-a-pair"]
        assert inside("attempts", [{"do": way, "path": str(path)} for way in ways]).value == ["PermissionError"] * 2
        with pytest.raises(BlockingIOError):
            server.recv(1)


@pytest.mark.usefixtures("walled")
def test_other_processes_namespaces_and_memory_that_outlives_it_are_out_of_reach(inside):
    ways = ["foreign-limits", "foreign-priority", "user-namespace", "shared-memory", "system-v-memory"]
    stopped = inside("attempts", [{"do": way} for way in [*ways, "own-limits"]]).value
    assert stopped == ["PermissionError"] * len(ways) + ["done"]


@pytest.mark.usefixtures("walled")
def test_programs_that_the_child_starts_can_use_a_gpu_and_cannot_set_the_kernel(inside):
    found = inside("attempts", [{"do": "name-thread-of-grandchild"}])
    settings = [f"/proc/{name}" for name in ("sys/kernel/core_pattern", "sys/vm/drop_caches", "sysrq-trigger")]
    ways = [{"do": "append", "path": path} for path in settings if Path(path).exists()]
    assert all(stopped in ("PermissionError", "OSError") for stopped in inside("attempts", ways).value)
    if found.walls.processes == NAMESPACE:
        assert found.value == ["done"]


def test_memory_files_and_processor_time_have_limits(inside, tmp_path):
    ways = [
        {"do": "large-memory", "bytes": psutil.virtual_memory().total + 2**33},
        {"do": "large-file", "path": str(tmp_path / "work" / "file"), "bytes": 2**43 + 1},
        {
            "do": "large-file",
            "path": str(tmp_path / "work" / "file"),
            "bytes": 2**42,
        },  # a plan's, with a hole for a model
    ]
    assert inside("attempts", ways).value == ["PermissionError", "OSError", "done"]
    cores = measure_machine(tmp_path, "cpu").cores
    assert inside("limits", memory=2**30, seconds=100).value == [6 * 2**30 + cores * 2**26, 100 * cores + 1]


def test_what_the_child_started_has_ended_when_the_answer_is_there(inside, tmp_path):
    lock = tmp_path / "work" / "lock"
    assert inside("leave_behind", {"lock": str(lock)}).value == "answered"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_child_that_does_not_end_is_ended_when_its_time_is_over(inside, tmp_path):
    with pytest.raises(HubbotError, match="did not end in the time"):
        inside("wait", {"pid": str(tmp_path / "work" / "pid")}, seconds=2)


def test_the_childs_end_counts_whoever_holds_the_pipe_open(monkeypatch):
    monkeypatch.setattr(isolate, "_LOOK", 0.01)
    told, tell = os.pipe()
    child = subprocess.Popen(["true"])
    os.write(tell, b"answer")
    assert isolate._read(told, child, 600) == (b"answer", True)
    os.close(tell)
    os.close(told)


def _until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _free(lock):
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_child_and_what_it_started_end_with_its_parent(tmp_path, number):
    lock = tmp_path / "work" / "lock"
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's job may ignore it
        "import sys; from pathlib import Path; from typing import Any;"
        "from hubbot.confine.isolate import call; from hubbot.confine.stage import Stage;"
        f"call(Stage(target='inside:linger', question=Any, answer=Any), {{'lock': {str(lock)!r}}}, work=Path({str(tmp_path / 'work')!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(TESTS)})
    _until(lambda: lock.exists() and not _free(lock))
    parent.send_signal(number)
    assert parent.wait(timeout=30) == -number
    _until(lambda: _free(lock))


def test_a_signal_that_comes_while_another_is_taken_is_handed_on_too(monkeypatch):
    class Timer:
        """A thread that takes its time to start, as on a busy machine."""

        def __init__(self, *_: Any) -> None:
            self.started = 0

        def start(self) -> None:
            self.started += 1
            assert self.started == 1
            signal.raise_signal(signal.SIGTERM)

        def cancel(self) -> None:
            pass

    sent: list[int] = []
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    monkeypatch.setattr(threading, "Timer", Timer)
    child: Any = SimpleNamespace(send_signal=sent.append)
    try:
        with isolate._forwarding(child):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sent == [signal.SIGTERM, signal.SIGTERM]
    assert taken == [signal.SIGTERM]


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
    monkeypatch.setattr(isolate, "_exchange", lambda *_: (_WALLS + b"{}\n1", 0))
    isolate._warn.cache_clear()
    for _ in range(3):
        assert call(stage("echo"), None, work=tmp_path).walls.network == "seccomp"
    assert capsys.readouterr().err.count("files: none") == 1
    isolate._warn.cache_clear()


def test_a_compiler_below_opt_that_the_path_names_can_be_used_and_nothing_else_of_opt_be_read():
    places = system_places({"PATH": "/opt/gcc/bin:/home/ada/.local/bin", "PYTHONPATH": ""})
    assert {Path("/opt/gcc/bin"), Path("/opt/gcc/libexec")} <= set(places)
    assert not {Path("/opt"), Path("/opt/gcc")} & set(places)
    assert not [place for place in places if place.is_relative_to("/home/ada")]
