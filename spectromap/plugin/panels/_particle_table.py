"""What is known of every particle, as rows of a table that can be sorted and exported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from qtpy.QtCore import (  # type: ignore[attr-defined]
    QAbstractTableModel,
    QItemSelection,
    QItemSelectionModel,
    QModelIndex,
    QObject,
    QSortFilterProxyModel,
    Qt,
    Signal,
)
from qtpy.QtGui import QAction, QGuiApplication, QKeySequence  # type: ignore[attr-defined]
from qtpy.QtWidgets import QAbstractItemView, QTableView, QWidget

from spectromap.figures import component_label
from spectromap.figures._canvas import errors_of, numbers_of, units_of
from spectromap.io._common import written_whole
from spectromap.io.results import _table

__all__ = ["TO", "ParticleTable", "column_title", "particle_columns", "written"]

#: Of each model, what the table shows of it.
OF_MODELS = {
    "diffusion": ("D_cm2_s", "D_low", "D_high", "surface_fraction", "initial_fraction"),
    "core-shell": ("shell_thickness", "shell_low", "shell_high"),
}
#: Columns that are looked at first, in this order; all else follows, errors last.
FIRST = (
    "verdict", "radius", "thickness", "{fraction}_fraction", "edge_minus_core", "D_cm2_s",
    "D_low", "D_high", "shell_thickness", "shell_low", "shell_high", "agglomerate", "place",
    "depth", "used", "reason",
)  # fmt: skip
TITLES = {"D_cm2_s": "D", "D_low": "D low", "D_high": "D high"}
EDGE_TEXT = (
    "fraction of the outermost bin of the profile minus the mean of the bins in the inner half,"
    " weighted by their errors"
)
#: Between the ends of an interval, and where a number is not known.
TO = "\N{EN DASH}"


def particle_columns(
    particles: xr.Dataset, profiles: xr.Dataset | None = None, models: xr.Dataset | None = None
) -> xr.Dataset:
    """One row per particle: its place in the table, in its profile and in the models.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        The particle table of a result.
    profiles, models : Dataset, optional
        Of the same result; particles that they lack have NaN and no verdict.

    Returns
    -------
    Dataset, dims (particle,)
        The columns that are looked at first come first, errors last.
    """
    table = particles[[n for n, a in particles.data_vars.items() if a.dims == ("particle",)]]
    fraction = str(particles.attrs.get("fraction", ""))
    if profiles is not None and f"{fraction}_fraction" in profiles:
        table = table.assign(_edge_minus_core(profiles, fraction).reindex_like(table))
    if models is not None and "model" in models.dims:
        table = table.assign(_of_models(models).reindex_like(table, fill_value=_nothing(models)))
    first = [name.format(fraction=fraction) for name in FIRST]
    names = [str(name) for name in table.data_vars]
    names.sort(key=lambda n: (first.index(n) if n in first else len(first), n.endswith("_errors")))
    return table[names].assign_attrs(particles.attrs)


def _nothing(models: xr.Dataset) -> dict[str, Any]:
    """What stands where a particle has not been fitted."""
    return {str(n): "" if a.dtype.kind in "OU" else np.nan for n, a in _of_models(models).items()}


def _of_models(models: xr.Dataset) -> xr.Dataset:
    """The numbers of each model that the table shows, its goodness, and the verdict."""
    found: dict[str, xr.DataArray] = {}
    names = [str(name) for name in models["model"].values]
    for model in names:
        one = models.sel(model=model, drop=True)
        wanted = OF_MODELS.get(model, ())
        found |= {n: one[n] for n in wanted if n in one}
        if "goodness" in one:
            text = f"probability of a worse fit if {model} is right"
            found[f"goodness_{model.replace('-', '_')}"] = one["goodness"].assign_attrs(
                long_name=text
            )
    if "verdict" in models:
        found["verdict"] = models["verdict"].astype(object)
    return xr.Dataset({n: a.drop_vars("model", errors="ignore") for n, a in found.items()})


def _edge_minus_core(profiles: xr.Dataset, fraction: str) -> xr.Dataset:
    """How the rim of each particle differs from its inner half."""
    name = f"{fraction}_fraction"
    values, errors = numbers_of(profiles, name), errors_of(profiles, name)
    known = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    distance = np.where(known, profiles["distance"].values, np.nan)
    difference, sigma = np.full((2, values.shape[0]), np.nan)
    for row in np.flatnonzero(known.sum(axis=1) > 1):
        bins = np.flatnonzero(known[row])
        core = bins[distance[row, bins] > 0.5 * distance[row, bins[-1]]]
        core = core[core != bins[0]]
        weights = 1 / errors[row, core] ** 2
        difference[row] = values[row, bins[0]] - np.average(values[row, core], weights=weights)
        sigma[row] = np.hypot(errors[row, bins[0]], weights.sum() ** -0.5)
    attrs = {"units": "1", "long_name": EDGE_TEXT}
    return xr.Dataset(
        {
            "edge_minus_core": ("particle", difference, attrs),
            "edge_minus_core_errors": ("particle", sigma, {"units": "1"}),
        },
        {"particle": profiles["particle"]},
    )


def column_title(table: xr.Dataset, name: str) -> str:
    """How a column is headed, with its unit."""
    error = "± " if name.endswith("_errors") else ""
    plain = name.removesuffix("_errors")
    component = plain.removesuffix("_fraction")
    if component == table.attrs.get("fraction"):
        text = f"{component_label(component)} fraction"
    else:
        text = TITLES.get(plain, plain.replace("_", " "))
    return f"{error}{text}{units_of(table[name])}"


def written(value: Any) -> str:
    """A value as the table and titles show it."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if np.isfinite(value) else {np.inf: "∞"}.get(float(value), TO)
    return str(value)


