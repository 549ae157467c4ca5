#!/usr/bin/env python3
"""Carry out a Dockerfile's steps in a chroot, where no container engine is to be had.

    docker/dry_run.py DOCKERFILE --root ROOT [--context DIR] [--env NAME=VALUE]
        [--bind DIR] [--before COMMAND] [--then COMMAND]

ROOT is a plain Debian root (debootstrap makes one), which stands in for every base
image; it is copied, and --before makes it resemble the image. Read are ARG, ENV,
WORKDIR, COPY, RUN and USER, as they are written; the other instructions only describe
the image. Each --then is run afterwards as the image's user with its root read-only.
As root.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PASSED = ("PIP_", "http_proxy", "https_proxy", "no_proxy")
_BORROWED = ("/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
_WRITTEN = ("/tmp", "/var/cache/pgembed", "/run/pgembed")  # noqa: S108 - volumes


@dataclasses.dataclass
class Stage:
    """An image that is being made."""

    root: Path
    environment: dict[str, str]
    directory: str = "/"
    user: str = "0"


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and arguments of each instruction, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def main() -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--context", type=Path)
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--bind", action="append", default=[], type=Path)
    parser.add_argument("--before", action="append", default=[])
    parser.add_argument("--then", action="append", default=[])
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pgembed-dry-run-"))
    try:
        with contextlib.ExitStack() as stack:
            Run(given, folder).carry_out(stack)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Delete the copies; never what is mounted in them."""
    mounted = Path("/proc/self/mountinfo").read_text()
    if str(folder) in mounted:
        raise SystemExit(
            f"something is mounted in {folder} still: umount it, delete it"
        )
    shutil.rmtree(folder)


class Run:
    """One Dockerfile, carried out in copies of a root."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._given = given
        self._folder = folder
        self._context = given.context or given.dockerfile.parent
        self._stages: dict[str, Stage] = {}

    def carry_out(self, stack: contextlib.ExitStack) -> None:
        """Do all steps, then what was asked for besides."""
        stage: Stage | None = None
        for name, rest in instructions(self._given.dockerfile.read_text()):
            sys.stdout.write(f"=== {name} {rest}\n")
            sys.stdout.flush()
            if name == "FROM":
                stage = self._begin(rest, stack)
                continue
            if stage is None:
                raise SystemExit(f"{name} comes before FROM")
            self._step(stage, name, rest)
        if stage is None:
            raise SystemExit("there is no FROM")
        for command in self._given.then:
            sys.stdout.write(f"=== then {command}\n")
            sys.stdout.flush()
            self._in_read_only(stage, command)

    def _begin(self, rest: str, stack: contextlib.ExitStack) -> Stage:
        words = rest.split()
        root = self._folder / str(len(self._stages))
        _call("cp", "-a", "--reflink=auto", str(self._given.root), str(root))
        for path in _BORROWED:
            if Path(path).exists():
                (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / path[1:])
        for path in ("/proc", "/dev", *map(str, self._given.bind)):
            place = root / path[1:]
            place.mkdir(parents=True, exist_ok=True)
            _call("mount", "--bind", path, str(place))
            stack.callback(_call, "umount", str(place))
        passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED)}
        given = dict(pair.split("=", 1) for pair in self._given.env)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        stage = Stage(root, {"PATH": path, **passed, **given})
        for command in self._given.before:
            self._run(stage, command)
        self._stages[words[2] if len(words) > 2 else str(len(self._stages))] = stage
        return stage

    def _step(self, stage: Stage, name: str, rest: str) -> None:
        if name == "RUN":
            self._run(stage, rest)
        elif name == "COPY":
            self._copy(stage, rest)
        elif name in ("ENV", "ARG"):
            for word in shlex.split(rest):
                key, _, value = word.partition("=")
                stage.environment[key] = string.Template(value).safe_substitute(
                    stage.environment
                )
        elif name == "WORKDIR":
            stage.directory = rest
            (stage.root / rest[1:]).mkdir(parents=True, exist_ok=True)
        elif name == "USER":
            stage.user = rest

    def _run(self, stage: Stage, command: str) -> None:
        shell = f"cd {shlex.quote(stage.directory)} && {command}"
        _call("chroot", str(stage.root), "/bin/sh", "-c", shell, env=stage.environment)

    def _copy(self, stage: Stage, rest: str) -> None:
        words = shlex.split(rest)
        options = dict(w[2:].split("=", 1) for w in words if w.startswith("--"))
        *sources, target = [w for w in words if not w.startswith("--")]
        place = stage.root / os.path.join(stage.directory, target)[1:]
        origin = self._context
        if "from" in options:
            origin = self._stages[options["from"]].root
        for source in sources:
            found = origin / source.lstrip("/")
            if found.is_dir():
                # The contents of a folder, not the folder.
                shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True)
                continue
            into = target.endswith("/") or place.is_dir()
            file = place / found.name if into else place
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, file)
            if "chmod" in options:
                file.chmod(int(options["chmod"], 8))

    def _in_read_only(self, stage: Stage, command: str) -> None:
        """Run a command in a mount namespace of its own, with a read-only root."""
        root = shlex.quote(str(stage.root))
        script = [f"mount --bind {root} {root}"]
        # The namespace has the root anew, and none of what is mounted in it.
        script += [f"mount --bind {path} {root}{path}" for path in ("/proc", "/dev")]
        for path in _WRITTEN:
            if (stage.root / path[1:]).is_dir():
                script.append(f"mount --bind {root}{path} {root}{path}")
        script.append(f"mount -o remount,bind,ro {root}")
        user = _identity(stage)
        inner = f"chroot --userspec={user} {root} /bin/sh -c {shlex.quote(command)}"
        script.append(f"exec {inner}")
        text = " && ".join(script)
        _call("unshare", "--mount", "sh", "-c", text, env=stage.environment)


def _identity(stage: Stage) -> str:
    """Return user and group, as an engine finds them in the image's password file."""
    if stage.user == "0":
        return "0:0"
    for line in (stage.root / "etc/passwd").read_text().splitlines():
        name, _, user, group, *_ = line.split(":")
        if stage.user in (name, user):
            return f"{user}:{group}"
    raise SystemExit(f"the image has no user {stage.user}")


def _call(*command: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=env)


if __name__ == "__main__":
    main()
