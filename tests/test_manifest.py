"""The manifest of data sets, and fetching their files, through a real server on this machine."""

from __future__ import annotations

import hashlib
import textwrap
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from spectromap.io import manifest as manifest_module
from spectromap.io.manifest import Manifest, dataset_run, fetch, load_manifest
from spectromap.schema import FileError, InputError

REPOSITORY = Path(__file__).resolve().parents[1]
CONTENT = {"spectrum one.csv": b"energy_eV,od\n640,0.1\n", "deep/stack.hdr": b"ScanDefinition\n"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(**changes: object) -> dict[str, object]:
    return {
        "title": "A test",
        "kind": "spectra",
        "edge": "Mn L3",
        "folder": "set/inner",
        "url": None,
        "source": {"repository": "example.org/test", "commit": "0" * 40},
        "licence": "MIT",
        "citation": "Nobody (2026)",
        "files": {name: sha256(content) for name, content in CONTENT.items()},
        **changes,
    }


def put(folder: Path, content: dict[str, bytes] = CONTENT) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class Place:
    """A repository, the folders that `fetch` looks into, and a web server of its own."""

    def __init__(self, root: Path, address: str) -> None:
        self.manifest = root / "repository" / "data_manifest.yaml"
        self.shared = root / "shared" / "data"
        self.mine = root / "mine"
        self.cache = root / "cache"
        self.served = root / "served"
        self.address = address
        self.requests: list[str] = []
        for folder in (self.manifest.parent, self.mine, self.served):
            folder.mkdir(parents=True)

    def write(self, **changes: object) -> Manifest:
        content = {"schema_version": 1, "datasets": {"test-set": entry(**changes)}}
        self.manifest.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_manifest(self.manifest)

    def cached(self) -> list[str]:
        found = [path for path in self.cache.rglob("*") if path.is_file()]
        return sorted(path.name for path in found)


class Handler(SimpleHTTPRequestHandler):
    """Serves files and writes down what was asked for."""

    def __init__(self, *args: object, asked: list[str], **keywords: object) -> None:
        self.asked = asked
        super().__init__(*args, **keywords)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    asked: list[str] = []
    handler = partial(Handler, directory=str(tmp_path / "served"), asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        here = Place(tmp_path, f"http://127.0.0.1:{server.server_port}/")
        here.requests = asked
        monkeypatch.delenv("SPECTROMAP_DATA", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(here.cache))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield here
        server.shutdown()
        thread.join()


# ---------------------------------------------------------------- the manifest of this project


def test_the_projects_manifest_is_valid_and_complete() -> None:
    manifest = load_manifest(REPOSITORY / "data_manifest.yaml")
    assert "toner-fe-71214078" in manifest.datasets
    for name, dataset in manifest.datasets.items():
        assert dataset.licence, name
        assert dataset.citation, name
        if dataset.url is not None:
            assert dataset.source.commit in dataset.url, name
            assert dataset.source.repository.removeprefix("github.com/") in dataset.url, name


def test_files_of_the_projects_manifest_have_their_checksums(shared_data: Path) -> None:
    manifest = load_manifest(REPOSITORY / "data_manifest.yaml")
    for name, dataset in manifest.datasets.items():
        folder = shared_data / dataset.folder
        assert folder.is_dir(), name
        found = {file: sha256((folder / file).read_bytes()) for file in dataset.files}
        assert found == {file: part.sha256 for file, part in dataset.files.items()}, name


def test_run_descriptions_name_only_files_of_their_data_set() -> None:
    manifest = load_manifest(REPOSITORY / "data_manifest.yaml")
    runs = {name: dataset for name, dataset in manifest.datasets.items() if dataset.run}
    assert "toner-fe-71214078" in runs
    for name, dataset in runs.items():
        run = dataset_run(name, manifest=manifest)
        named = [run["stack"], *(part["file"] for part in run["references"].values())]
        named += [run["i0"][key] for key in ("spectrum", "mask") if key in run.get("i0", {})]
        assert set(named) <= set(dataset.files), name
        assert run["fraction"] in run["references"], name


def test_run_of_the_iron_stack() -> None:
    run = dataset_run("toner-fe-71214078", manifest=REPOSITORY / "data_manifest.yaml")
    assert run["edge"] == "Fe L3"
    assert run["i0"] == {"spectrum": "i0.xsp"}
    assert run["references"]["fe2"] == {"file": "reduced.r", "valence": 2}
    run["i0"]["spectrum"] = "other"
    again = dataset_run("toner-fe-71214078", manifest=REPOSITORY / "data_manifest.yaml")
    assert again["i0"] == {"spectrum": "i0.xsp"}


# ---------------------------------------------------------------- finding and reading a manifest


def test_manifest_is_found_in_a_folder_above(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write()
    deep = place.manifest.parent / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert load_manifest().path == place.manifest.resolve()


def test_without_a_manifest_nearby_the_packaged_one_is_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.mine)
    assert "toner-fe-71214078" in load_manifest().datasets


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.yaml: no such file"):
        load_manifest(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {"../outside.csv": "0" * 64}}, "not a path below the folder"),
        ({"files": {"/etc/passwd": "0" * 64}}, "not a path below the folder"),
        ({"files": {"C:/data.csv": "0" * 64}}, "not a path below the folder"),
        ({"files": {"a\\..\\b.csv": "0" * 64}}, "not a path below the folder"),
        ({"files": {"a.csv": {"sha256": "0" * 64, "source": "../../b"}}}, "not a path below"),
        ({"folder": "../elsewhere"}, "not a path below the folder"),
        ({"files": {"a.csv": "abc"}}, r"files\.a\.csv\.sha256"),
        ({"files": {}}, "at least 1 item"),
        ({"url": "file:///etc/"}, "not the web address of a folder"),
        ({"url": "https://example.org/folder"}, "not the web address of a folder"),
        ({"kind": "film"}, r"datasets\.test-set\.kind"),
        ({"colour": "red"}, r"datasets\.test-set\.colour: unknown key"),
    ],
)
def test_mistakes_in_a_manifest_are_refused(
    place: Place, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        place.write(**changes)
    assert str(place.manifest) in str(error.value)


def test_all_mistakes_are_listed_at_once(place: Place) -> None:
    with pytest.raises(InputError) as error:
        place.write(kind="film", licence=None, url="nowhere")
    assert all(f"test-set.{key}: " in str(error.value) for key in ("kind", "licence", "url"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 1\n", "the key 'a' occurs twice, line 2, column 1"),
        ("a: {b: 1, b: 2}\n", "the key 'b' occurs twice, line 1, column 11"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor.*line 1"),
        ("datasets: [\n", "not a valid YAML file.*line 2"),
        ("a: \x00\n", "characters that are not text"),
        ("? [a, b]\n: 1\n", "unhashable key, line 1"),
        ("- one\n- two\n", "holds no keys"),
        ("", "holds no keys"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data_manifest.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError, match=message):
        load_manifest(path)


def test_numbers_in_yaml_are_numbers(tmp_path: Path) -> None:
    from spectromap.io._yaml import load_yaml

    path = tmp_path / "run.yaml"
    path.write_text(
        textwrap.dedent(
            """\
            time: 4.0e5
            small: 1e-15
            signed: -2.5E+3
            plain: 0.25
            count: 12
            base: &base {a: 1, b: 2}
            merged: {<<: *base, b: 3}
            name: 1e5x
            """
        ),
        encoding="utf-8-sig",
    )
    assert load_yaml(path) == {
        "time": 4.0e5,
        "small": 1e-15,
        "signed": -2500.0,
        "plain": 0.25,
        "count": 12,
        "base": {"a": 1, "b": 2},
        "merged": {"a": 1, "b": 3},
        "name": "1e5x",
    }


def test_an_unknown_name_lists_its_neighbours(place: Place) -> None:
    manifest = place.write()
    with pytest.raises(InputError, match=r"no data set 'tset-set'.*Did you mean test-set\?"):
        fetch("tset-set", manifest=manifest)
    with pytest.raises(InputError, match="Choose one of test-set"):
        fetch("Q", manifest=manifest)


def test_a_data_set_without_a_run_says_so(place: Place) -> None:
    with pytest.raises(InputError, match="'test-set' comes without a run description"):
        dataset_run("test-set", manifest=place.write())


# ---------------------------------------------------------------- fetching


def test_places_are_tried_in_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = place.write(url=place.address)
    put(place.served)

    downloaded = fetch("test-set", manifest=manifest)
    assert downloaded == place.cache / "spectromap" / "set" / "inner"
    assert len(place.requests) == len(CONTENT)
    assert fetch("test-set", manifest=manifest) == downloaded
    assert len(place.requests) == len(CONTENT)  # the second time from the cache

    put(place.shared / "set" / "inner")
    assert fetch("test-set", manifest=place.manifest) == place.shared / "set" / "inner"

    put(place.mine / "set" / "inner")
    monkeypatch.setenv("SPECTROMAP_DATA", str(place.mine))
    assert fetch("test-set", manifest=manifest) == place.mine / "set" / "inner"


def test_download_handles_spaces_and_folders_in_names(place: Place) -> None:
    put(place.served / "at commit")
    manifest = place.write(url=place.address + "at%20commit/")
    folder = fetch("test-set", manifest=manifest, progress=False)
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert place.requests == ["/at%20commit/deep/stack.hdr", "/at%20commit/spectrum%20one.csv"]
    assert place.cached() == ["spectrum one.csv", "stack.hdr"]


def test_a_file_with_another_name_at_its_source(place: Place) -> None:
    put(place.served, {"working/original.csv": b"1"})
    files = {"renamed.csv": {"sha256": sha256(b"1"), "source": "working/original.csv"}}
    folder = fetch("test-set", manifest=place.write(url=place.address, files=files))
    assert (folder / "renamed.csv").read_bytes() == b"1"


def test_a_wrong_checksum_leaves_nothing_in_the_cache(place: Place) -> None:
    put(place.served, {"spectrum one.csv": b"something else"})
    files = {"spectrum one.csv": sha256(CONTENT["spectrum one.csv"])}
    manifest = place.write(url=place.address, files=files)
    with pytest.raises(FileError, match=r"spectrum one\.csv: could not be downloaded.*hash"):
        fetch("test-set", manifest=manifest)
    assert place.cached() == []
    put(place.served)
    folder = fetch("test-set", manifest=manifest)
    assert (folder / "spectrum one.csv").read_bytes() == CONTENT["spectrum one.csv"]


def test_a_page_that_is_not_there_leaves_nothing_in_the_cache(place: Place) -> None:
    with pytest.raises(FileError, match=r"could not be downloaded.*404.*SPECTROMAP_DATA"):
        fetch("test-set", manifest=place.write(url=place.address))
    assert place.cached() == []


def test_a_damaged_file_in_the_cache_is_brought_again(place: Place) -> None:
    manifest = place.write(url=place.address)
    put(place.served)
    folder = fetch("test-set", manifest=manifest)
    (folder / "deep" / "stack.hdr").write_bytes(b"cut off")
    assert fetch("test-set", manifest=manifest) == folder
    assert (folder / "deep" / "stack.hdr").read_bytes() == CONTENT["deep/stack.hdr"]
    assert len(place.requests) == len(CONTENT) + 1


def test_a_damaged_file_of_the_users_own_is_an_error(place: Place) -> None:
    manifest = place.write(url=place.address)
    put(place.served)
    changed = put(place.shared / "set" / "inner") / "spectrum one.csv"
    changed.write_bytes(b"changed")
    with pytest.raises(FileError, match=r"spectrum one\.csv: is not the file of the manifest"):
        fetch("test-set", manifest=manifest)
    assert changed.read_bytes() == b"changed"
    assert place.requests == []


def test_an_incomplete_folder_is_passed_over(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = place.write(url=place.address)
    put(place.served)
    (put(place.shared / "set" / "inner") / "spectrum one.csv").unlink()
    assert fetch("test-set", manifest=manifest).is_relative_to(place.cache)
    assert "lacks 1 of 2 files, the first spectrum one.csv" in caplog.text


def test_without_an_address_the_message_says_where_to_get_it(place: Place) -> None:
    with pytest.raises(FileError, match=r"no address is known.*example\.org/test.*set/inner"):
        fetch("test-set", manifest=place.write())


def test_the_data_variable_must_name_a_folder(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTROMAP_DATA", str(place.mine / "missing"))
    with pytest.raises(InputError, match=r"SPECTROMAP_DATA: .*missing' is not a folder"):
        fetch("test-set", manifest=place.write())


def test_public_names() -> None:
    for name in manifest_module.__all__:
        assert getattr(manifest_module, name).__doc__, name
