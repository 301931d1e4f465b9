"""Open answers in a whole experiment: generated, judged, compared and reported; refused at the start where nobody can judge."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from hba_ray.errors import EnvironmentMissing, SpecError
from hba_ray.evaluation.scores import DatasetScore
from hba_ray.judge.grade import judge_fingerprint
from hba_ray.report.tables import read_json
from hba_ray.runs.plan import plan
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.evaluate import JudgeSpec
from hba_ray.steps.results.judge import has_open_answers
from hba_ray.store.folders import Storage, done
from tests.helpers.commands import exit_code_of
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal
from tests.helpers.stub_judge import KEY, KEY_ENV, MODEL, ROOT, StubJudge
from tests.report.test_tables import table

pytest.importorskip("opensmile")
ARMS = ["sft", "sft without audio"]
PROBE = "probe acoustic"
"""An arm with predictions, and none of them an open answer."""
ROWS = 6
"""Rows of each dataset in the test split."""
SHAPE = {
    "atlas__toy": {"rows": 350},
    "atlas__limit": ROWS,
    "atlas__datasets": ["toy_tone", "toy_answers"],
    "evaluate__robustness": ["audio"],
    "evaluate__retention": True,
    "descriptors__streams": ["acoustic"],
    "descriptors__probe": True,
    "sft__epochs": 1,
}


def judged(storage: Path, judge: JudgeSpec, **changes: object) -> ExperimentSpec:
    return small_experiment(storage, **SHAPE | {"evaluate__judge": judge.model_dump(mode="json")} | changes)


def run(spec: ExperimentSpec) -> Finished:
    return run_experiment(plan(spec), lambda line: None, ReadableJournal())


@pytest.fixture(scope="module")
def stub() -> Iterator[StubJudge]:
    """Calls right whatever nods: the word is in the reference answers of some of the rows."""
    with pytest.MonkeyPatch.context() as environ, StubJudge(right="agreement") as judge:
        environ.setenv(KEY_ENV, KEY)
        yield judge


@pytest.fixture(scope="module")
def finished(stub: StubJudge, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentSpec, Finished]:
    spec = judged(tmp_path_factory.mktemp("runs"), stub.spec())
    return spec, run(spec)


def open_score(made: Finished, arm: str) -> DatasetScore:
    (score,) = [score for score in made.report.scores[arm].datasets if score.dataset == "toy_answers"]
    return score


def test_an_open_task_is_generated_judged_and_reported_with_its_interval(finished):
    spec, made = finished
    (folder,) = Storage(spec.compute.storage).folder.glob(f"steps/judge-{_step(spec, 'judge sft')}")
    verdicts = pq.read_table(folder / "verdicts.parquet").to_pylist()
    assert len(verdicts) == ROWS and all(row["dataset"] == "toy_answers" for row in verdicts)
    score = open_score(made, "sft")
    right = sum(row["correct"] for row in verdicts)
    assert (score.metric, score.value, score.rows) == ("judge_accuracy", right / ROWS, ROWS)
    assert 0 < right < ROWS and score.interval is not None and score.interval[0] < score.value < score.interval[1]
    assert score.exact_match == 0 and score.unreadable == 0
    table = made.table.read_text()
    assert f"| toy_answers | sft | {ROWS} | {score.value:.3f} |" in table
    assert "were graded by stub-judge-1 (served as stub-judge-1-2026) with the standard prompts" in table
    assert read_json((made.folder / "report.json").read_text()) == made.report


def _step(spec: ExperimentSpec, name: str) -> str:
    return next(step.fingerprint for step in plan(spec, Storage(spec.compute.storage)).steps if step.name == name)


def test_how_answers_are_written_is_measured_and_rated(finished):
    spec, made = finished
    step = next(step for step in plan(spec, Storage(spec.compute.storage)).steps if step.name == "retention sft")
    facts = done(step.folder)
    assert facts is not None and facts["rows"] == ROWS and facts["unreadable"] == 0
    assert (facts["fluency"], facts["coherence"]) == (4, 5) and facts["perplexity"] > 1
    rows = pq.read_table(step.folder / "retention.parquet").to_pylist()
    assert all(row["tokens"] > 0 and row["log_loss"] > 0 for row in rows)
    low, high = facts["intervals"]["perplexity"]
    assert low <= facts["perplexity"] <= high and facts["intervals"]["fluency"] == [4, 4]
    said = f"Retention: {ROWS} open answers of sft have perplexity {facts['perplexity']:.1f} ({low:.1f} to {high:.1f}) under"
    assert said in " ".join(made.report.notes)


def test_a_withheld_modality_is_an_arm_of_its_own_held_against_the_whole(finished):
    _, made = finished
    assert list(made.report.scores) == [*ARMS, PROBE]
    pairs = {pair.dataset: pair for pair in made.report.comparisons}
    assert {(pair.first, pair.second) for pair in pairs.values()} == {("sft", "sft without audio")}
    assert pairs["toy_answers"].metric == "judge_accuracy"
    assert {pair.rows for pair in pairs.values()} == {ROWS}
    assert all(pair.p_adjusted is not None for pair in pairs.values() if pair.p_value is not None)


def test_the_rows_in_which_arms_differ_lie_in_the_run_folder(finished):
    _, made = finished
    with (made.folder / "compare-sft-without-audio-differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["sft"] != row["sft without audio"] for row in rows)
    assert all(row["question"] for row in rows)
    said = (made.folder / "compare-sft-without-audio-differences.md").read_text()
    assert said.startswith("# sft without audio against sft") and f"{len(rows)} of {2 * ROWS} rows differ" in said


def test_a_finished_run_needs_no_judge_and_no_key(finished, stub: StubJudge, monkeypatch: pytest.MonkeyPatch):
    spec, made = finished
    monkeypatch.delenv(KEY_ENV)
    before = len(stub.log())
    assert run(spec).report.scores == made.report.scores
    assert len(stub.log()) == before


def test_another_prompt_grades_again_and_generates_nothing(finished, stub: StubJudge):
    spec, _ = finished
    other = judged(Path(spec.compute.storage), stub.spec(prompts="paraphrased"))
    assert {step.name for step in plan(other, Storage(spec.compute.storage)).steps if not step.is_done} == {
        *(f"judge {arm}" for arm in ARMS),
        "compare sft without audio",
    }


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"key_env": "STUB_JUDGE_NO_KEY"}, EnvironmentMissing, "STUB_JUDGE_NO_KEY is not set"),
        ({"base_url": "http://127.0.0.1:9/v1"}, EnvironmentMissing, "check evaluate.judge.base_url"),
        ({"model": "stub-judge"}, EnvironmentMissing, f"give one of its models as evaluate.judge.model: {MODEL}"),
        ({"prompts": "my.yaml"}, SpecError, "hold"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused_before_anything_is_done(stub, tmp_path, monkeypatch, changes, error, says):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("user: 'Is {answer} right?'\nrubrics: {SOC: a, INT: b, NVC: c}\n")
    with pytest.raises(error) as refused:
        run(judged(tmp_path / "runs", stub.spec(**changes)))
    assert says in str(refused.value)
    assert not list((tmp_path / "runs").glob("steps/*"))


def test_where_there_are_no_open_answers_there_is_no_judge(tmp_path: Path):
    spec = judged(tmp_path, JudgeSpec(), atlas__datasets=["toy_tone"], evaluate__retention=False)
    with pytest.raises(SpecError, match=r"evaluate\.retention: is about open answers.*\n  add one of .*intentqa.*, or leave it out"):
        plan(judged(tmp_path, JudgeSpec(), atlas__datasets=["toy_tone"], evaluate__retention=True), Storage(tmp_path))
    assert "judge sft" not in {step.name for step in plan(spec, Storage(tmp_path)).steps}
    released = small_experiment(tmp_path, atlas__source="released", atlas__root="x").atlas
    assert has_open_answers(released)
    assert not has_open_answers(released.model_copy(update={"source": "meld"}))


def test_what_the_endpoint_refuses_is_counted_and_said(finished):
    spec, _ = finished
    with StubJudge(refuses="What does the person do?") as refusing:
        made = run(judged(Path(spec.compute.storage), refusing.spec(max_tokens=77)))
    score = open_score(made, "sft")
    assert (score.value, score.unreadable) == (0, ROWS)
    assert f"{ROWS} unreadable (no reply {ROWS})" in " ".join(made.report.notes)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_killed_while_it_judges_asks_the_rest_once(finished, tmp_path: Path):
    """With rate limits, errors, lost connections and damaged replies all the while."""
    storage = Path(finished[0].compute.storage)
    with StubJudge(latency=0.3, failures=0.1, drops=0.1, damaged=0.1, retry_after=0.05, right="agreement", seed=2) as slow:
        spec = judged(storage, slow.spec(concurrency=2, retries=12, max_tokens=78))
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec.identity()))
        command = [sys.executable, "-m", "hba_ray", "run", "spec.yaml"]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        cache = Storage(storage).judge_cache / f"judge-{judge_fingerprint(slow.spec(max_tokens=78))}.jsonl"
        child = subprocess.Popen(command, cwd=tmp_path, env=environ)
        while not cache.exists() or cache.read_bytes().count(b"\n") < 2:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kept = cache.read_bytes().count(b"\n")
        assert subprocess.run(command, cwd=tmp_path, env=environ, check=False, timeout=300).returncode == 0
        times = slow.graded()
    step = next(step for step in plan(spec, Storage(storage)).steps if step.name == "judge sft")
    facts = done(step.folder)
    assert facts is not None and not facts["unreadable"] and facts["from_cache"] >= kept >= 2  # more where two rows ask the same
    assert facts["true"] + facts["false"] == ROWS
    assert sum(times.values()) - len(times) <= 2, "more than the requests under way were repeated"


def hba_judge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = exit_code_of(monkeypatch, "judge", *words)
    out, err = capsys.readouterr()
    return code, out + err


def test_a_finished_run_is_graded_again_by_another_prompt_and_generates_nothing(finished, monkeypatch, capsys):
    spec, made = finished
    steps = Storage(spec.compute.storage).folder / "steps"
    before = {path.name for path in steps.iterdir()}
    report = (made.folder / "report.json").read_text()
    with StubJudge(right="refuse") as other:
        words = [str(made.folder), "prompts=paraphrased", f"base_url={other.address}/v1"]
        code, said = hba_judge(monkeypatch, capsys, *words)
        assert code == 0, said
        assert sum(other.graded().values()) >= 1
        asked = len(other.log())
        assert hba_judge(monkeypatch, capsys, *words)[0] == 0 and len(other.log()) == asked, "it was asked again"
    assert {name.partition("-")[0] for name in {path.name for path in steps.iterdir()} - before} == {"judge"}
    assert (made.folder / "report.json").read_text() == report
    tables = (made.folder / "judge" / "graders.md").read_text()
    scores, agreement = table(tables, "Scores by grader"), table(tables, "Agreement")
    assert [(row["Arm"], row["Prompts"]) for row in scores] == [(arm, name) for arm in ARMS for name in ("standard", "paraphrased")]
    assert float(scores[0]["Judge"]) == pytest.approx(open_score(made, "sft").value or 0, abs=1e-3)
    assert [row["Prompts"] for row in agreement] == ["standard / paraphrased"] * 2
    assert all(float(row["Kappa"]) < 1 and int(row["Rows"]) == ROWS for row in agreement)
    assert "Agreement" in said and "graders.md" in said


def test_a_persons_labels_are_held_against_the_judge(finished, monkeypatch, capsys, tmp_path: Path):
    _, made = finished
    code, said = hba_judge(monkeypatch, capsys, str(made.folder), "--sample", "4", "--arm", "sft")
    assert code == 0, said
    sheet = made.folder / "labels-sft.csv"
    rows = list(csv.DictReader(sheet.open()))
    assert len(rows) == 4 and all(row["question"] and row["reference"] and not row["label"] for row in rows)
    for row in rows:
        row["label"] = str("agreement" in row["reference"]).upper()
    with (tmp_path / "mine.csv").open("w", newline="") as text:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.delenv(KEY_ENV)  # what is graded needs no judge
    code, said = hba_judge(monkeypatch, capsys, str(made.folder), "--labels", str(tmp_path / "mine.csv"), "--arm", "sft")
    assert code == 0, said
    agreement = table((made.folder / "judge" / "graders.md").read_text(), "Agreement")
    own = next(row for row in agreement if row["Against"] == "person" and row["Prompts"] == "standard")
    assert (own["Rows"], own["Equal"]) == ("4", "1.000")
    assert own["Kappa"] in ("1.000", "–"), "no kappa where the four labels are all alike"
    code, said = hba_judge(monkeypatch, capsys, str(made.folder), "--sample", "4", "--arm", "sft")
    assert code == 2 and "is there already" in said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 2, "is no run"),
        (["RUN", "modle=x"], 2, "evaluate.judge.modle"),
        (["RUN", "prompts"], 2, "key=value"),
        (["RUN", "--arm", "bam"], 2, "arms with predictions: sft, sft without audio"),
        (["RUN", "--arm", PROBE], 2, "arms with predictions: sft, sft without audio"),
        (["RUN", "--labels", "mine.csv"], 2, "is about one arm"),
        (["RUN", "--labels", "nowhere.csv", "--arm", "sft"], 1, "cannot be read"),
        (["RUN", "model=stub-judge"], 5, "give one of its models as evaluate.judge.model"),
        (["RUN", "prompts=nowhere.yaml"], 2, "no such file"),
    ],
)
def test_what_cannot_be_graded_is_said(finished, monkeypatch, capsys, words, code, says):
    ended, said = hba_judge(monkeypatch, capsys, *(str(finished[1].folder) if word == "RUN" else word for word in words))
    assert (ended, says in " ".join(said.split())) == (code, True), said
    assert "Traceback" not in said


def test_labels_of_rows_that_nobody_judged_are_refused(finished, monkeypatch, capsys, tmp_path: Path):
    (tmp_path / "mine.csv").write_text("sample_id,label\nstray,TRUE\n")
    words = [str(finished[1].folder), "--labels", str(tmp_path / "mine.csv"), "--arm", "sft"]
    code, said = hba_judge(monkeypatch, capsys, *words)
    assert code == 1 and "'stray' is no open answer of this arm" in " ".join(said.split())


def test_answers_that_got_no_reply_are_asked_again(finished, monkeypatch, capsys):
    spec, _ = finished
    with StubJudge(refuses="What does the person do?") as refusing:
        asked = judged(Path(spec.compute.storage), refusing.spec(max_tokens=79))
        made = run(asked)
    (held_against,) = [step for step in plan(asked, Storage(spec.compute.storage)).steps if step.kind.name == "compare"]
    assert held_against.is_done
    with StubJudge(right="agreement") as willing:
        code, said = hba_judge(monkeypatch, capsys, str(made.folder), f"base_url={willing.address}/v1")
    assert code == 0, said
    scores = table((made.folder / "judge" / "graders.md").read_text(), "Scores by grader")
    assert [row["Unreadable"] for row in scores] == ["0", "0"]
    assert not held_against.is_done and "compares the arms again" in said, "old verdicts would stand beside new ones"
    assert (open_score(run(asked), "sft").value or 0) > 0 and held_against.is_done
