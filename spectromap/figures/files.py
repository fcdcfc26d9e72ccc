"""Every figure of one or more results as files for print, with the data behind each."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from spectromap.figures._canvas import DOUBLE_IN, NOTE, SINGLE_IN, save_as
from spectromap.figures.data import COLUMNS, figure_images, figure_rows
from spectromap.io._common import written_whole
from spectromap.schema import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Job", "write_jobs"]

Draw = Callable[[xr.DataTree], "Figure | None"]
FORMATS = ("pdf", "svg", "png")
#: Figures up to this width are printed in one column.
NARROW_IN = 4.4
#: No page is higher.
HIGHEST_IN = 9.6


@dataclass(frozen=True)
class Job:
    """One figure to be drawn: its file without the ending, and how."""

    name: str
    draw: Draw
    tree: xr.DataTree
    folder: Path


def write_jobs(
    trees: Mapping[str, xr.DataTree],
    folder: Path,
    drawn: Mapping[str, Draw],
    formats: Sequence[str],
    dpi: int,
    track: Callable[[Sequence[Job]], Iterable[Job]],
) -> list[Path]:
    """Write every figure that the results can give; see `catalogue.write_figures`."""
    _check(trees, formats)
    places = {name: folder if len(trees) == 1 else folder / _file_name(name) for name in trees}
    if len(set(places.values())) < len(places):
        raise InputError("two results have the same name", where=", ".join(sorted(trees)))
    jobs = [
        Job(name, draw, tree, places[result])
        for result, tree in trees.items()
        for name, draw in drawn.items()
    ]
    files: list[Path] = []
    for job in track(jobs):
        figure = job.draw(job.tree)
        if figure is not None and figure.get_gid() != NOTE:
            files += _write(figure, job.folder / job.name, formats, dpi)
    return files


def _check(trees: Mapping[str, xr.DataTree], formats: Sequence[str]) -> None:
    if not trees:
        raise InputError("there is no result to draw", where="trees")
    unknown = [form for form in formats if form not in FORMATS]
    if unknown or not formats:
        raise InputError(
            f"{', '.join(unknown) or 'nothing'} is no format of figures",
            where="formats",
            remedy=f"Choose from {', '.join(FORMATS)}.",
        )


def _file_name(name: str) -> str:
    """A name that is safe as that of a folder."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "result"


def _fit_to_column(figure: Figure) -> None:
    """Give a figure the width of one or two columns, and as much of its height as a page has."""
    wide, high = figure.get_size_inches()
    column = SINGLE_IN if wide <= NARROW_IN else DOUBLE_IN
    figure.set_size_inches(column, min(high * column / wide, HIGHEST_IN))


def _write(figure: Figure, stem: Path, formats: Sequence[str], dpi: int) -> list[Path]:
    """One figure in all formats, and its data."""
    _fit_to_column(figure)
    files = []
    for form in formats:
        file = stem.with_name(f"{stem.name}.{form}")
        with written_whole(file) as partial:
            save_as(figure, partial, form, dpi)
        files.append(file)
    rows = figure_rows(figure)
    if rows:
        file = stem.with_name(f"{stem.name}.csv")
        with written_whole(file) as partial:
            partial.write_text(_table(rows), encoding="utf-8", newline="")
        files.append(file)
    for panel, values in figure_images(figure).items():
        file = stem.with_name(f"{stem.name}_map{panel}.csv.gz")
        with written_whole(file) as partial:
            partial.write_bytes(_matrix(values))
        files.append(file)
    return files


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; numbers with six digits, nothing for what is not known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in COLUMNS])
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return f"{value:.7g}" if math.isfinite(value) else ""
    return value


def _matrix(values: Any) -> bytes:
    """A map as compressed CSV, the same bytes for the same map; nothing where it is NaN."""
    lines = io.StringIO()
    np.savetxt(lines, values, fmt="%.6g", delimiter=",")
    text = lines.getvalue().replace("nan", "")
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)
