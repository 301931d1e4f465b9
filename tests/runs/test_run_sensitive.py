"""Texts of patients and minors stay in the files of steps: no log, error, page, table, list of differences or MLflow store shows one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hba_ray.convert.conversion import convert
from hba_ray.data.atlas import build_index
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec
from hba_ray.specs.load import as_yaml
from tests.helpers.commands import exit_code_of
from tests.helpers.corpora import mmpsy_entries, put, put_lines, tiny_sound, write_daicwoz
from tests.helpers.experiments import small_experiment
from tests.helpers.leaked import files_with

SECRET = "quokka"
"""In every text of a person; lower-case, as labels are compared."""
DECLARED = """\
dataset: diaries
task: {id: DIARY, name: what is told, metric: judge_accuracy, rubric: Right if it says the same.}
file: rows.jsonl
columns: {answer: told, question: asked, transcript: said, split: part}
sensitive: true
"""


def released(dataset: str, place: int, **changes: Any) -> dict[str, Any]:
    """A row in the released layout, with the secret in its prompt."""
    row = {"problem": f"<audio>\nThe {SECRET} {dataset} {place} said so.\nHow is it?", "answer": "depression", "dataset": dataset}
    return {**row, "audios": ["clip.wav"], "sample_id": f"{dataset}-{place}", "class_label": "depression", **changes}


BAD: dict[str, dict[str, Any]] = {
    "a label that is a text": released("daicwoz", 10, answer=f"my {SECRET}", class_label=f"my {SECRET}"),
    "a text that contradicts the label": released("daicwoz", 11, answer="no depression", class_label=f"{SECRET} depression"),
    "an answer that contradicts the label": released("mmpsy_depression", 12, answer="no depression"),
    "more marks than clips": released("daicwoz", 13, audios=[]),
    "a text in place of a list": released("daicwoz", 14, audios=f"my {SECRET}"),
    "half a character": released("daicwoz", 15, problem=f"my {SECRET} \ud800"),
    "an answer without a letter": released("daicwoz", 16, answer="\u200b", texts=[f"my {SECRET}"]),
}
ODD = [released("daicwoz", 20, modality_signature=f"my {SECRET}", texts=[f"my {SECRET}", f"{SECRET}.txt"])]
"""Rows that are used, and of which something is told."""


def write_atlas(folder: Path) -> list[dict[str, str]]:
    """Four corpora with the secret in all their texts, bad rows among them; returns `atlas.sources`."""
    write_daicwoz(folder / "daicwoz", said=lambda session: f"my {SECRET} is {session}")
    put(
        folder / "daicwoz" / "300_P" / "300_TRANSCRIPT.csv", f"start_time\tstop_time\tspeaker\tvalue\n1\t2\tParticipant\t{SECRET} <video>\n"
    )
    answers: list[Any] = mmpsy_entries(said=SECRET)
    answers += [{**answers[0], "user_id": "u", "audios": {SECRET: SECRET}}, {**answers[0], "user_id": "v", "phq-label": SECRET}]
    put(folder / "mmpsy" / "wav_select.json", json.dumps(answers))
    rows = [
        {"asked": f"What of the {SECRET} {place}?", "told": f"It {place} is a {SECRET}.", "said": f"Oh {SECRET}.", "part": part}
        for place, part in enumerate(("train", "validation", "test", "test"))
    ]
    put_lines(folder / "own" / "rows.jsonl", [*rows, {**rows[0], "told": f" <audio> {SECRET}", "part": f"my {SECRET}"}])
    put(folder / "own" / "dataset.yaml", DECLARED)
    put(folder / "released" / "clip.wav", tiny_sound())
    good = [released("daicwoz", place) for place in range(3)]
    put_lines(folder / "released" / "train.jsonl", [*good, *BAD.values(), *ODD])
    put_lines(folder / "released" / "test.jsonl", [released("daicwoz", 30), good[0]])
    put(folder / "released" / "validation.jsonl", f'{{"problem": "my {SECRET}", \n{json.dumps(released("daicwoz", 40))}\n')
    return [{"source": source, "root": str(folder / source)} for source in ("daicwoz", "mmpsy", "own", "released")]


def spec_of(storage: Path, sources: list[dict[str, str]], **changes: Any) -> Any:
    atlas = {"sources": sources, "on_bad_row": "drop", "train_also": ["diaries"], "media": {"audio_seconds": 1}}
    return small_experiment(storage, atlas=atlas, sft__epochs=1, evaluate__baselines=["tiny"], **changes)


@pytest.fixture
def do(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, int]]:
    """Runs a command; gives what it says, on both streams, and its exit code."""

    def run(*words: str) -> tuple[str, int]:
        code = exit_code_of(monkeypatch, *words)
        return "".join(capfd.readouterr()), code

    return run


def leaks(folder: Path) -> list[str]:
    """Files that hold the secret, those of steps, judges and the corpora aside."""
    return files_with(SECRET, folder, but=("steps", "judge-cache", "public"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_text_of_a_sensitive_corpus_leaves_the_steps_unless_that_is_asked_for(tmp_path: Path, do):
    sources = write_atlas(tmp_path / "public")
    file = put(tmp_path / "spec.yaml", as_yaml(spec_of(tmp_path, sources)))
    checked, _ = do("atlas", "check", str(tmp_path / "public" / "released"), f"compute.storage={tmp_path}", "compute.workers=0", "--clips")
    assert "answer contradicts label" in checked and "missing text" in checked and SECRET not in checked.lower()
    said, code = do("run", str(file))
    assert code == 0 and SECRET not in said.lower(), said
    run = next(tmp_path.glob("small-*"))
    more = [do("atlas", "check", str(file), "--to", str(tmp_path / "found.csv")), do("judge", str(run), "--sample", "4", "--arm", "sft")]
    assert SECRET not in str(more).lower() and leaks(tmp_path) == []
    predictions = pq.read_table(next(tmp_path.glob("mlartifacts/**/evaluate/sft/predictions.parquet"))).to_pylist()
    assert {(row["question"], row["true"]) for row in predictions if row["dataset"] == "diaries"} == {("(not shown)", "(not shown)")}
    assert {row["predicted"] for row in predictions if row["dataset"] == "daicwoz"} <= {"depression", "no depression"}
    kept = pq.read_table(next(tmp_path.glob("steps/evaluate-*/predictions.parquet"))).to_pylist()
    assert all(SECRET in row["question"].lower() for row in kept), "the step has them"

    said, code = do("run", str(file), "report.show_sensitive=true")
    assert code == 0 and SECRET not in said.lower()
    page = run / "report.html"
    assert page.relative_to(tmp_path).as_posix() in leaks(tmp_path) and "It 2 is a quokka." in page.read_text()


@pytest.mark.parametrize("bad", BAD)
def test_an_error_of_a_row_says_what_is_wrong_and_quotes_no_patient(tmp_path: Path, bad: str):
    put(tmp_path / "clip.wav", tiny_sound())
    put_lines(tmp_path / "train.jsonl", [BAD[bad]])
    with pytest.raises(DataError) as error:
        build_index(AtlasSpec(root=str(tmp_path)), tmp_path)
    assert "train.jsonl row 0" in str(error.value) and SECRET not in str(error.value).lower()


@pytest.mark.parametrize("source", ["daicwoz", "mmpsy", "own"])
def test_an_error_of_a_converter_quotes_no_patient(tmp_path: Path, source: str):
    (one,) = [one for one in write_atlas(tmp_path / "public") if one["source"] == source]
    with pytest.raises(DataError) as error:
        convert(AtlasSpec.model_validate(one), tmp_path / "rows")
    assert "atlas.on_bad_row=drop" in str(error.value) and SECRET not in str(error.value).lower()
