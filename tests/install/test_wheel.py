"""The built wheel in a clean environment: what a user gets who installs spectromap and no more."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent


def call(*command: object, folder: Path = REPOSITORY) -> str:
    """Output of a command, which must end well."""
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(PROGRAMS / "hatchling", "build", "-t", "wheel", "-d", folder)
    (built,) = folder.glob("spectromap-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment that holds the wheel and what it asks for, as pinned."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    uv = PROGRAMS / "uv"
    call(uv, "venv", "--python", sys.executable, environment)
    programs = environment / "bin"
    pins = ("--constraints", "constraints.txt", "--only-binary", ":all:")
    call(uv, "pip", "install", "--python", programs / "python", *pins, wheel)
    return programs


def test_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        manifest = archive.read("spectromap/data_manifest.yaml")
    assert manifest == (REPOSITORY / "data_manifest.yaml").read_bytes()
    assert "spectromap/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"spectromap"}
    modules = {
        path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("spectromap/**/*.py")
    }
    assert modules <= names


def test_metadata_asks_for_nothing_that_only_extras_need(programs: Path) -> None:
    uv = PROGRAMS / "uv"
    listed = call(uv, "pip", "list", "--python", programs / "python", "--format", "json")
    installed = {package["name"].lower() for package in json.loads(listed)}
    assert {"spectromap", "numpy", "xraydb", "hdf5plugin"} <= installed
    assert not installed & {"napari", "qtpy", "pyqt6", "pyside6", "pytest", "distributed", "silx"}
    call(uv, "pip", "check", "--python", programs / "python")


def test_import_is_quick_and_comes_from_the_wheel(programs: Path, tmp_path: Path) -> None:
    script = (
        "import time; start = time.process_time(); import spectromap;"
        "print(time.process_time() - start, spectromap.__file__)"
    )
    runs = [call(programs / "python", "-c", script, folder=tmp_path).split() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 1.0
    assert Path(runs[0][1]).is_relative_to(programs.parent)


def test_packaged_manifest_is_read(programs: Path, tmp_path: Path) -> None:
    script = (
        "from spectromap.io.manifest import load_manifest;"
        "m = load_manifest(); print(m.path, len(m.datasets))"
    )
    path, count = call(programs / "python", "-c", script, folder=tmp_path).split()
    assert Path(path).is_relative_to(programs.parent)
    assert int(count) > 10


def test_demo_runs(programs: Path, tmp_path: Path) -> None:
    call(programs / "spectromap", "demo", "--out", tmp_path / "demo", folder=tmp_path)
    made = {path.name for path in (tmp_path / "demo").rglob("*")}
    assert {"particles.csv", "models.csv", "report.html"} <= made
