"""A user's own data needs no change of the package: a declaration beside it gives rows, splits, a task, a head and a rubric."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import yaml

from hba_ray.actions.new_dataset import new_dataset
from hba_ray.convert.conversion import convert
from hba_ray.convert.corpora.own import expected_counts
from hba_ray.data.tasks import BENCHMARK_HEADS, DATASETS, SPLITS, TASKS, Heads
from hba_ray.errors import DataError, SpecError
from hba_ray.judge.prompts import load_prompts
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.own import DECLARATION, OF_AN_ATLAS, OwnTask, in_words, read_declaration
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


def test_a_process_that_is_sent_nothing_but_an_index_reads_its_rows(own, tmp_path: Path):
    convert(own, tmp_path / "atlas")
    (tmp_path / "index").write_bytes(pickle.dumps(index_of(tmp_path / "atlas")))
    code = (
        "import pickle, sys; index = pickle.load(open(sys.argv[1], 'rb')); from hba_ray.data.atlas import read_rows; "
        "print({row.dataset.id for row in read_rows(index, range(24))})"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "{'courtesy'}"


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
        (("labels: [rude, polite]", "labels: [rude, straße]"), "no answer is 'straße' .*\n.*write 'strasse'"),
        (("prompt:", "labels: [rude, rude]\nprompt:"), "give each once"),
        (("prompt:", "labels: []\nprompt:"), "give each once"),
        (("labels: [rude, polite]", "labels: [yes, no]"), r"line 2: task\.labels\.0: .*\n.*in quotes"),
        (("audio: sound", "audio: [sound"), "line"),
    ],
)
def test_a_declaration_that_cannot_stand_is_refused_by_file(tmp_path: Path, change, said):
    file = write_own(tmp_path / "own", dataset="tried") / "dataset.yaml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(SpecError, match=said):
        read_declaration(str(file.parent))


def write_lines(folder: Path, rows: list[dict], labels: str, more: str = "") -> AtlasSpec:
    """Texts with labels in jsonl, of a dataset and a task that bear the folder's name."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (folder / "dataset.yaml").write_text(
        f"dataset: {folder.name}\ntask: {{id: {folder.name.upper()}, name: tone, labels: {labels}}}\nfile: rows.jsonl\n"
        + ("" if "prompt:" in more else "prompt: What is it?\n")
        + more
    )
    return AtlasSpec(source="own", root=str(folder))


def test_line_ends_of_unicode_inside_a_text_end_no_row_and_numbers_are_read_as_a_csv_has_them(tmp_path: Path):
    rows = [{"n": place, "answer": place % 2, "said": f"One\u2028two\x85three {place}"} for place in range(6)]
    spec = write_lines(tmp_path / "breaks", rows, "['0', '1']", "columns: {answer: answer, transcript: said, id: n}\n")
    assert sum(count.rows for count in convert(spec, tmp_path / "atlas").counts) == 6
    index = index_of(tmp_path / "atlas")
    assert sum((Counter(index.label_counts(split)["breaks"]) for split in SPLITS), Counter()) == {"0": 3, "1": 3}


def test_own_labels_are_kept_where_the_benchmark_would_spell_them_otherwise(tmp_path: Path):
    labels = ["joy", "happy", "surprise", "positive surprise"]
    rows = [{"answer": label, "said": f"{label} {place}"} for label in labels for place in range(3)]
    spec = write_lines(tmp_path / "spelled", rows, str(labels), "columns: {transcript: said}\nsplits: [1, 0, 0]\n")
    (count, *_) = convert(spec, tmp_path / "atlas").counts
    assert count.labels == dict.fromkeys(labels, 3)
    assert index_of(tmp_path / "atlas").label_counts("train")["spelled"] == dict.fromkeys(labels, 3)


def test_rows_of_one_clip_stay_together_whoever_speaks(tmp_path: Path):
    folder = write_own(tmp_path / "own")
    lines = (folder / "rows.csv").read_text().splitlines()
    lines[5:] = [f"clips/00.wav,{line.split(',', 1)[1]}" for line in lines[5:]]  # the clip of speaker s0, in rows of all others
    (folder / "rows.csv").write_text("\n".join(lines))
    counts = convert(AtlasSpec(source="own", root=str(folder)), tmp_path / "atlas").counts
    assert sorted(count.rows for count in counts) == [0, 0, 24]


