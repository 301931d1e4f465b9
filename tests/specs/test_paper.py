"""The paper section: what a published table needs, and what is refused, with the line and the way out."""

from copy import deepcopy

import pytest
import yaml

from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec, SftSpec, load_spec
from hba_ray.specs.base import has_key, section_at, value_at

TABLE = {
    "table": "T6",
    "title": "adapters against none",
    "digits": 2,
    "published": {"plain": {"SAR": 0.62, "SOC": 0.26}, "adapted": {"SAR": 0.80}},
    "arms": {"plain": {"arm": "sft"}, "adapted": {"arm": "sft+bam", "where": {"sft.lr": 1e-4}}},
    "contrasts": [{"of": "adapted", "over": "plain", "published": {"SAR": [29.0, 0.18]}}],
    "gates": [{"says": "adapters help", "of": "adapted", "over": ["plain"], "rows": ["SAR"]}],
}


def written(folder, **changes):
    spec = {"name": "x", "atlas": {"source": "toy"}, "paper": deepcopy(TABLE) | changes}
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    return file


def test_a_table_is_read_with_its_cells_and_where_they_come_from(tmp_path):
    paper = load_spec(written(tmp_path)).paper
    assert paper is not None
    assert paper.published["adapted"] == {"SAR": 0.80}
    assert paper.arms["adapted"] and paper.arms["adapted"].where == {"sft.lr": 1e-4}
    assert paper.contrasts[0].published["SAR"] == (29.0, 0.18)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"table": "T7"}, "'T4', 'T5'"),
        ({"published": {}}, "at least 1 item"),
        ({"arms": {"plain": {"arm": "sft"}}}, "published names the column 'adapted', which is not in arms"),
        ({"published": {"plain": {"SAR": 0.6}}, "contrasts": [], "gates": []}, "arms names the column 'adapted'"),
        ({"published": {"plain": {"SAR": "high"}, "adapted": {}}}, "valid number"),
        ({"contrasts": [{"of": "adapted", "over": "plane"}]}, "contrasts.0: no column 'plane'; columns: plain, adapted"),
        ({"contrasts": [{"of": "adapted", "over": "plain", "published": {"SOC": [1, 2]}}]}, "row 'SOC' is not published for both"),
        ({"gates": [{"says": "so", "of": "adaptd", "over": ["plain"]}]}, "gates.0: no column 'adaptd'"),
        ({"gates": [{"says": "so", "of": "adapted"}]}, "one of them"),
        ({"gates": [{"says": "so", "of": "adapted", "over": ["plain"], "within": 0.1}]}, "one of them"),
        ({"gates": [{"says": "so", "of": "adapted", "within": 0}]}, "greater than 0"),
        ({"gates": [{"says": "so", "of": "adapted", "within": 0.1, "rows": ["SAR"], "at_least": 2}]}, "has only 1 rows"),
        ({"arms": TABLE["arms"] | {"plain": {"arm": "sft", "where": {"sft.lrr": 1}}}}, "a spec has no key 'sft.lrr'"),
        ({"gates": [{"says": "so", "of": "adapted", "ovr": ["plain"]}]}, "did you mean 'paper.gates.0.over'"),
        ({"arms": TABLE["arms"] | {"plain": {"amr": "sft"}}}, "did you mean 'paper.arms.plain.arm'"),
        ({"colour": "red"}, "unknown key 'paper.colour'"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused_with_its_place(tmp_path, changes, says):
    file = written(tmp_path, **changes)
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    assert says in str(refused.value)
    place, _, line = refused.value.where.rpartition(":")
    assert place == str(file) and int(line) >= 4


def test_keys_are_found_in_optional_sections_lists_and_mappings():
    assert section_at(ExperimentSpec, ("sft",)) is SftSpec
    assert has_key(ExperimentSpec, "paper.table") and has_key(ExperimentSpec, "sft") and has_key(ExperimentSpec, "paper.gates.3.within")
    assert not has_key(ExperimentSpec, "paper.tabel") and not has_key(ExperimentSpec, "sft.lr.x") and not has_key(ExperimentSpec, "nothing")


def test_the_value_of_a_key_is_plain_json():
    spec = ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, "stages": ["sft"]})
    assert value_at(spec, "stages") == ["sft"]
    assert value_at(spec, "paper.table") is None
    with pytest.raises(KeyError):
        value_at(spec, "sft.lrr")
