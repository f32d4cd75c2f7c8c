"""The last script of release.yml, run against a repository on disk; the registry and gh answer from a few lines of shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.workflows.test_workflows import ROOT

RELEASE = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
[SCRIPT] = [step["run"] for step in RELEASE["jobs"]["tags"]["steps"] if "run" in step]
DOCKER = """#!/bin/sh
echo "docker $*" >> "$TOLD"
case "$3" in inspect) printf '{"digest":"sha256:%s"}' "$DIGEST" ;; esac
"""
GH = """#!/bin/sh
echo "gh $*" >> "$TOLD"
case "$1 $2" in "release view") test -f "$TOLD.released" ;; "release create") touch "$TOLD.released" ;; esac
"""


class Release:
    """A bare repository that plays GitHub, and a fresh checkout of it for each attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.remote, self.told = folder, folder / "remote.git", folder / "told"
        programs = folder / "bin"
        programs.mkdir()
        for name, text in {"docker": DOCKER, "gh": GH}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        who = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.environ = {**who, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "TOLD": str(self.told),
                        "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}  # fmt: skip
        self.git("init", "--quiet", "--bare", "--initial-branch", "main", str(self.remote), cwd=folder)
        first = self.checkout("first")
        (first / ".github" / "workflows").mkdir(parents=True)
        for name in ("action.yml", "CHANGELOG.md", ".github/workflows/quantize.yml"):
            (first / name).write_bytes((ROOT / name).read_bytes())
        self.git("checkout", "--quiet", "-B", "main", cwd=first)
        self.git("add", "--all", cwd=first)
        self.git("commit", "--quiet", "--message", "first", cwd=first)
        self.git("push", "--quiet", str(self.remote), "main", cwd=first)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(["git", *arguments], cwd=cwd or self.remote, env=self.environ, capture_output=True, text=True, check=True)  # fmt: skip
        return done.stdout.strip()

    def checkout(self, name: str) -> Path:
        self.git("clone", "--quiet", str(self.remote), name, cwd=self.folder)
        return self.folder / name

    def attempt(self, name: str, *, version: str = "1.2.3", digest: str = "0" * 64) -> subprocess.CompletedProcess[str]:
        given = {"VERSION": version, "IMAGE": "ghcr.io/owner/repo", "SHA": "f" * 40, "REMOTE": str(self.remote),
                 "DIGEST": digest, "GH_TOKEN": "ghs_x"}  # fmt: skip
        return subprocess.run(["bash", "-e", "-c", SCRIPT], cwd=self.checkout(name), env=self.environ | given,
                              capture_output=True, text=True, check=False)  # fmt: skip

    def tags(self) -> dict[str, str]:
        return {tag: self.git("rev-parse", f"{tag}^{{commit}}") for tag in self.git("tag").split()}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def test_the_tagged_commit_names_the_image_by_digest_and_touches_nothing_but_the_action(release):
    """GitHub refuses a push by the job's token that changes a workflow."""
    done = release.attempt("one")
    assert done.returncode == 0, done.stderr
    assert release.git("diff", "--name-only", "main", "v1.2.3") == "action.yml"
    reference = f"docker://ghcr.io/owner/repo@sha256:{'0' * 64}"
    assert yaml.safe_load(release.git("show", "v1.2.3:action.yml"))["runs"]["image"] == reference
    tags = release.tags()
    assert tags.keys() == {"v1", "v1.2.3"}
    assert tags["v1"] == tags["v1.2.3"]


def test_the_tags_that_the_pages_use_are_pushed_for_both_images(release):
    release.attempt("one")
    told = release.told.read_text()
    for suffix in ("", "-cpu"):
        source = f"ghcr.io/owner/repo:sha-{'f' * 40}{suffix}"
        [line] = [line for line in told.splitlines() if "create" in line and line.endswith(source)]
        for tag in ("1.2.3", "1.2", "1"):
            assert f"--tag ghcr.io/owner/repo:{tag}{suffix} " in line


def test_a_second_attempt_finds_what_the_first_has_done(release):
    release.attempt("one")
    tags = release.tags()
    done = release.attempt("two")
    assert done.returncode == 0, done.stderr
    assert release.tags() == tags
    assert release.told.read_text().count("gh release create") == 1


def test_a_version_that_was_released_with_another_image_is_refused(release):
    release.attempt("one")
    tags = release.tags()
    done = release.attempt("two", digest="1" * 64)
    assert done.returncode == 1
    assert "raise the version" in done.stdout
    assert release.tags() == tags


def test_the_next_version_moves_the_major_tag(release):
    release.attempt("one")
    done = release.attempt("two", version="1.3.0", digest="1" * 64)
    assert done.returncode == 0, done.stderr
    tags = release.tags()
    assert tags["v1"] == tags["v1.3.0"] != tags["v1.2.3"]


def test_a_release_waits_for_ci_and_a_package_that_is_there_already_is_no_failure():
    [wait] = [step for step in RELEASE["jobs"]["check"]["steps"] if step.get("name", "").startswith("Wait for CI")]
    assert "gh run watch" in wait["run"]
    assert "--exit-status" in wait["run"]
    [upload] = [step for step in RELEASE["jobs"]["pypi"]["steps"] if "pypi-publish" in step["uses"]]
    assert upload["with"]["skip-existing"] is True


def test_the_images_that_the_workflows_start_from_are_tags_that_a_release_pushes():
    texts = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    assert "'ghcr.io/hubbot/hubbot:1'" in texts
    assert "'ghcr.io/hubbot/hubbot:1-cpu'" in texts
    suffixes = [entry["suffix"] for entry in RELEASE["jobs"]["image"]["strategy"]["matrix"]["include"]]
    assert suffixes == ["", "-cpu"]