@pytest.mark.parametrize("line", ['{"answer": "b", "said": "one", "answer": "a"}', '["a"]', '{"answer": "a"', "null"])
def test_a_line_that_says_two_things_or_none_is_no_row(tmp_path: Path, line: str):
    spec = write_lines(tmp_path / "lines", [{"answer": "a", "said": "it"}], "[a, b]", "columns: {transcript: said}\nsplits: [1, 0, 0]\n")
    with (tmp_path / "lines" / "rows.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match="line 2: is no JSON object with each key once"):
        convert(spec, tmp_path / "atlas")


def test_a_row_wider_than_the_header_is_told(tmp_path: Path):
    folder = write_own(tmp_path / "own")
    with (folder / "rows.csv").open("a") as file:
        file.write("one,too,many,by,far,for,this,file\n")
    with pytest.raises(DataError, match="has more or fewer values than the header"):
        convert(AtlasSpec(source="own", root=str(folder)), tmp_path / "atlas")


def test_shares_that_leave_no_row_for_train_divide_an_odd_number(tmp_path: Path):
    rows = [{"answer": "a", "said": f"it {place}"} for place in range(3)]
    spec = write_lines(tmp_path / "odd", rows, "[a, b]", "columns: {transcript: said}\nsplits: [0, 0.5, 0.5]\n")
    assert [count.rows for count in convert(spec, tmp_path / "atlas").counts] == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("columns: {transcript: text}\n", "no row has 'text'\n.*dataset.yaml"),
        ("", "line 1: has neither a clip nor a transcript\n.*dataset.yaml"),
        ("columns: {transcript: said}\nprompt: Look at <video>.", "dataset.yaml: prompt holds <video>"),
        ("columns: {transcript: said}\nprompt: Which of {labels}?", "dataset.yaml: prompt holds {labels}"),
    ],
)
def test_rows_that_would_be_shown_without_what_is_declared_are_refused(tmp_path: Path, more: str, said: str):
    spec = write_lines(tmp_path / "lacking", [{"answer": "a", "said": "one"}], "[a, b]", more)
    with pytest.raises(DataError, match=said):
        convert(spec, tmp_path / "atlas")


def test_a_column_that_a_csv_lacks_is_looked_for_in_the_declaration(own, tmp_path: Path):
    rows = Path(str(own.root)) / "rows.csv"
    rows.write_text(rows.read_text().replace("verdict", "Verdict"))
    with pytest.raises(DataError, match=r"line 1: column 'verdict' is missing\n.*dataset\.yaml"):
        convert(own, tmp_path / "atlas")


@pytest.mark.parametrize("said", ["My secret " * 40, "../My secret", "My secret"])
def test_no_text_of_a_sensitive_dataset_is_told_where_the_wrong_column_is_named(tmp_path: Path, said: str):
    more = "columns: {audio: said, transcript: said}\nsensitive: true\n"
    spec = write_lines(tmp_path / "wrong", [{"answer": "a", "said": said}], "[a, b]", more)
    with pytest.raises(DataError, match=r"line 1: .*a text of \d+ characters") as caught:
        convert(spec, tmp_path / "atlas")
    assert "secret" not in str(caught.value)
    (tmp_path / "wrong" / "dataset.yaml").write_text((tmp_path / "wrong" / "dataset.yaml").read_text().replace("true", "false"))
    with pytest.raises(DataError, match="secret"):
        convert(AtlasSpec(source="own", root=str(tmp_path / "wrong")), tmp_path / "atlas")


def test_two_sources_with_one_id_are_refused_since_one_may_be_sensitive(tmp_path: Path):
    folders = [write_own(tmp_path / name, rows=4) for name in ("one", "two")]
    with pytest.raises(ValueError, match="two sources are declared as 'courtesy'"):
        AtlasSpec.model_validate({"sources": [{"source": "own", "root": str(folder)} for folder in folders]})


