"""Builds the Dockerfile with buildah and runs its image with podman as a runner runs a docker action.

Nothing is pulled: where no registry can be reached the base is a Debian with Python 3.11, made by
mmdebstrap, under a local name that is given to the Dockerfile's `BASE`. All state lies in one folder,
`HUBBOT_CONTAINERS` or one in the temporary directory, and `python tests/container/engine.py clean` removes it.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ.get("HUBBOT_CONTAINERS", Path(tempfile.gettempdir()) / "hubbot-containers"))
BASE = "localhost/hubbot-base:bookworm"
IMAGE = "localhost/hubbot:test"
TOOLS = ("buildah", "podman", "crun", "mmdebstrap", "unshare")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def missing() -> str | None:
    """Why images cannot be built on this machine, or None."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install buildah podman crun mmdebstrap)"
    if os.geteuid() != 0:
        return "building with chroot isolation needs root here"
    return None


def environment() -> dict[str, str]:
    """buildah's and podman's settings: own storage, host network, no cgroups (they may be read-only)."""
    HOME.mkdir(parents=True, exist_ok=True)
    storage, containers = HOME / "storage.conf", HOME / "containers.conf"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[
        1
    ]  # open files; where a limit is set, a container may not pass it
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{HOME}/storage"\nrunroot = "{HOME}/run"\n')
    containers.write_text(
        '[containers]\ncgroups = "disabled"\nnetns = "host"\n'
        f'default_ulimits = ["nofile={most}:{most}", "nproc=4096:4096"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "crun"\n'
    )
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(containers)}


def call(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(), text=True, **options)  # type: ignore[call-overload]


def base_image() -> str:
    """The stand-in base, made once: Debian bookworm, Python 3.11 and pip, nothing else."""
    if call("podman", "image", "exists", BASE).returncode == 0:
        return BASE
    tarball = HOME / "base.tar"
    mirror = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    links = 'for p in python python3; do ln -sf /usr/bin/python3.11 "$1/usr/local/bin/$p"; done'
    call(
        "mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3,python3-pip,python3-venv",
        '--aptopt=APT::Install-Recommends "false"', f"--customize-hook={links}",
        "bookworm", str(tarball), mirror, check=True,
    )  # fmt: skip
    paths = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    call("podman", "import", "-q", "--change", paths, str(tarball), BASE, check=True)
    tarball.unlink()
    return BASE


def pip_mounts() -> list[str]:
    """What pip needs inside of a build to reach what pip reaches here: certificates, local wheels."""
    lines, mounts = ["[global]"], []
    if CERTIFICATES.exists():
        lines.append(f"cert = {CERTIFICATES}")
        mounts += ["-v", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    if wheels := local_wheels():
        lines.append(f"find-links = {' '.join(map(str, wheels))}")
        mounts += [part for place in wheels for part in ("-v", f"{place}:{place}:ro")]
    conf = HOME / "pip.conf"
    conf.write_text("\n".join(lines) + "\n")
    return [*mounts, "-v", f"{conf}:/etc/pip.conf:ro"]


def local_wheels() -> list[Path]:
    """Folders of wheels that pip looks into on this machine."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
    )
    told = f"{os.environ.get('PIP_FIND_LINKS', '')} {asked.stdout}".split()
    return sorted({Path(word) for word in told if word.startswith("/") and Path(word).is_dir()})


def build(
    *, target: str | None = None, tag: str = IMAGE, arguments: tuple[str, ...] = (), own_llama: bool = False
) -> float:
    """Build the Dockerfile with torch for the CPU; returns seconds. Finished layers are kept for the next build.

    own_llama: take this machine's llama.cpp in place of the stage that builds it.
    """
    base = base_image()
    dockerfile = HOME / "Dockerfile"
    text = (ROOT / "Dockerfile").read_text()
    if own_llama:
        place = llama_image()
        text = re.sub(
            r"^FROM \$\{BASE\} AS llama\n.*?(?=^# --- )",
            f"FROM {place} AS llama\n\n",
            text,
            flags=re.MULTILINE | re.DOTALL,
        )
    dockerfile.write_text(text)
    pairs = [f"BASE={base}", "TORCH=2.13.0+cpu", "SOURCE_DATE_EPOCH=1700000000", *arguments]
    started = time.monotonic()
    call(
        "buildah", "build", "--isolation", "chroot", "--network", "host", "--pull=never", "--layers",
        *pip_mounts(), *(part for pair in pairs for part in ("--build-arg", pair)),
        *(["--target", target] if target else []), "-f", str(dockerfile), "-t", tag, str(ROOT), check=True,
    )  # fmt: skip
    return time.monotonic() - started


def llama_image() -> str:
    """An image that holds this machine's llama.cpp where the Dockerfile would have built it."""
    from hubbot import llamacpp

    here = llamacpp.find()
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "llama.cpp"
        shutil.copytree(here.bin, into / "build" / "bin", symlinks=True)
        shutil.copytree(here.bindings, into / "bindings")
        for name in ("conversion", "gguf-py", "ggml/include", "ggml/src"):
            shutil.copytree(here.source / name, into / "source" / name)
        (Path(folder) / "Dockerfile").write_text("FROM scratch\nCOPY llama.cpp /opt/llama.cpp\n")
        call("buildah", "build", "--isolation", "chroot", "-t", "localhost/hubbot-llama:own", folder, check=True)
    return "localhost/hubbot-llama:own"


def run_container(
    *arguments: str, options: tuple[str, ...] = (), timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """`podman run` of the image; options are podman's, arguments the container's. It has one thread where these tests have."""
    # crun refuses a machine with both cgroup versions mounted: hide one in a mount namespace of our own
    alone = 'umount /sys/fs/cgroup/unified 2>/dev/null || true; exec "$@"'
    return call(
        "unshare", "-m", "--propagation", "private", "sh", "-c", alone, "_",
        "podman", "run", "--rm", "--pull", "never", "--network", "host", "-e", "OMP_NUM_THREADS", *options, IMAGE, *arguments,
        capture_output=True, timeout=timeout,
    )  # fmt: skip


def clean() -> None:
    call("buildah", "rm", "--all", stdout=subprocess.DEVNULL)
    call("podman", "rmi", "--all", "--force", stdout=subprocess.DEVNULL)
    shutil.rmtree(HOME, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("build", "clean"))
    parser.add_argument("--target")
    parser.add_argument("--tag", default=IMAGE)
    parser.add_argument("--build-arg", action="append", default=[])
    given = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    if given.command == "clean":
        clean()
        return
    seconds = build(target=given.target, tag=given.tag, arguments=tuple(given.build_arg))
    print(f"built in {seconds:.0f} s")


if __name__ == "__main__":
    main()
