"""Beamline files made from the rules of their formats, by code that shares nothing with readers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def als_axis(key: str, name: str, unit: str, points: Sequence[float], direction: int = 1) -> str:
    """An axis of a ``.hdr``; the first number among its points counts them."""
    listed = ", ".join([str(len(points))] + [f"{point:.4f}" for point in points])
    return (
        f'\t\t\t{key} = {{ Name = "{name}"; Unit = "{unit}"; Min = {min(points):g};'
        f" Max = {max(points):g}; Dir = {direction};\n\t\t\t\tPoints = ({listed});\n}};\n"
    )


def als_header(
    regions: Sequence[tuple[Sequence[float], Sequence[float]]],
    energies: Sequence[float],
    *,
    label: str = "scan.hdr",
    kind: str = "NEXAFS Image Scan",
    flags: str = "Image Stack",
    head: str = "\n",
    dwell: str = "Dwell = 2;",
    stack_name: str = "Energy",
    stack_unit: str = "eV",
    direction: int = 1,
    channels: Sequence[str] = ("PMT",),
    channel_unit: str = "counts",
    plan: Sequence[tuple[int, float]] = (),
    multiple: str = "false",
    extra: str = "",
    lines: str = "",
) -> str:
    """Text of a header with LF; each region is its (x, y) points in um."""
    text = head + f'ScanDefinition = {{ Label = "{label}"; Type = "{kind}"; Flags = "{flags}";'
    text += f" {dwell}\n\tRegions = ({len(regions)},\n"
    blocks = [
        "{\n"
        + als_axis("PAxis", "Sample X", "um", x)
        + "\n"
        + als_axis("QAxis", "Sample Y", "um", y)
        + "}"
        for x, y in regions
    ]
    text += ",\n".join(blocks) + ");\n\n"
    text += als_axis("StackAxis", stack_name, stack_unit, energies, direction)
    named = ",\n".join(f'{{ Name = "{name}"; Unit = "{channel_unit}";}}' for name in channels)
    text += f"\n\tChannels = ({len(channels)},\n{named});\n}};\n"
    text += ' Time = "2018 November 10 23:57:34"; BeamFeedback = false;\n'
    text += extra
    text += 'ImageScan = { ScanType = "Image (Line - unidirection)"; SingleEnergy = false;\n'
    if plan:
        planned = ",\n".join(
            f"{{ StartEnergy = 1; EndEnergy = 2; Points = {count}; DwellTime = {time};}}"
            for count, time in plan
        )
        text += f"\tEnergyRegions = ({len(plan)},\n{planned});\n"
    text += f" PointDelay = 0.05; MultipleRegions = {multiple};\n}};\n"
    return text + lines


def als_image(frame: NDArray[np.generic], *, raw: bool = True, newline: str = "\r\n") -> bytes:
    """Text of an image: raw is whole numbers and one tab more, aligned is floats without it."""
    rows = []
    for row in frame:
        cells = [str(int(value)) if raw else f"{float(value):f}" for value in row]
        rows.append("\t".join(cells) + ("\t" if raw else "") + newline)
    return "".join(rows).encode("ascii")


def als_stack(
    folder: Path,
    frames: NDArray[np.generic],
    energies: Sequence[float],
    *,
    name: str = "scan",
    numbers: Sequence[int] | None = None,
    origin: tuple[float, float] = (-5.0, 7.0),
    step: tuple[float, float] = (0.05, 0.04),
    newline: str = "\r\n",
    raw: bool = True,
    axis: Sequence[float] | None = None,
    **header: object,
) -> Path:
    """A stack of one region: ``name.hdr`` and its images. `origin` and `step` are (x, y) in um."""
    count, rows, columns = frames.shape
    x = [origin[0] + step[0] * index for index in range(columns)]
    y = [origin[1] + step[1] * index for index in range(rows)]
    text = als_header([(x, y)], energies if axis is None else axis, **header)  # type: ignore[arg-type]
    path = folder / f"{name}.hdr"
    path.write_bytes(text.replace("\n", newline).encode("latin-1"))
    for number, frame in zip(range(count) if numbers is None else numbers, frames, strict=True):
        image = folder / f"{name}_a{number:03d}.xim"
        image.write_bytes(als_image(frame, raw=raw, newline=newline))
    return path


def als_line(index: int, energy: float | None = None, ring: float = 300.0, region: int = 0) -> str:
    """An image line that carries index and region."""
    told = "" if energy is None else f" Energy = {energy:.2f};"
    return (
        f"Image{index:03d}_{region} = {{StorageRingCurrent = {ring:.2f};{told}"
        ' Time = "2018 Nov 11 00:03:50"; ZP_dest= -5682.64; ZP_error = 0.55;};\n'
    )


def ncb(
    folder: Path,
    frames: NDArray[np.float64],
    energies: Sequence[float],
    *,
    scale: float,
    x: tuple[float, float],
    y: tuple[float, float],
    dwell: float | None = 1.5,
    name: str = "stack",
) -> Path:
    """An aXis2000 stack: x varies fastest; a negative scale stores floats."""
    count, rows, columns = frames.shape
    numbers = []
    for frame in frames:
        for row in frame:
            numbers.extend(row.tolist())
    if scale < 0:
        content = struct.pack(f"<{len(numbers)}f", *numbers)
    else:
        content = struct.pack(f"<{len(numbers)}h", *[round(value * scale) for value in numbers])
    (folder / f"{name}.ncb").write_bytes(content)
    lines = [f"\t{columns}\t{rows}\t{scale:.6f}", f"\t{x[0]:.6f}\t{x[1]:.6f}"]
    lines += [f"\t{y[0]:.6f}\t{y[1]:.6f}", f"\t{count}"]
    lines += [f"\t{energy:.6f}" for energy in energies]
    if dwell is not None:
        lines += [
            f"image{index + 1}\t{energy:.6f}\t{dwell:.6f}" for index, energy in enumerate(energies)
        ]
    (folder / f"{name}.dat").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.ncb"


def tiff(
    path: Path, pages: NDArray[np.uint16], *, per_centimetre: int = 0, big_endian: bool = False
) -> Path:
    """A plain TIFF of 16-bit pages, uncompressed, each with its own directory."""
    mark = ">" if big_endian else "<"
    count, rows, columns = pages.shape
    size = rows * columns * 2
    content = (b"MM" if big_endian else b"II") + struct.pack(mark + "HI", 42, 8)
    for index, page in enumerate(pages):
        entries: list[tuple[int, int, int]] = [
            (256, 4, columns),
            (257, 4, rows),
            (258, 3, 16),
            (259, 3, 1),
            (262, 3, 1),
            (277, 3, 1),
            (278, 4, rows),
            (279, 4, size),
        ]
        if per_centimetre:
            entries.append((296, 3, 3))
        length = 2 + 12 * (len(entries) + 1 + 2 * bool(per_centimetre)) + 4
        ratio_at = len(content) + length
        data_at = ratio_at + 8 * bool(per_centimetre)
        entries.append((273, 4, data_at))
        if per_centimetre:
            entries += [(282, 5, ratio_at), (283, 5, ratio_at)]
        content += struct.pack(mark + "H", len(entries))
        for tag, kind, value in sorted(entries):
            stored = struct.pack(
                mark + ("HH" if kind == 3 else "I"), *((value, 0)[: 1 + (kind == 3)])
            )
            content += struct.pack(mark + "HHI", tag, kind, 1) + stored
        following = data_at + size if index < count - 1 else 0
        content += struct.pack(mark + "I", following)
        if per_centimetre:
            content += struct.pack(mark + "II", per_centimetre, 1)
        content += page.astype(mark + "u2").tobytes()
    path.write_bytes(content)
    return path


def mask_text(mask: NDArray[np.bool_]) -> str:
    """A ``.msk``: 'O' where the mask is set."""
    return "".join("".join("O" if set_ else " " for set_ in row) + "\n" for row in mask)


def xdi_text(columns: Mapping[str, Sequence[float]]) -> str:
    """An XDI file: the columns are named in ``Column.N`` lines."""
    lines = ["# XDI/1.0"]
    lines += [f"# Column.{index}: {name}" for index, name in enumerate(columns, start=1)]
    lines += ["# Element.symbol: Mn", "# Element.edge: K", "# Sample.name: MnO", "# ///"]
    lines += ["#   a comment of free words", "#-------------"]
    rows = zip(*columns.values(), strict=True)
    lines += ["  ".join(f"{value:.6f}" for value in row) for row in rows]
    return "\n".join(lines) + "\n"