# --- the table ---------------------------------------------------------------------------------


class _Rows(QAbstractTableModel):
    """The table of particles as Qt wants it; the first column is the number of the particle."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.show(xr.Dataset(coords={"particle": np.zeros(0, dtype=int)}))

    def show(self, table: xr.Dataset) -> None:
        """Show another table."""
        self.beginResetModel()
        self.table = table
        self.names = ["particle", *(str(name) for name in table.data_vars)]
        self.values = [table[name].values for name in self.names]
        self.titles = [column_title(table, name) for name in self.names]
        self.endResetModel()

    def rowCount(self, parent: Any = None) -> int:
        """One for each particle."""
        return 0 if parent is not None and parent.isValid() else int(self.table.sizes["particle"])

    def columnCount(self, parent: Any = None) -> int:
        """One for each variable."""
        return 0 if parent is not None and parent.isValid() else len(self.names)

    def data(self, index: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Text, alignment or explanation of a cell."""
        value = self.values[index.column()][index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return written(value)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignLeft if isinstance(value, str) else _right()
            return int(side | Qt.AlignmentFlag.AlignVCenter)
        return None

    def headerData(self, section: int, orientation: Any, role: int = 0) -> Any:
        """Name and unit of a column."""
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.titles[section]
        if role == Qt.ItemDataRole.ToolTipRole:
            return str(self.table[self.names[section]].attrs.get("long_name", "")) or None
        return None


def _right() -> Any:
    """Where numbers stand."""
    return Qt.AlignmentFlag.AlignRight


class _Sorted(QSortFilterProxyModel):
    """Numbers in the order of numbers, and what is not known last in either direction."""

    def lessThan(self, left: Any, right: Any) -> bool:
        """Which of two cells comes first."""
        rows: Any = self.sourceModel()
        values = rows.values[left.column()]
        one, other = values[left.row()], values[right.row()]
        lost = [isinstance(v, (float, np.floating)) and np.isnan(v) for v in (one, other)]
        if any(lost):
            descending = self.sortOrder() == Qt.SortOrder.DescendingOrder
            return bool(lost[0] and not lost[1]) if descending else bool(lost[1] and not lost[0])
        return bool(one < other)


class ParticleTable(QTableView):
    """The particles as rows; several can be chosen."""

    picked = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.rows = _Rows(self)
        self.sorted = _Sorted(self)
        self.sorted.setSourceModel(self.rows)
        self.setModel(self.sorted)
        self.setSortingEnabled(True)
        self.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setWordWrap(False)
        side, bar = self.verticalHeader(), self.horizontalScrollBar()
        selection = self.selectionModel()
        assert side is not None
        assert bar is not None
        assert selection is not None
        side.hide()
        side.setDefaultSectionSize(self.fontMetrics().height() + 6)
        self._bar, self._selection = bar, selection
        self.setToolTip("Click a heading to sort. Ctrl or Shift chooses several particles.")
        copy = QAction("Copy", self)
        copy.setShortcut(QKeySequence(QKeySequence.StandardKey.Copy))
        copy.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        copy.triggered.connect(self.copy)
        self.addAction(copy)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self._quiet = False
        # Qt tells of the rows before it tells which of them is the current one.
        self._selection.selectionChanged.connect(self._tell)
        self._selection.currentRowChanged.connect(self._tell)

    def show_table(self, table: xr.Dataset) -> None:
        """Show another table; order, chosen rows and place stay as far as they can."""
        chosen, place = self.chosen(), self._bar.value()
        fresh = self.rows.names != ["particle", *map(str, table.data_vars)]
        with self._quietly():
            self.rows.show(table)
            self.choose(chosen)
        if fresh:
            self.resizeColumnsToContents()
        self._bar.setValue(place)

    def labels(self) -> list[int]:
        """The particles as they are sorted."""
        numbers = self.rows.values[0]
        order = (self.sorted.index(row, 0) for row in range(self.sorted.rowCount()))
        return [int(numbers[self.sorted.mapToSource(index).row()]) for index in order]

    def chosen(self) -> list[int]:
        """The particles of the chosen rows, the current one first."""
        model = self._selection
        current = model.currentIndex()
        rows = [i for i in model.selectedRows() if i.row() != current.row()]
        first = [current] if current.isValid() and model.isRowSelected(current.row()) else []
        numbers = self.rows.values[0]
        return [int(numbers[self.sorted.mapToSource(index).row()]) for index in [*first, *rows]]

    def choose(self, labels: Iterable[int]) -> None:
        """Choose the rows of particles, the first one being current."""
        shown = self.labels()
        rows = [shown.index(label) for label in labels if label in shown]
        model, wanted = self._selection, QItemSelection()
        for row in rows:
            wanted.select(self.sorted.index(row, 0), self.sorted.index(row, 0))
        whole = QItemSelectionModel.SelectionFlag.Rows
        with self._quietly():
            model.select(wanted, QItemSelectionModel.SelectionFlag.ClearAndSelect | whole)
            first = self.sorted.index(rows[0], 0) if rows else QModelIndex()
            model.setCurrentIndex(first, QItemSelectionModel.SelectionFlag.NoUpdate)
        if rows:
            # Only upwards and downwards: the columns that are looked at stay in view.
            left = self._bar.value()
            self.scrollTo(first)
            self._bar.setValue(left)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _tell(self, *_: Any) -> None:
        chosen = self.chosen()
        if chosen and not self._quiet:
            self.picked.emit(chosen[0])

    def copy(self) -> None:
        """Put the chosen rows, or all, on the clipboard, for a spreadsheet."""
        labels = self.chosen() or self.labels()
        rows = [row for row, label in enumerate(self.labels()) if label in labels]
        cells = [
            [str(self.sorted.index(row, column).data()) for column in range(len(self.rows.names))]
            for row in rows
        ]
        text = "\n".join("\t".join(line) for line in [self.rows.titles, *cells])
        clipboard: Any = QGuiApplication.clipboard()
        clipboard.setText(text)

    def save(self, path: str | Path) -> Path:
        """Write the table as it is shown, with the column names of ``particles.csv``."""
        shown = self.rows.table.sel(particle=self.labels())
        tree = xr.DataTree.from_dict({"/entry/particles": shown})
        with written_whole(Path(path)) as partial:
            text = _table(tree, "particles", ("particle",))
            partial.write_text(text, encoding="utf-8", newline="\n")
        return Path(path)
