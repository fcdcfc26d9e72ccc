"""The run description: its defaults are the functions' own, and every mistake is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from spectromap import cli, config
from spectromap.schema import InputError, Instrument, Sample, SpectromapError

BAD = sorted((Path(__file__).parent / "bad_configs").glob("*.yaml"))

DESIGN_EXAMPLE = """
schema_version: 1
technique: stxm
stack: scan.hdf5
edge: Mn L3
sample:
  geometry: dispersed
  section_nm: null
  formula: Li1.18Ni0.21Mn0.53Co0.08O2
  density_g_cm3: 4.25
  delithiated_time_s: 4.0e5
  delithiated_time_rel_error: 0.1
instrument: {resolution_nm: 10, dark_counts: 10, spectral_fwhm_eV: 0.25, stray_fraction: 0.0}
i0: {region: [0, 67, 0, 67]}
references:
  mn4: {file: pristine.csv, valence: 4}
  mn3: {file: mn2o3.csv, valence: 3, scale: edge_jump}
fraction: mn3
align: {}
fit: {}
segment: {}
profiles: {}
models: {}
heterogeneity: {}
labels: null
seed: 0
"""


@pytest.mark.parametrize("name", sorted(config.STAGES))
def test_every_section_is_the_options_of_its_function(name):
    section = type(getattr(config.parse_run({"stack": "a"}), name))
    options = config.stage_options(config.STAGES[name])
    assert set(section.model_fields) == set(options)
    for option, parameter in options.items():
        assert section.model_fields[option].default == parameter.default


@pytest.mark.parametrize(("name", "kind"), [("sample", Sample), ("instrument", Instrument)])
def test_sample_and_instrument_are_the_dataclasses(name, kind):
    section = getattr(config.parse_run({"stack": "a"}), name)
    assert kind(**section.model_dump()) == kind()


def test_the_documented_description_is_accepted(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(DESIGN_EXAMPLE)
    run = config.load_run(path)
    assert run.sample.delithiated_time_s == 4.0e5
    assert run.i0.region == (0, 67, 0, 67)
    assert run.references["mn3"].scale == "edge_jump"


def test_only_the_stack_is_required_and_auto_means_auto():
    run = config.parse_run({"stack": "a.hdf5", "i0": "auto"})
    assert run.i0 == config.I0()
    assert run.seed == 0


def test_a_description_survives_its_own_yaml(tmp_path):
    run = config.parse_run(yaml.safe_load(DESIGN_EXAMPLE))
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml(run))
    assert config.to_yaml(config.load_run(path)) == config.to_yaml(run)


def test_numbers_people_write_are_numbers(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("stack: a\nsample: {delithiated_time_s: 4e5}\n")
    assert config.load_run(path).sample.delithiated_time_s == 4e5


def test_paths_are_relative_to_the_description(tmp_path):
    (tmp_path / "scan.hdf5").write_text("x")
    path = tmp_path / "run.yaml"
    path.write_text("stack: scan.hdf5\n")
    assert config.load_run(path).stack == str((tmp_path / "scan.hdf5").resolve())


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_every_mistake_is_named_with_its_place(path, capsys):
    expected = re.findall(r"^# expect: (.*)$", path.read_text(), flags=re.MULTILINE)
    assert expected
    with pytest.raises(SpectromapError) as caught:
        config.load_run(path)
    assert str(path) in str(caught.value)
    for text in expected:
        assert text in str(caught.value)
    assert cli.main(["check", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_overrides_replace_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("stack: a.hdf5\nseed: 3\n")
    assert config.load_run(path, seed=5).seed == 5
    with pytest.raises(InputError, match="seed"):
        config.load_run(path, seed=-1)
