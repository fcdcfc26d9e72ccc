"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import subprocess
import sys

import pytest
from make_runs import write_references, write_run

from spectromap import __version__, cli


def test_help_lists_only_commands_that_work(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in ("demo", "info", "check", "run", "fetch", "simulate", "figures", "view"):
        assert f"    {name} " in text
    for name in ("batch",):  # not there yet: it must not exist as a stub
        assert f"    {name} " not in text
        with pytest.raises(SystemExit):
            cli.main([name])


def test_version():
    done = subprocess.run(
        [sys.executable, "-m", "spectromap.cli", "--version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"spectromap {__version__}"


def test_info_tells_a_stack_from_a_spectrum(tmp_path, capsys):
    write_run(tmp_path)
    assert cli.main(["info", str(tmp_path / "scan.hdf5")]) == 0
    text = capsys.readouterr().out
    for part in ("NXstxm", "24 energies x 80 rows x 90 columns", "635 to 655 eV", "10 x 10 nm"):
        assert part in text
    assert cli.main(["info", str(tmp_path / "mn4.csv")]) == 0
    assert "a spectrum of 340 points, 628 to 661.9 eV" in capsys.readouterr().out
    assert cli.main(["info", str(tmp_path / "run.yaml")]) == 2
    assert "no reader takes this file" in capsys.readouterr().err


def test_simulate_writes_a_run_that_works(tmp_path, capsys):
    assert cli.main(["simulate", "--out", str(tmp_path / "s"), "--format", "als"]) == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith("RUN.yaml")
    assert cli.main(["check", path]) == 0
    assert cli.main(["info", str(tmp_path / "s" / "stack.hdr")]) == 0
    assert "als-hdr" in capsys.readouterr().out


def test_a_file_on_the_line_replaces_the_stack(tmp_path, capsys):
    path = write_run(tmp_path, stack="elsewhere.hdf5")
    write_references(tmp_path)
    out = tmp_path / "out"
    assert cli.main(["run", "--config", str(path), "--out", str(out)]) == 2
    assert "elsewhere.hdf5" in capsys.readouterr().err
    scan = str(tmp_path / "scan.hdf5")
    assert cli.main(["run", scan, "--config", str(path), "--out", str(out), "--quiet"]) == 0
    assert (out / "result.h5").exists()


def test_quiet_is_quiet_and_the_log_file_is_not(tmp_path, capsys):
    path, log = write_run(tmp_path), tmp_path / "run.log"
    line = ["run", "--config", str(path), "--out", str(tmp_path / "out"), "--log", str(log)]
    assert cli.main([*line, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert "registering frames" in log.read_text()
    assert cli.main([*line[:-1], str(tmp_path / "no" / "folder.log")]) == 2
    assert "no log can be written" in capsys.readouterr().err


def test_fetch_prints_the_folder(shared_data, capsys):
    assert cli.main(["fetch", "toner-fe-71214078"]) == 0
    assert capsys.readouterr().out.strip().endswith("Aligned")
    assert cli.main(["fetch", "toner"]) == 2
    assert "Did you mean toner-fe-71214078" in capsys.readouterr().err
