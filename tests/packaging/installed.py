"""A wheel of this checkout, installed into an environment of its own, for the tests that use the bundle from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("bundle", "configs", "models", "docs", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SOURCES += ("CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", "metadata.json", "Makefile")


def build(kind: str, source: Path, target: Path) -> Path:
    """Build ``sdist`` or ``wheel`` of a source folder, offline, and return the file."""
    target.mkdir(parents=True, exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def copy_of_the_checkout(target: Path) -> Path:
    """Copy what a distribution is made of: building leaves folders behind."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.ts", "*.onnx")
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


def unpacked(sdist: Path, target: Path) -> Path:
    """Unpack an sdist and return its folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    return target / sdist.name.removesuffix(".tar.gz")


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has the wheel, and this one's packages without their editable installs."""

    folder: Path

    @property
    def scripts(self) -> Path:
        """Where its commands are."""
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def package(self) -> Path:
        """Where the wheel's package lies."""
        return next(self.folder.rglob("site-packages")) / "bundle"

    def run(self, *words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``python`` with these words, or the console command if the first of them is its name."""
        program, *rest = words if words[0] == "alpnet" else ("python", *words)
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}
        command = [str(self.scripts / program), *rest]
        return subprocess.run(command, cwd=cwd, env=clean | env, capture_output=True, text=True, check=False)


def install(wheel: Path, folder: Path) -> Environment:
    """Install a wheel alone; what it needs is found where this Python finds it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    environment = Environment(folder)
    python = str(environment.scripts / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, str(wheel)], check=True)
    # A path in a .pth file is searched, but its own .pth files, of editable installs, are not read.
    (environment.package.parent / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment
