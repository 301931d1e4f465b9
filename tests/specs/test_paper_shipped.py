"""The shipped specs are found where they are, and a table of the paper by its number."""

import pytest

from hba_ray.errors import SpecError
from hba_ray.specs import load_spec
from hba_ray.specs.paper import ATLAS_SPEC, DESCRIPTIVE, experiments_folder, find_table

SHIPPED = experiments_folder()


@pytest.mark.parametrize("word", ["T11", "t11", "11", "Table 11"])
def test_a_table_is_found_by_its_number(word):
    assert find_table(word, SHIPPED).name == "T11_bam_width.yaml"


def test_an_unknown_table_names_those_that_are_there():
    with pytest.raises(SpecError, match="no spec for a table 'T99'") as refused:
        find_table("T99", SHIPPED)
    assert "T4, T5, T6, T8" in refused.value.way_out and "of the atlas itself T1, T2" in refused.value.way_out
    assert refused.value.exit_code == 2


def test_tables_that_describe_the_atlas_have_no_spec_of_their_own_and_one_base():
    assert {"T1", "T2", "T3", "T7", "T21", "T22", "F1"} == set(DESCRIPTIVE)
    assert not [file for file in SHIPPED.glob("paper/*.yaml") if file.name.partition("_")[0] in DESCRIPTIVE]
    assert (SHIPPED / ATLAS_SPEC).is_file()


def test_a_folder_without_the_papers_specs_is_refused(tmp_path):
    with pytest.raises(SpecError, match="--experiments FOLDER"):
        experiments_folder(tmp_path)


def test_table_4_tests_all_claims_about_ten_tasks(monkeypatch):
    """Section 4.1: on how many of ten tasks each model leads the general ones, and HumanOmniV2."""
    monkeypatch.setenv("HBA_ROOT", "anywhere")
    paper = load_spec(find_table("T4", SHIPPED)).paper
    claims = {(gate.of.split()[-1], len(gate.over)): gate.at_least for gate in paper.gates if len(gate.rows) == 10}
    assert claims == {("SFT", 3): 8, ("BAM", 3): 8, ("RL", 3): 7, ("SFT", 1): 7, ("BAM", 1): 8, ("RL", 1): 8}
