"""web/build.py fetches one version of one package, and refuses any other."""

import base64
import hashlib
import os
import tarfile

import pytest

from ser.utils import UsageError
from web import build


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs an `npm` that delivers an archive of small files as the package; returns the archive."""
    archive, source = tmp_path / "package.tgz", tmp_path / "file"
    with tarfile.open(archive, "w:gz") as packed:
        for name in build.RUNTIME:
            source.write_text(name)
            packed.add(source, f"package/dist/{name}")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\n[ "$1 $3" = "pack {build.PACKAGE}" ] && cp {archive} "$5"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    return archive


def test_the_runtime_is_extracted_from_the_tested_package(package, tmp_path, monkeypatch):
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    monkeypatch.setattr(build, "SHA512", digest)
    (tmp_path / "vendor").mkdir()
    build.fetch_runtime(tmp_path / "vendor")
    assert {path.name: path.read_text() for path in (tmp_path / "vendor").iterdir()} == {
        name: name for name in build.RUNTIME
    }


def test_another_package_of_the_same_name_is_refused(package, tmp_path):
    with pytest.raises(UsageError, match="is not the package that was tested"):
        build.fetch_runtime(tmp_path)


def test_a_missing_npm_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="npm cannot be found"):
        build.fetch_runtime(tmp_path)


def test_the_error_of_npm_is_passed_on(package, tmp_path, monkeypatch):
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho no such package >&2; exit 1\n")
    with pytest.raises(UsageError, match="npm cannot fetch onnxruntime-web@.*: no such package"):
        build.fetch_runtime(tmp_path)
