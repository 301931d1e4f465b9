"""A user's own data needs no change of the package: a declaration beside it gives rows, splits, a task, a head and a rubric."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from hba_ray.actions.new_dataset import new_dataset
from hba_ray.convert.conversion import convert
from hba_ray.data.tasks import BENCHMARK_HEADS, DATASETS, TASKS, Heads
from hba_ray.errors import DataError, SpecError
from hba_ray.judge.prompts import load_prompts
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.own import in_words, read_declaration
from tests.helpers.indices import index_of
from tests.helpers.own_data import write_own, write_questions


@pytest.fixture
def own(tmp_path: Path) -> AtlasSpec:
    return AtlasSpec(source="own", root=str(write_own(tmp_path / "own")))


def test_rows_have_their_task_and_labels_and_speakers_stay_in_one_split(own, tmp_path: Path):
    from hba_ray.data.atlas import read_rows

    convert(own, tmp_path / "atlas")
    index = index_of(tmp_path / "atlas")
    assert index.counts() == {"courtesy": {"train": 16, "validation": 4, "test": 4}}
    rows = list(read_rows(index, range(24)))
    assert {row.label for row in rows} == {"rude", "polite"} and {row.dataset.task.name for row in rows} == {"politeness"}
    assert rows[0].problem.startswith("<audio>\nSentence ")
    assert rows[0].problem.endswith("Is the speaker polite? Reply with one of these labels: rude, polite.")
    assert DATASETS["courtesy"].is_outside and DATASETS["courtesy"].modalities == "TA"
    split_of = {row.clip_id: index.table["split"][line].as_py() for line, row in enumerate(rows)}
    assert all(split_of[row.clip_id] == index.table["split"][line].as_py() for line, row in enumerate(rows))


def test_an_own_task_has_a_head_behind_those_of_the_benchmark_which_stay_where_they_are(own):
    heads = Heads.of(own)
    assert [task.id for task in heads.tasks] == [*(task.id for task in BENCHMARK_HEADS.tasks), "POLITE"]
    assert heads.classes[:25] == BENCHMARK_HEADS.classes and heads.classes[25:] == (("POLITE", "rude"), ("POLITE", "polite"))
    assert heads.slot("POLITE") == 7 and heads.index("POLITE", "polite") == 26
    assert Heads.of(AtlasSpec(source="toy")) == BENCHMARK_HEADS


def test_another_process_that_is_given_the_spec_knows_the_dataset(own, tmp_path: Path):
    (tmp_path / "spec").write_bytes(pickle.dumps(own))
    code = (
        "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); "
        "from hba_ray.data.tasks import find_dataset; print(find_dataset('courtesy').task.labels)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path / "spec")], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "('rude', 'polite')"
    code = (
        "import sys; from hba_ray.specs.sections.own import declare_all; declare_all(sys.argv[1]); "
        "from hba_ray.data.tasks import find_dataset; print(find_dataset('courtesy').task.labels)"
    )
    assert subprocess.run([sys.executable, "-c", code, in_words(own.own)], capture_output=True, text=True, check=True).stdout == said
    assert AtlasSpec.model_validate(own.model_dump() | {"root": "/moved"}).own == own.own  # a resolved spec asks for no file


def test_open_questions_bring_their_rubric(tmp_path: Path):
    spec = AtlasSpec(source="own", root=str(write_questions(tmp_path / "own")))
    convert(spec, tmp_path / "atlas")
    assert index_of(tmp_path / "atlas").counts() == {"motives": {"train": 3, "validation": 3, "test": 3}}
    assert TASKS["MOTIVE"].is_open and Heads.of(spec) == BENCHMARK_HEADS
    assert load_prompts("standard").system("MOTIVE", "text").startswith("Right if the motive is the same.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("dataset: tried", "dataset: meld_senti"), "'meld_senti' is a name of MELD"),
        (("id: POLITE", "id: EMO"), "'EMO' is a task already"),
        (("labels: [rude, polite]", "labels: [rude]"), "labels are .* two or more"),
        (("metric: weighted_f1", "metric: accuracy"), "metric"),
        (("prompt: Is the speaker polite?", ""), "prompt is missing"),
        (("columns:", "colums:"), "colums"),
        (("audio: sound", "audio: [sound"), "line"),
    ],
)
def test_a_declaration_that_cannot_stand_is_refused_by_file(tmp_path: Path, change, said):
    file = write_own(tmp_path / "own", dataset="tried") / "dataset.yaml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(SpecError, match=said):
        read_declaration(str(file.parent))


def test_a_source_without_a_declaration_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(SpecError, match=r"no such file\n.*hba atlas new"):
        AtlasSpec(source="own", root=str(write_own(tmp_path / "own", declared=False)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("rude", "impolite", "'impolite' is not a label"), ("clips/00", "../00", "leads out"), ("clips/00", "clips/99", "is not there")],
)
def test_a_bad_row_is_refused_by_line_or_left_out(own, tmp_path: Path, old, new, said):
    rows = Path(str(own.root)) / "rows.csv"
    rows.write_text(rows.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=f"line 2: .*{said}"):
        convert(own, tmp_path / "a")
    lenient = own.model_copy(update={"on_bad_row": "drop"})
    assert len(convert(lenient, tmp_path / "b").drops) == 1


def test_a_declaration_is_written_from_the_files_and_can_be_used(tmp_path: Path):
    folder = write_own(tmp_path / "My clips", declared=False)
    file, labels = new_dataset(folder)
    assert labels == {"rude": 12, "polite": 12} and "Rows: rude 12, polite 12." in file.read_text()
    file.write_text(file.read_text().replace("id: OWN", "id: CIVIL"))
    own = read_declaration(str(folder))
    assert (own.dataset, own.columns.audio, own.columns.answer, own.columns.group) == ("my_clips", "sound", "verdict", "speaker")
    assert own.columns.transcript == "said" and own.columns.split is None
    with pytest.raises(DataError, match="is there already"):
        new_dataset(folder)


def test_labels_of_a_known_task_are_recognised(tmp_path: Path):
    folder = write_own(tmp_path / "moods", declared=False)
    rows = folder / "rows.csv"
    rows.write_text(rows.read_text().replace("rude", "anger").replace("Polite ", "happy"))
    new_dataset(folder)
    own = read_declaration(str(folder))
    assert own.task == "EMO" and DATASETS["moods"].labels == ("anger", "happy")
