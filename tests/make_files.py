"""Files in the HDF5 formats, written to the rules of each format with h5py alone.

Nothing here is shared with the readers, so that a mistake in them cannot hide in both.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

JOULE_PER_EV = 1.602176634e-19

ENERGIES = np.array([638.0, 640.5, 642.25, 644.0])
Y_UM = np.array([12.0, 12.05, 12.1])
X_UM = np.array([-3.0, -2.95, -2.9, -2.85, -2.8])


def counts(*shape: int) -> np.ndarray:
    """Counts that differ in every pixel."""
    return 1000.0 + np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


def nexus(parent: Any, name: str, kind: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = np.bytes_(kind)
    return group


def text(group: Any, name: str, value: str) -> Any:
    """String as PolLux writes it: bytes of shape (1,)."""
    return group.create_dataset(name, data=np.array([value.encode()]))


def pollux(
    path: Path,
    *,
    version: str = "1.3",
    data: np.ndarray | None = None,
    energy: Any = ENERGIES,
    y: Any = Y_UM,
    x: Any = X_UM,
    axes: Any = ("energy", "sample_y", "sample_x"),
    scan_type: str = "sample image stack",
    detectors: tuple[str, ...] = ("counter0",),
    signal: str = "data",
    length_units: Any = b"\xce\xbcm",
    energy_units: Any = b"eV",
    count_time: Any = None,
    monitor: Any = 401.5,
    entry: str = "entry1",
    mode: str = "w",
) -> Path:
    """PolLux: hard-linked axes, an NXmonitor of the ring current, garbage in the collection."""
    energy, y, x = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (energy, y, x))
    if data is None:
        data = counts(energy.size, y.size, x.size)
    with h5py.File(path, mode) as file:
        file.attrs["NX_class"] = np.bytes_("NXroot")
        top = nexus(file, entry, "NXentry")
        text(top, "definition", "NXstxm").attrs["version"] = np.bytes_(version)
        text(top, "title", "Sample")
        text(top, "start_time", "2017-10-15T06:11:28+02:00")
        _pollux_collection(top)
        first = None
        for number, name in enumerate(detectors):
            group = nexus(top, name, "NXdata")
            group.attrs["signal"] = np.bytes_(signal)
            group.attrs["axes"] = np.array([name.encode() for name in axes])
            group.create_dataset(
                signal,
                data=data + 10000.0 * number,
                compression="gzip",
                chunks=(*(1,) * (data.ndim - 1), data.shape[-1]),
            )
            text(group, "stxm_scan_type", scan_type)
            if first is None:
                first = group
                group["energy"], group["sample_y"], group["sample_x"] = energy, y, x
                group["count_time"] = (
                    np.full(energy.size, 0.005) if count_time is None else count_time
                )
            else:
                for axis in ("energy", "sample_y", "sample_x", "count_time"):
                    group[axis] = first[axis]
        control = nexus(top, "control", "NXmonitor")
        control.attrs["signal"] = np.bytes_("data")
        current = np.broadcast_to(np.asarray(monitor, dtype=np.float64), data.shape).copy()
        current[..., 0] = np.nan
        control["data"] = current
        control["energy"] = first["energy"]
        instrument = nexus(top, "instrument", "NXinstrument")
        source = nexus(instrument, "source", "NXsource")
        text(source, "name", "Swiss Light Source")
        flat = nexus(instrument, detectors[0], "NXdetector")
        flat["data"] = data.ravel()
        measured = nexus(instrument, "sample_x", "NXdetector")
        measured["data"] = np.full(data.size, x[0] + 1.0)
        if version != "1.1":
            first["energy"].attrs["units"] = energy_units
            first["count_time"].attrs["units"] = np.bytes_("s")
            first[signal].attrs["units"] = np.bytes_(" ")
            control["data"].attrs["units"] = np.bytes_("mA")
            for axis in ("sample_y", "sample_x"):
                first[axis].attrs["units"] = length_units
    return path


def _pollux_collection(top: Any) -> None:
    collection = nexus(top, "collection", "NXcollection")
    text(collection, "beamline", "SLS PolLux X07DA")
    motor = nexus(collection, "Ring_yRMS", "NXpositioner")
    motor["value"] = np.array([np.nan])
    motor["soft_limit_max"] = np.array([7.8624325e-265])
    motor.create_dataset("unit", data=np.array([b"\xb5m"]))


def line_spectrum(path: Path) -> Path:
    """(energy, line position), with one-dimensional x and y along the line."""
    energy, along = ENERGIES, np.linspace(0.0, 1.0, 6)
    return pollux(
        path,
        data=counts(4, 6),
        energy=energy,
        y=along,
        x=along,
        axes=("energy", "line_position"),
        scan_type="sample line spectrum",
    )


def focus_scan(path: Path) -> Path:
    """(zone_plate, line position)."""
    along = np.linspace(0.0, 1.0, 6)
    return pollux(
        path,
        data=counts(5, 6),
        energy=[640.0],
        y=along,
        x=along,
        axes=("zone_plate", "line_position"),
        scan_type="sample focus",
        count_time=[0.005],
    )


def diamond(path: Path) -> Path:
    """Diamond I08: photon_energy, integer axis attributes from 1, millimetres, Empty attributes."""
    with h5py.File(path, "w") as file:
        file.attrs["TITLE"] = h5py.Empty("S1")
        top = nexus(file, "entry1", "NXentry")
        text(top, "definition", "NXstxm").attrs["version"] = h5py.Empty("S1")
        group = nexus(top, "Counter1", "NXdata")
        group["data"] = counts(4, 3, 5)
        group["data"].attrs["TITLE"] = h5py.Empty("S1")
        places = (("photon_energy", ENERGIES), ("sample_y", Y_UM / 1e3), ("sample_x", X_UM / 1e3))
        for number, (name, values) in enumerate(places, start=1):
            group[name] = values
            group[name].attrs["axis"] = np.int64(number)
            group[name].attrs["TITLE"] = h5py.Empty("S1")
        group["count_time"] = np.full(4, 0.01)
        text(group, "scan_type", "Sample")
    return path


def hermes(path: Path) -> Path:
    """SOLEIL HERMES: no attribute anywhere, no definition."""
    with h5py.File(path, "w") as file:
        group = file.create_group("entry1/Counter0")
        group["data"], group["energy"] = counts(4, 3, 5), ENERGIES
        group["sample_y"], group["sample_x"] = Y_UM, X_UM
        text(file["entry1"].create_group("collection"), "beamline", "Hermes")
    return path


def pystxmcontrol(
    path: Path,
    *,
    regions: int = 2,
    daqs: tuple[str, ...] = ("default", "xrf"),
    scan_type: str = "Image",
) -> Path:
    """ALS today: entries from 0, one per region, one group per detector, no units, dwell in ms."""
    with h5py.File(path, "w", libver="latest") as file:
        for region in range(regions):
            top = nexus(file, f"entry{region}", "NXentry")
            top["start_time"] = "2025-03-01T10:00:00"
            top["title"] = "BLS-000001"
            top["version"] = 3.0
            top.create_dataset("definition", data=[b"NXstxm"])
            instrument = nexus(top, "instrument", "NXinstrument")
            nexus(instrument, "motors", "NXdetector")
            sample = nexus(top, "sample", "NXsample")
            sample["description"] = "NMC on Si3N4"
            for number, daq in enumerate(daqs):
                group = nexus(top, daq, "NXdata")
                group.attrs["axes"] = [np.bytes_(n) for n in ("energy", "sample_y", "sample_x")]
                group.attrs["signal"] = "data"
                group.create_dataset("stxm_scan_type", data=[scan_type])
                group["data"] = counts(4, 3, 5) + 1000 * region + 10000 * number
                for axis, (name, values) in enumerate(
                    (("energy", ENERGIES), ("sample_y", Y_UM + region), ("sample_x", X_UM)), 1
                ):
                    group[name] = values
                    group[name].attrs["axis"] = axis
                group["count_time"] = np.full(4, 2.0)
                group["motor_name_x"], group["motor_name_y"] = "SampleX", "SampleY"
            if "Ptychography" in scan_type:
                for number in range(3):
                    top[f"ccd0/exp/{number}"] = np.zeros((8, 8), np.uint16)
    return path


def cls(path: Path) -> Path:
    """CLS pyStxm: one entry per region, several counters each, float32 axes."""
    with h5py.File(path, "w") as file:
        for region in (1, 2):
            top = nexus(file, f"entry{region}", "NXentry")
            text(top, "definition", "NXstxm").attrs["version"] = np.bytes_("1.0")
            instrument = nexus(top, "instrument", "NXinstrument")
            text(nexus(instrument, "source", "NXsource"), "name", "Canadian Light Source")
            for number, counter in enumerate(("counter0", "counter1")):
                group = nexus(top, counter, "NXdata")
                group.attrs["signal"] = np.bytes_("data")
                group.attrs["axes"] = np.array([b"energy", b"sample_y", b"sample_x"])
                group["data"] = (counts(4, 3, 5) + 1000 * region + 10000 * number).astype("f4")
                group["energy"] = ENERGIES.astype("f4")
                group["sample_y"], group["sample_x"] = Y_UM.astype("f4"), X_UM.astype("f4")
                group["count_time"] = np.array([0.002], dtype="f4")
                group["epu_polarization"] = np.array([0.0])
                group["stxm_scan_type"] = b"sample image stack"
    return path


def any_order(path: Path, order: tuple[int, int, int], how: str, data: np.ndarray) -> Path:
    """Counts given as (energy, y, x), stored with their axes in another order.

    `how` says what tells the order: ``axes``, ``text`` (one string), ``axis``, ``indices`` or
    ``lengths`` (nothing but the lengths of the axes).
    """
    names = ("energy", "sample_y", "sample_x")
    stored = data.transpose(order)
    with h5py.File(path, "w") as file:
        group = nexus(nexus(file, "entry1", "NXentry"), "counter0", "NXdata")
        group["data"] = stored
        group["energy"] = 640.0 + np.arange(data.shape[0])
        group["sample_y"] = 0.05 * np.arange(data.shape[1])
        group["sample_x"] = 0.05 * np.arange(data.shape[2])
        listed = [names[axis] for axis in order]
        if how == "axes":
            group.attrs["axes"] = np.array([name.encode() for name in listed])
        elif how == "text":
            group.attrs["axes"] = ":".join(listed)
        elif how == "axis":
            for number, name in enumerate(listed, start=1):
                group[name].attrs["axis"] = np.int32(number)
        elif how == "indices":
            # Two names for three axes: only their indices tell where they belong.
            group.attrs["axes"] = np.array([b"sample_y", b"sample_x"])
            for name in ("sample_y", "sample_x"):
                group.attrs[f"{name}_indices"] = np.array([listed.index(name)], dtype=np.uint32)
    return path


# --------------------------------------------------------------------------------------------
# CXI


def complex_image(rows: int, columns: int, scale: float = 20.0) -> np.ndarray:
    """Smooth complex transmission that differs along y and x."""
    y, x = np.mgrid[0:rows, 0:columns]
    absorbed = np.exp(-0.3 * np.exp(-((y - rows / 3) ** 2 + (x - columns / 2) ** 2) / 30.0))
    return (scale * absorbed * np.exp(0.02j * x)).astype(np.complex64)


def cosmic(
    path: Path,
    energy_ev: float = 855.9056,
    *,
    image: np.ndarray | None = None,
    pixnm: float | None = None,
    corner: tuple[float, float, float] | None = (0.01461, 0.01461, 0.121),
    **image_values: Any,
) -> Path:
    """COSMIC reconstruction: one image, joules, the pixel in the corner position or in pixnm."""
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 130
        file["entry_1/image_1/data"] = complex_image(12, 10) if image is None else image
        file["entry_1/instrument_1/source_1/energy"] = energy_ev * JOULE_PER_EV
        if corner is not None:
            file["entry_1/instrument_1/detector_1/corner_position"] = np.array(corner)
        if pixnm is not None:
            file["entry_1/process_1/Param/pixnm"] = pixnm
        for name, value in image_values.items():
            file[f"entry_1/image_1/{name}"] = value
    return path


def cxi_entries(path: Path, energies: Any, images: Any, pixel_m: float = 5e-9) -> Path:
    """Series in one file: one entry per energy."""
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        for number, (energy, image) in enumerate(zip(energies, images, strict=True), start=1):
            top = file.create_group(f"entry_{number}")
            top["image_1/data"] = image
            top["image_1/x_pixel_size"] = top["image_1/y_pixel_size"] = pixel_m
            top["instrument_1/source_1/energy"] = energy * JOULE_PER_EV
    return path


def cxi_images(path: Path, energies: Any, images: Any, where: str, pixnm: float = 5.0) -> Path:
    """Series in one file: one image per energy, each with its own energy."""
    with h5py.File(path, "w") as file:
        top = file.create_group("entry_1")
        top["process_1/Param/pixnm"] = pixnm
        for number, (energy, image) in enumerate(zip(energies, images, strict=True), start=1):
            top[f"image_{number}/data"] = image
            top[where.format(number=number)] = energy * JOULE_PER_EV
    return path


def cxi_volume(path: Path, energies: Any, images: np.ndarray) -> Path:
    """Series in one file: one three-dimensional image and a list of energies."""
    with h5py.File(path, "w") as file:
        file["entry_1/image_1/data"] = images
        file["entry_1/image_1/image_size"] = np.array([images.shape[2], images.shape[1], 1]) * 5e-9
        file["entry_1/instrument_1/source_1/energy"] = np.asarray(energies) * JOULE_PER_EV
    return path


def raw_cxi(path: Path) -> Path:
    """Raw ptychography as cdtools reads it: data_1 is soft links, mask 1 is bad."""
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"] = np.zeros((6, 8, 8), np.int32)
        detector["mask"] = np.zeros((8, 8), np.uint32)
        detector["basis_vectors"] = np.array([[0, -5.5e-5], [-5.5e-5, 0], [0, 0]])
        file["entry_1/sample_1/geometry_1/translation"] = np.zeros((6, 3))
        detector["translation"] = h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")
        file["entry_1/instrument_1/source_1/energy"] = 12658.0 * JOULE_PER_EV
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
    return path


# --------------------------------------------------------------------------------------------
# Bad input


def cut(source: Path, path: Path, part: float) -> Path:
    """First part of a file."""
    whole = source.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    return path


def packed_frames(path: Path, data: np.ndarray, filters: str) -> Path:
    """PolLux-like file whose frames went through other filters: one chunk a frame."""
    pollux(
        path,
        data=data,
        y=0.05 * np.arange(data.shape[1]),
        x=0.05 * np.arange(data.shape[2]),
        energy=640.0 + np.arange(data.shape[0]),
    )
    options: dict[str, Any] = {
        "gzip": {"compression": "gzip"},
        "shuffle": {"compression": "gzip", "shuffle": True},
        "fletcher": {"compression": "gzip", "fletcher32": True},
        "lzf": {"compression": "lzf"},
        "none": {},
    }[filters]
    with h5py.File(path, "r+") as file:
        group = file["entry1/counter0"]
        del group["data"]
        group.create_dataset("data", data=data, chunks=(1, *data.shape[1:]), **options)
    return path


def unknown_filter(path: Path, number: int = 31999) -> Path:
    """Counts that went through a filter nobody has."""
    pollux(path)
    with h5py.File(path, "r+") as file:
        group = file["entry1/counter0"]
        del group["data"]
        kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        kind.set_chunk((1, 3, 5))
        kind.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((4, 3, 5))
        dataset = h5py.h5d.create(group.id, b"data", h5py.h5t.IEEE_F64LE, space, kind)
        for energy in range(4):
            dataset.write_direct_chunk((energy, 0, 0), zlib.compress(bytes(120)), 0)
    return path


def linked(path: Path, target: Path | str, inside: str = "/entry1/counter0/data") -> Path:
    """Counts that are an external link to another file."""
    pollux(path)
    with h5py.File(path, "r+") as file:
        group = file["entry1/counter0"]
        del group["data"]
        group["data"] = h5py.ExternalLink(str(target), inside)
    return path
