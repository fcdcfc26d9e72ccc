"""The dock's state without a window: a run description, its history, and which steps still hold."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from make_runs import description, write_run

from spectromap import config
from spectromap.plugin.state import STEPS, State, Status, step_of
from spectromap.schema import InputError, SpectromapError

NAMES = [step.name for step in STEPS]
#: A key of every step and another value for it.
CHANGES = {
    "data": (("edge",), "Ni L3"),
    "align": (("shifts", "corrections"), {640.0: (5.0, 0.0)}),
    "i0": (("i0", "region"), [0, 10, 0, 10]),
    "energy": (("energy", "max_shift_eV"), 0.5),
    "composition": (("fit", "baseline"), "none"),
    "particles": (("labels",), "mine.tif"),
    "models": (("models", "models"), ["diffusion"]),
    "heterogeneity": (("heterogeneity", "n_resample"), 500),
}


def all_done(state):
    for name in NAMES:
        state.finish(name, state.begin(name), f"{name} is done")
    return state


def statuses(state):
    return {name: state.status(name) for name in NAMES}


@pytest.fixture
def state():
    return all_done(State(description()))


def test_the_steps_are_those_of_the_method():
    assert [step.title for step in STEPS] == [
        "Data",
        "Align",
        "I0 and OD",
        "Energy",
        "Composition",
        "Particles",
        "Profiles and models",
        "Heterogeneity",
        "Save and replay",
    ]


def test_every_section_of_a_stage_has_a_step_and_every_step_names_real_keys():
    named = [key for step in STEPS for key in step.keys]
    assert len(named) == len(set(named))
    assert set(named) <= set(config.Run.model_fields)
    assert set(config.STAGES) <= set(named), "a stage would rest on the first step"


def test_a_key_that_no_step_names_makes_everything_stale():
    assert step_of("something new") == "data"


def test_what_is_set_is_what_runs():
    state = State(description())
    state.set(("instrument", "resolution_nm"), 12.0)
    state.set(("fraction",), "mn4")
    expected = config.parse_run(description(instrument={"resolution_nm": 12.0}, fraction="mn4"))
    assert state.description() == expected
    assert state.value("instrument", "resolution_nm") == 12.0


def test_a_value_that_was_not_set_is_its_default():
    state = State({"stack": "a.hdf5"})
    assert state.value("seed") == 0
    assert state.value("references") == {}
    assert state.value("instrument", "dark_counts") == 0.0
    for name in config.STAGES:
        assert state.value(name) == getattr(state.description(), name).model_dump(mode="json")


def test_values_given_out_cannot_change_the_state():
    state = State(description())
    state.value("references")["mn3"]["valence"] = 7
    state.content()["references"]["mn3"]["valence"] = 7
    assert state.value("references", "mn3", "valence") == 3


def test_values_taken_in_cannot_change_later():
    given_value = {"region": [0, 1, 0, 1]}
    state = State({"stack": "a"})
    state.set(("i0",), given_value)
    given_value["region"][1] = 99
    assert state.value("i0", "region") == [0, 1, 0, 1]


@pytest.mark.parametrize("step", CHANGES)
def test_a_change_makes_its_step_and_the_later_ones_stale(state, step):
    state.set(*CHANGES[step])
    first = NAMES.index(step)
    for number, name in enumerate(NAMES):
        assert state.status(name) is (Status.STALE if number >= first else Status.DONE), name
    assert state.pending("save") == NAMES[first:]


@pytest.mark.parametrize("step", CHANGES)
def test_undo_makes_them_valid_again_and_redo_stale(state, step):
    before = state.content()
    state.set(*CHANGES[step])
    after = state.content()
    stale = statuses(state)
    state.undo()
    assert state.content() == before
    assert set(statuses(state).values()) == {Status.DONE}
    state.redo()
    assert state.content() == after
    assert statuses(state) == stale


def test_saying_the_default_aloud_changes_nothing(state):
    state.set(("i0",), "auto")
    state.set(("fit", "baseline"), "constant")
    state.set(("seed",), 0)
    assert set(statuses(state).values()) == {Status.DONE}


def test_the_same_value_again_is_no_change(state):
    state.set(("fraction",), "mn3")
    assert not state.can_undo


def test_a_new_change_ends_what_could_be_made_again(state):
    state.set(("seed",), 1)
    state.undo()
    state.set(("seed",), 2)
    assert not state.can_redo
    state.redo()
    assert state.value("seed") == 2


@given(st.lists(st.tuples(st.sampled_from(list(CHANGES)), st.booleans()), max_size=12))
def test_any_history_can_be_walked_both_ways(steps):
    state = State(description())
    seen = [state.content()]
    for name, other in steps:
        path, value = CHANGES[name]
        state.set(path, value if other else None)
        if state.content() != seen[-1]:
            seen.append(state.content())
    for content in reversed(seen):
        assert state.content() == content
        state.undo()
    assert not state.can_undo
    for content in seen:
        assert state.content() == content
        state.redo()
    assert not state.can_redo


def test_a_change_while_a_step_runs_leaves_it_stale(state):
    mark = state.begin("i0")
    assert state.status("i0") is Status.RUNNING
    state.set(("align", "max_shift_nm"), 300.0)
    state.finish("i0", mark, "open area 12 %")
    assert state.status("i0") is Status.STALE
    assert state.text("i0") == "open area 12 %"


def test_a_step_that_is_broken_off_keeps_what_it_had(state):
    state.begin("align")
    state.cancel("align")
    assert state.status("align") is Status.DONE
    fresh = State(description())
    fresh.begin("align")
    fresh.cancel("align")
    assert fresh.status("align") is Status.NEW


def test_a_step_that_failed_says_why_until_something_changes(state):
    state.fail("i0", state.begin("i0"), "no open area")
    assert state.status("i0") is Status.FAILED
    assert state.text("i0") == "no open area"
    assert state.pending("i0") == ["i0"]
    state.set(*CHANGES["i0"])
    assert state.status("i0") is Status.STALE


def test_equal_descriptions_have_equal_marks():
    one, other = State(description()), State(description(seed=0, i0="auto"))
    assert [one.mark(n) for n in NAMES] == [other.mark(n) for n in NAMES]
    other.set(("i0", "region"), [0, 5, 0, 5])
    assert [one.mark(n) == other.mark(n) for n in NAMES] == [n in ("data", "align") for n in NAMES]


def test_an_unfinished_description_says_what_is_missing_and_where():
    state = State()
    assert list(state.problems()) == ["data"]
    assert "stack: is required" in state.problems()["data"]
    state.set(("stack",), "scan.hdf5")
    assert state.problems() == {}
    state.set(("references",), {"mn3": {"file": "mn3.csv"}})
    state.set(("fraction",), "mn5")
    state.set(("i0", "regoin"), [0, 1, 0, 1])
    state.set(("fit", "baseline"), "crooked")
    found = state.problems()
    assert set(found) >= {"i0", "composition"}
    assert any("i0.regoin: unknown key" in text for text in found["i0"])
    assert any("fit.baseline" in text for text in found["composition"])
    with pytest.raises(InputError, match="baseline"):
        state.description()
    with pytest.raises(SpectromapError, match="regoin"):
        state.to_yaml()


def test_mistakes_between_keys_belong_to_a_step_too():
    one_reference = State({"stack": "a", "references": {"mn3": {"file": "mn3.csv"}}})
    assert list(one_reference.problems()) == ["energy"]
    other = State(description(fraction="mn5"))
    assert list(other.problems()) == ["composition"]


def test_steps_do_not_become_valid_through_a_mistake(state):
    state.set(("fit", "baseline"), "crooked")
    assert state.status("composition") is Status.STALE
    assert state.status("energy") is Status.DONE


def test_unknown_keys_are_refused():
    with pytest.raises(InputError, match="no such key"):
        State().set(("stakc",), "a.hdf5")
    with pytest.raises(InputError, match=r"instrument\.resolution"):
        State({"stack": "a"}).value("instrument", "resolution")


def test_it_is_the_file_that_run_takes(tmp_path):
    path = write_run(tmp_path)
    state = State.from_yaml(path)
    assert state.description() == config.load_run(path)
    state.set(("instrument", "resolution_nm"), 30.0)
    elsewhere = state.save(tmp_path / "elsewhere" / "mine.yaml")
    assert config.to_yaml(config.load_run(elsewhere)) == state.to_yaml()
    again = State.from_yaml(elsewhere)
    assert [again.mark(name) for name in NAMES] == [state.mark(name) for name in NAMES]
    assert yaml.safe_load(elsewhere.read_text())["stack"] == str(tmp_path / "scan.hdf5")


def test_saving_what_is_wrong_leaves_the_old_file(tmp_path):
    path = write_run(tmp_path)
    before = path.read_text()
    state = State.from_yaml(path)
    state.set(("seed",), -1)
    with pytest.raises(InputError, match="seed"):
        state.save(path)
    assert path.read_text() == before


def test_a_bad_file_is_refused_with_every_mistake(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("stack: a\nseed: -1\nedgee: Mn L3\n")
    with pytest.raises(InputError, match="seed") as caught:
        State.from_yaml(path)
    assert "edgee: unknown key" in str(caught.value)


def test_another_description_is_one_change(state):
    other = description(seed=3)
    state.replace(other)
    assert state.status("data") is Status.STALE
    state.undo()
    assert state.content() == description()


def test_everyone_is_told_until_they_leave(state):
    heard = []
    leave = state.listen(lambda: heard.append(state.status("data")))
    state.set(("seed",), 4)
    mark = state.begin("data")
    state.finish("data", mark)
    state.undo()
    assert heard == [Status.STALE, Status.RUNNING, Status.DONE, Status.STALE]
    leave()
    state.redo()
    assert len(heard) == 4
