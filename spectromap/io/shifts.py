"""Shifts of frames that were measured elsewhere, or by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr

from spectromap.io.results import read_result
from spectromap.schema import FileError

NEEDED = ("energy", "shift_y", "shift_x")
OPTIONAL = ("shift_y_errors", "shift_x_errors")


def read_shifts(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read shifts from a table, or from an earlier result.

    Parameters
    ----------
    path : path
        A CSV file with the columns ``energy`` [eV], ``shift_y`` and ``shift_x`` [nm] and, if
        known, ``shift_y_errors`` and ``shift_x_errors`` [nm]; or a result file. A shift is where
        the features of the frame lie, relative to the common frame.

    Returns
    -------
    Dataset, dims (energy,)

    Raises
    ------
    FileError
        The file is missing, no such table, or holds something that is not a number.
    """
    file = Path(path)
    if not file.is_file():
        raise FileError("no such file", where=file)
    if file.suffix.lower() in (".h5", ".hdf5", ".nc"):
        return _from_result(file)
    return _from_table(file)


def _from_result(file: Path) -> xr.Dataset:
    tree = read_result(file)
    if "shifts" not in tree["entry"].children:
        raise FileError("the result holds no shifts", where=file)
    return tree["entry/shifts"].to_dataset()[[*NEEDED[1:], *OPTIONAL]]


def _from_table(file: Path) -> xr.Dataset:
    import pandas as pd

    try:
        table = pd.read_csv(file, encoding="utf-8-sig", comment="#", skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise FileError(f"not a table of shifts ({error})", where=file) from error
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise FileError(
            f"no column {', '.join(missing)}",
            where=file,
            remedy="The columns are energy [eV], shift_y and shift_x [nm].",
        )
    table = table[[name for name in (*NEEDED, *OPTIONAL) if name in table]]
    numbers = table.apply(pd.to_numeric, errors="coerce")
    bad = ~np.isfinite(numbers[list(NEEDED)]).all(axis=1)
    if bad.any() or table.empty:
        line = int(np.flatnonzero(bad)[0]) + 2 if bad.any() else 2
        raise FileError(f"line {line} holds no number where one is needed", where=file)
    result = xr.Dataset(coords={"energy": ("energy", numbers["energy"], {"units": "eV"})})
    for name in numbers.columns[1:]:
        result[name] = ("energy", numbers[name], {"units": "nm"})
    return result.sortby("energy")
