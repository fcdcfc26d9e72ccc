"""The catalogue of data sets, and how their files are found or downloaded and checked."""

from __future__ import annotations

import copy
import difflib
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from spectromap.io._yaml import load_yaml, mistakes
from spectromap.schema import LOG, FileError, InputError

__all__ = ["DataFile", "DataSet", "Manifest", "dataset_run", "fetch", "load_manifest"]

MANIFEST_NAME = "data_manifest.yaml"
DATA_VARIABLE = "SPECTROMAP_DATA"


def _inside(path: str) -> str:
    """Refuse a relative path that is not plainly below the folder it belongs to."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ValueError(f"'{path}' is not a path below the folder of the data set")
    return path


def _web_address(url: str) -> str:
    """Refuse anything but a web folder, which ends in a slash."""
    split = urlsplit(url)
    if split.scheme not in ("https", "http") or not split.netloc or not url.endswith("/"):
        raise ValueError(f"'{url}' is not the web address of a folder (https://.../)")
    return url


def _expand(entry: Any) -> Any:
    """Let ``name: sha256`` stand for ``name: {sha256: ...}``."""
    return {"sha256": entry} if isinstance(entry, str) else entry


RelativePath = Annotated[str, AfterValidator(_inside)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataFile(_Strict):
    """One file: its checksum and, where it differs, its path below the address of the set."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    source: RelativePath | None = None


class Source(_Strict):
    """Where a data set was published."""

    repository: str
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]


class DataSet(_Strict):
    """One data set of the manifest; the manifest's header tells what the fields mean."""

    title: str
    kind: Literal["stack", "image", "spectra", "refused"]
    technique: str | None = None
    edge: str | None
    folder: RelativePath
    url: Annotated[str, AfterValidator(_web_address)] | None
    source: Source
    licence: str
    citation: str
    sample: Mapping[str, Any] = Field(default_factory=dict)
    quirks: list[str] = Field(default_factory=list)
    run: Mapping[str, Any] | None = None
    files: dict[RelativePath, Annotated[DataFile, BeforeValidator(_expand)]] = Field(min_length=1)

    def address(self, name: str) -> str | None:
        """Web address of one of the files, or None where none is known."""
        return urljoin(self.url, quote(self.files[name].source or name)) if self.url else None


class _Content(_Strict):
    """The manifest file as it stands."""

    schema_version: Literal[1]
    datasets: dict[str, DataSet]


@dataclass(frozen=True)
class Manifest:
    """The data sets by name, and the file that lists them."""

    path: Path
    datasets: Mapping[str, DataSet]

    def __getitem__(self, name: str) -> DataSet:
        """Look a data set up, or name those that are spelled like it."""
        if name in self.datasets:
            return self.datasets[name]
        close = difflib.get_close_matches(name, self.datasets, n=3, cutoff=0.4)
        raise InputError(
            f"there is no data set '{name}'",
            where=self.path,
            remedy=(
                f"Did you mean {' or '.join(close)}?"
                if close
                else f"Choose one of {', '.join(self.datasets)}."
            ),
        )


def _find_manifest() -> Path:
    """The manifest of the current folder or of the nearest above it, else the packaged one."""
    here = Path.cwd()
    package = Path(__file__).resolve().parents[1]
    # The folder above the package is the repository in an editable installation.
    for folder in (here, *here.parents, package, package.parent):
        candidate = folder / MANIFEST_NAME
        if candidate.is_file():
            return candidate
    raise FileError(
        f"no {MANIFEST_NAME} in this folder or above it",
        where=here,
        remedy="Name the manifest, or change to the folder that holds it.",
    )


def load_manifest(path: str | os.PathLike[str] | None = None) -> Manifest:
    """Read and check a manifest of data sets.

    Parameters
    ----------
    path : path, optional
        The file. By default ``data_manifest.yaml`` in the current folder or the nearest folder
        above it, else the one that comes with the package.

    Returns
    -------
    Manifest
        The data sets by name.

    Raises
    ------
    FileError
        There is no such file, or it is not plain YAML.
    InputError
        It is not valid; the message lists every mistake with its place.
    """
    found = _find_manifest() if path is None else Path(path)
    try:
        content = _Content.model_validate(load_yaml(found))
    except ValidationError as error:
        found_wrong = mistakes(error.errors())
        raise InputError(f"not a valid manifest:{found_wrong}", where=found) from None
    return Manifest(found.resolve(), content.datasets)


def _opened(manifest: Manifest | str | os.PathLike[str] | None) -> Manifest:
    """A manifest, read if it is not one yet."""
    return manifest if isinstance(manifest, Manifest) else load_manifest(manifest)


