"""The package as a whole: public names, what importing it costs, what its files may not hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spectromap

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = Path(__file__).with_name("public_names.txt")

#: Slow, or only for the viewer: nobody pays for them before they are needed.
LAZY = ("napari", "qtpy", "PyQt6", "PySide6", "matplotlib", "xraydb", "pooch", "jinja2")

IMPORT = """
import json, sys, time
start = time.process_time()
import spectromap
print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
"""


def test_public_names_are_those_written_down() -> None:
    remedy = (
        "If the change is meant, tell it in CHANGELOG.md and write the list again: "
        "python -c \"import spectromap; print(*sorted(spectromap.__all__), sep='\\n')\""
        " > tests/public_names.txt"
    )
    assert sorted(spectromap.__all__) == NAMES.read_text(encoding="utf-8").split(), remedy


def test_every_public_name_exists_and_is_documented() -> None:
    for name in spectromap.__all__:
        thing = getattr(spectromap, name)
        assert thing.__doc__ or not callable(thing), name


def imported() -> tuple[float, list[str]]:
    """CPU seconds that ``import spectromap`` takes in a new process, and what it loads."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    seconds, modules = json.loads(result.stdout)
    return seconds, modules


def test_importing_takes_less_than_a_second() -> None:
    # CPU time, and the best of three: a busy machine is not the package's fault.
    assert min(imported()[0] for _ in range(3)) < 1.0


def test_importing_loads_nothing_slow() -> None:
    loaded = {module.partition(".")[0] for module in imported()[1]}
    assert "spectromap" in loaded
    assert not loaded & set(LAZY)


def tracked_text() -> dict[str, str]:
    """Every text file under version control, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, listed.stdout.split("\0")):
        content = (REPOSITORY / name).read_bytes() if (REPOSITORY / name).is_file() else b"\0"
        if b"\0" not in content:
            found[name] = content.decode("utf-8", errors="replace")
    return found


def test_no_file_names_a_package_registry() -> None:
    # Installing must work from any registry or mirror that the machine is set up for.
    hosts = ("pypi", "pythonhosted", "npmjs", "anaconda", "conda-forge", r"debian\.org")
    options = ("index-url", "extra-index-url", "find-links", "index", "default-index")
    address = re.compile(
        rf"https?://[^\s\"')]*(?:{'|'.join(hosts)})"
        rf"|(?<![\w-])--(?:{'|'.join(options)})\b(?!-)",
        re.IGNORECASE,
    )
    assert address.search("pip install " + "--" + "index-url=https://example.org x")
    assert address.search("https://files." + "pythonhosted" + ".org/packages")
    texts = tracked_text()
    assert "pyproject.toml" in texts
    found = {name: match[0] for name, text in texts.items() if (match := address.search(text))}
    assert found == {}


def test_pins_hold_a_hash_for_every_package() -> None:
    for name in ("constraints.txt", "constraints-lowest.txt"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        requirements = re.findall(r"^[a-z0-9][\w.-]*==[^\n]*\\\n\s+--hash=sha256:", text, re.M)
        assert len(requirements) == len(re.findall(r"^[^#\s]", text, re.M)) > 20, name


def test_lowest_pins_are_the_lower_bounds_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(
        re.findall(
            r"^([a-z0-9][\w.-]*)==(\S+)",
            (REPOSITORY / "constraints-lowest.txt").read_text(encoding="utf-8"),
            re.M,
        )
    )
    for requirement in project["dependencies"]:
        name, bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
        assert pins[name].split(".")[: len(bound.split("."))] == bound.split("."), name
