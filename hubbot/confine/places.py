"""What a confined process may read of the machine: the system, Python, hubbot's own modules and llama.cpp.

A list of folders and files. Of a checkout it holds the package alone, of /etc what programs need to start, and never
the working folder: a token, a settings file or a key that lies beside them is not on it.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["HUBBOT", "environment_places", "hubbot_roots", "python_places", "system_places"]

HUBBOT = Path(__file__).resolve().parents[1]

_SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /nix/store /sys /proc".split()
_OF_OPT = "rocm* nvidia* cuda* intel".split()  # drivers' and compilers' own
_OF_ETC = (
    "ld.so.cache ld.so.conf ld.so.conf.d ld.so.preload nsswitch.conf passwd group hosts localtime "
    "timezone locale.alias os-release lsb-release debian_version mime.types services protocols ssl/openssl.cnf "
    "pki/tls/openssl.cnf crypto-policies OpenCL/vendors libnl nvidia"
).split()
_OF_PREFIX = "bin lib lib64 include pyvenv.cfg".split()
_PACKAGES = ("site-packages", "dist-packages")


def system_places(environment: Mapping[str, str]) -> list[Path]:
    """What any program may read. environment: the confined process's own."""
    paths = [*map(Path, _SYSTEM), *(Path("/etc") / name for name in _OF_ETC)]
    paths += [path for name in _OF_OPT for path in Path("/opt").glob(name)]
    paths += _compilers_of_opt(environment.get("PATH", ""))
    paths += python_places()
    paths += (Path(path) for path in environment["PYTHONPATH"].split(os.pathsep) if Path(path) != HUBBOT.parent)
    paths += map(Path, environment.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    if llama := environment.get("HUBBOT_LLAMA_CPP"):
        paths += [Path(llama), Path(llama, "source"), Path(llama, "build")]  # each may be a link to somewhere else
    return _resolved(paths)


def _compilers_of_opt(search_path: str) -> list[Path]:
    """What belongs to programs below /opt that the PATH names: Triton calls a compiler, which may lie there."""
    prefixes = [Path(path).parent for path in search_path.split(os.pathsep) if path.startswith("/opt/")]
    return [prefix / name for prefix in prefixes for name in (*_OF_PREFIX, "libexec", "share")]


def python_places() -> list[Path]:
    """The interpreter, its library, the installed packages, hubbot's modules."""
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)}
    paths = [prefix / name for prefix in prefixes for name in _OF_PREFIX]
    paths += [path for path in map(Path, [*sys.path, site.getusersitepackages()]) if path.name in _PACKAGES]
    return _resolved([*paths, HUBBOT])


def environment_places(environment: Path) -> list[Path]:
    """What a program of another virtual environment reads: the environment, and the Python that it was made of."""
    base = (environment / "bin" / "python").resolve().parents[1]
    return _resolved([environment, *(base / name for name in _OF_PREFIX)])


def hubbot_roots(listed: str) -> list[str]:
    """Where a child of this process finds hubbot and what a PYTHONPATH lists, but for the working folder and those above it."""
    here = Path.cwd()
    further = [path for path in listed.split(os.pathsep) if Path(path).is_absolute()]
    kept = [path for path in further if not here.is_relative_to(Path(path).resolve())]
    return list(dict.fromkeys([str(HUBBOT.parent), *kept]))


def _resolved(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(path.resolve() for path in paths if path.is_absolute()))