def dataset_run(
    name: str, *, manifest: Manifest | str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Run description of a data set; its files are relative to the folder `fetch` returns.

    Parameters
    ----------
    name : str
        A data set of the manifest.
    manifest : Manifest or path, optional
        As for `load_manifest`.

    Returns
    -------
    dict
        A copy that the caller may change.

    Raises
    ------
    InputError
        Unknown name, or a data set that cannot be run as it stands.
    """
    catalogue = _opened(manifest)
    run = catalogue[name].run
    if run is None:
        runnable = [key for key, dataset in catalogue.datasets.items() if dataset.run is not None]
        raise InputError(
            f"the data set '{name}' comes without a run description",
            where=catalogue.path,
            remedy=f"Write one and run it with --config; {', '.join(runnable) or 'none'} has one.",
        )
    return copy.deepcopy(dict(run))


def fetch(
    name: str,
    *,
    manifest: Manifest | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Find the files of a data set, or download them; every file is checked by its SHA-256.

    Looked for in the folder named by the variable ``SPECTROMAP_DATA``, in ``../shared/data``
    beside the folder of the manifest, and in the user's cache; then downloaded to the cache.

    Parameters
    ----------
    name : str
        A data set of the manifest.
    manifest : Manifest or path, optional
        As for `load_manifest`.
    progress : bool
        Show a progress bar while downloading to a terminal.

    Returns
    -------
    Path
        The folder that holds the files.

    Raises
    ------
    InputError
        Unknown name, or ``SPECTROMAP_DATA`` names no folder.
    FileError
        A file differs from its checksum, or cannot be downloaded. Nothing of a failed download
        is kept.
    """
    catalogue = _opened(manifest)
    dataset = catalogue[name]
    for root in _local_roots(catalogue):
        if _is_complete(root / dataset.folder, dataset):
            return root / dataset.folder
    return _download(name, dataset, progress)


def _local_roots(catalogue: Manifest) -> Iterator[Path]:
    """Folders of data sets that the user keeps, in the order of their precedence."""
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        if not Path(chosen).is_dir():
            raise InputError(
                f"'{chosen}' is not a folder",
                where=DATA_VARIABLE,
                remedy="Set the variable to the folder that holds the data sets, or unset it.",
            )
        yield Path(chosen)
    yield catalogue.path.parent.parent / "shared" / "data"


def _is_complete(folder: Path, dataset: DataSet) -> bool:
    """Whether all files are there; a damaged one is an error, a missing one a warning."""
    missing = [name for name in dataset.files if not (folder / name).is_file()]
    if missing:
        if len(missing) < len(dataset.files):
            LOG.warning(
                "%s: passed over, it lacks %d of %d files, the first %s",
                folder,
                len(missing),
                len(dataset.files),
                missing[0],
            )
        return False
    for name, entry in dataset.files.items():
        found = _sha256(folder / name)
        if found != entry.sha256:
            raise FileError(
                f"is not the file of the manifest (SHA-256 {found}, expected {entry.sha256})",
                where=folder / name,
                remedy="Replace it by the original, or move it away to have it downloaded.",
            )
    return True


def _sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(name: str, dataset: DataSet, progress: bool) -> Path:
    """Bring what the cache lacks; a file appears there only once its checksum is right."""
    import pooch
    from tqdm import tqdm

    folder = Path(pooch.os_cache("spectromap")) / dataset.folder
    for file in tqdm(
        dataset.files, desc=f"fetch {name}", unit="file", disable=None if progress else True
    ):
        target, expected = folder / file, dataset.files[file].sha256
        if target.is_file() and _sha256(target) == expected:
            continue
        address = dataset.address(file)
        if address is None:
            raise FileError(
                "is not on this machine, and no address is known for it",
                where=f"{name}: {file}",
                remedy=(
                    f"Take it from {dataset.source.repository} (commit {dataset.source.commit})"
                    f" and put it into {dataset.folder} below the folder named by {DATA_VARIABLE}."
                ),
            )
        _download_file(address, target, expected)
    return folder


def _download_file(address: str, target: Path, sha256: str) -> None:
    """Bring one file, or leave nothing behind."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)  # the progress bar says it already
    try:
        pooch.retrieve(
            address,
            known_hash=f"sha256:{sha256}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(timeout=60),
        )
    except (OSError, ValueError) as error:
        with suppress(OSError):
            target.parent.rmdir()  # only if it is empty
        raise FileError(
            f"could not be downloaded from {address} ({error})",
            where=target.name,
            remedy=f"Try again later, or set {DATA_VARIABLE} to a folder that holds the data.",
        ) from error