def test_rows_of_one_dataset_may_come_from_several_atlases(own, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / OF_AN_ATLAS).write_text(in_words(own.own))
    joined = AtlasSpec.model_validate({"sources": [{"root": str(tmp_path / name)} for name in ("one", "two")]})
    assert joined.own == own.own


@pytest.mark.parametrize("on_bad_row", ["fail", "drop"])
def test_rows_are_counted_before_they_are_read_and_what_cannot_be_is_told(tmp_path: Path, on_bad_row: Literal["fail", "drop"]):
    rows = [{"label": label, "said": "Well.", "part": part} for part in ("train", "train", "test", "eval") for label in ("yes", "no")]
    atlas = write_lines(tmp_path / "asked", rows, "['yes', 'no']", "columns: {answer: label, transcript: said, split: part}\n")
    if on_bad_row == "drop":
        assert expected_counts(atlas.own[0], tmp_path / "asked", on_bad_row) == (4, 0, 2)
    else:
        with pytest.raises(DataError, match="line 7"):
            expected_counts(atlas.own[0], tmp_path / "asked", on_bad_row)


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
    own = read_declaration(str(folder))
    assert isinstance(own.task, OwnTask) and own.task.id == "MY_CLIPS"
    assert (own.dataset, own.columns.audio, own.columns.answer, own.columns.group) == ("my_clips", "sound", "verdict", "speaker")
    assert own.columns.transcript == "said" and own.columns.split is None
    with pytest.raises(DataError, match="is there already"):
        new_dataset(folder)


def test_all_rows_are_counted_whatever_their_cells_hold(tmp_path: Path):
    folder = tmp_path / "mustard"  # a name of one of the benchmark's
    folder.mkdir()
    rows = [{"label": int(place > 2500), "said": "word " * (30_000 if not place else 1)} for place in range(2600)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file, labels = new_dataset(folder)
    assert labels == {"0": 2501, "1": 99} and read_declaration(str(folder)).dataset == "own_mustard"
    (folder / "rows.jsonl").unlink()
    file.unlink()
    (folder / "rows.csv").write_text("\ufeff label , said\n" + "".join(f"{row['label']},{row['said']}\n" for row in rows), encoding="utf-8")
    assert new_dataset(folder)[1] == labels and read_declaration(str(folder)).columns.answer == "label"


@pytest.mark.parametrize(
    ("rows", "answer", "others"),
    [
        ("utt_id,person,mood_now\na1,p1,calm\na2,p1,tense\na3,p2,calm\na4,p2,tense\n", "mood_now", {"id": "utt_id", "group": "person"}),
        ("remark,rating\nx,2\ny,1\nz,2\n", "rating", {}),
    ],
)
def test_labels_are_found_whatever_their_column_is_called(tmp_path: Path, rows: str, answer: str, others: dict[str, str]):
    (tmp_path / "rows.csv").write_text(rows)
    new_dataset(tmp_path)
    assert yaml.safe_load((tmp_path / DECLARATION).read_text())["columns"] == {"answer": answer, **others}


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_a_table_that_separates_columns_by_another_sign_is_told(tmp_path: Path, sign: str):
    (tmp_path / "rows.csv").write_text(f"label{sign}said\nrude{sign}one\nkind{sign}two\n")
    with pytest.raises(DataError, match=r"rows\.csv, line 1: the header is one column, .*\n.*with commas between columns"):
        new_dataset(tmp_path)


def test_two_columns_that_could_be_the_labels_are_asked_about(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("one,two\na,x\na,x\nb,y\nb,y\n")
    with pytest.raises(DataError, match="has no column, or several, that could be the label or the answer: one, two"):
        new_dataset(tmp_path)


def test_one_label_alone_makes_no_task_and_no_file(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("label,said\nrude,one\nrude,two\n")
    with pytest.raises(DataError, match="all rows have the same value in column 'label'"):
        new_dataset(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()


def test_labels_of_a_known_task_are_recognised(tmp_path: Path):
    folder = write_own(tmp_path / "moods", declared=False)
    rows = folder / "rows.csv"
    rows.write_text(rows.read_text().replace("rude", "anger").replace("Polite ", "happy"))
    new_dataset(folder)
    own = read_declaration(str(folder))
    assert own.task == "EMO" and DATASETS["moods"].labels == ("anger", "happy")
