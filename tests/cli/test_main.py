"""The commands say what they should, and end with the exit code that the README states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from hba_ray.cli import main as cli

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
INFRA = str(ROOT / "clusters" / "infra.yaml")


def test_a_valid_spec_is_called_valid(hba):
    code, out, _ = hba("validate", QUICKSTART)
    assert (code, "valid" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["validate", QUICKSTART, "sft.lrr=1"], 2, "did you mean 'sft.lr'"),
        (["run", QUICKSTART, "grpo.algorithm=ppo"], 2, "grpo.algorithm: Input should be 'grpo', 'rloo' or 'harpo' (given: 'ppo')"),
        (["validate", "nowhere.yaml"], 2, "no such file"),
        (["validate", QUICKSTART, "atlas.datasets=[toy_nood]"], 2, "did you mean 'toy_nod'"),
        (
            ["validate", QUICKSTART, "atlas.held_out=[toy_nod, toy nod]"],
            2,
            "held_out: 'toy_nod' and 'toy nod' are one dataset",
        ),
        (["validate", QUICKSTART, "sft.checkpoint=.", "bam.checkpoints={toy_tne: here}"], 2, "bam.checkpoints: unknown dataset 'toy_tne'"),
        (["validate", QUICKSTART, "grpo.prompts=nowhere.yaml"], 2, "grpo.prompts=nowhere.yaml: no such file"),
        (["validate", QUICKSTART, "atlas.source=tess", "atlas.root=.", "atlas.prompts=nowhere.yaml"], 2, "atlas.prompts=nowhere.yaml: no"),
        (["validate"], 2, "Missing argument"),
        (["vaildate", QUICKSTART], 2, "No such command"),
        (["run", QUICKSTART, "atlas.source=released", "atlas.root=nowhere"], 1, "no such folder"),
        (["run", QUICKSTART, "model.backbone=./nowhere"], 1, "no such folder"),
        (["run", QUICKSTART, "--budget", "20gpuh"], 2, "--budget: a budget stops new trials of a sweep, and the spec has none"),
        (["submit", QUICKSTART, "sweep.seeds=[0,1]", "--budget", "300"], 2, "--budget: '300' is no amount"),
        (["submit", QUICKSTART, "compute.storage=/other", "--k8s", INFRA], 2, "compute.storage: has no effect on a job on Kubernetes"),
        (["submit", QUICKSTART, "--retries", "2", "--k8s", INFRA], 2, "--retries: has no effect on a job on Kubernetes"),
        (["submit", QUICKSTART, "--address", "http://head:8265", "--k8s", INFRA], 2, "--address: has no effect on a job on Kubernetes"),
        (["cluster", "render", "slurm", INFRA, "--to", INFRA], 2, "is the infra file itself"),
        (["cluster", "render", "slurm", INFRA, "--to", "nowhere/slurm.sh"], 2, "there is no folder nowhere"),
        (["cluster", "render", "slurm", INFRA, "--to", f"{INFRA}/slurm.sh"], 2, "make it, or give another name"),
        (["plan", QUICKSTART, "compute.storage=/proc/nowhere"], 5, "compute.storage=FOLDER"),
        (["report", "nowhere"], 2, "no finished run"),
        (["atlas", "check", QUICKSTART], 2, "atlas.source"),
        (["describe", "nowhere"], 2, "no such file"),
        (["describe", "."], 1, "holds no *.parquet or *.jsonl"),
        (["describe", QUICKSTART, "descriptors.streams=[poze]"], 2, "descriptors.streams"),
        (["describe", QUICKSTART, "descriptors.poze.fps=4"], 2, "did you mean 'descriptors.pose'"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_exit_code(hba, words, code, says):
    ended, out, err = hba(*words)
    assert ended == code
    assert says in " ".join((out + err).split())
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("cause", "code", "says"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 5, "torch: is not installed, and this command needs it"),
        (OSError(28, "No space left on device", "/full/x"), 5, "/full/x: cannot be used: No space left on device"),
        (OSError(28, "No space left on device"), 5, "output: cannot be used"),
        (OSError(20, "Not a directory", "a.txt/card.md"), 5, "a.txt/card.md: cannot be used: Not a directory"),
        (OSError(21, "Is a directory", ".card.draft", None, "card"), 5, "card: cannot be used: Is a directory"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_what_the_machine_lacks_is_one_error(hba, monkeypatch, cause, code, says):
    def fail() -> None:
        raise cause

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(fail)
    monkeypatch.setattr(cli, "app", app)
    ended, out, err = hba()
    assert ended == code and says in err and "Traceback" not in out + err


def test_a_mistake_in_our_own_code_is_not_taken_for_a_missing_package(hba, monkeypatch):
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'hba_ray.nope'", name="hba_ray.nope")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ModuleNotFoundError):
        hba("anything")


@pytest.mark.parametrize("shell", ["{hba} validate {spec} >/dev/full", "{hba} validate {spec} >&-", "{hba} schema | head -c 1 >/dev/null"])
def test_an_output_that_takes_nothing_is_no_crash(shell):
    command = shell.format(hba=f"{sys.executable} -m hba_ray", spec=QUICKSTART)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == (5 if "full" in shell else 0)
    assert "Traceback" not in done.stderr and ("error: output: cannot be used" in done.stderr) == ("full" in shell)


def test_doctor_looks_at_the_machine_unless_it_is_told_another_check(hba):
    code, out, _ = hba("doctor")
    assert code == 0 and {"Python", "disk", "MLflow"} <= {line.split("  ")[0] for line in out.splitlines()}
    code, out, _ = hba("doctor", QUICKSTART, "compute.storage=/proc/nowhere")
    assert code == 5 and "compute.storage=FOLDER" in out
    assert hba("doctor", "nowhere.yaml")[0] == 2
    code, out, err = hba("doctor", "rollout")
    assert code == 2 and "doctor rollout" in out + err


@pytest.mark.parametrize(
    "words",
    [
        ["report", "nowhere"],
        ["judge", "nowhere"],
        ["export", "nowhere"],
        ["bench", "bam", "."],
        ["bench", "bam", QUICKSTART, "stages=[sft]"],
        ["reproduce", "T99"],
        ["reproduce", "T4", "--atlas", "."],
        ["reproduce", "T11", "--experiments", "no"],
    ],
)
def test_a_path_that_is_wrong_is_refused_before_anything_heavy_is_imported(words, tmp_path):
    code = f"import sys; sys.argv = ['hba', *{words}]; from hba_ray.cli import main as cli; import atexit; " + (
        "atexit.register(lambda: print('heavy:', *sorted({'numpy', 'pyarrow', 'scipy', 'torch'} & set(sys.modules)))); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (2, "heavy:"), done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr


def test_render_prints_a_spec_that_means_the_same(hba, tmp_path):
    _, out, _ = hba("render", QUICKSTART, "seed=3")
    (tmp_path / "again.yaml").write_text(out)
    code, again, _ = hba("render", "again.yaml")
    assert (code, again) == (0, out)
    assert yaml.safe_load(out)["seed"] == 3


def test_the_schema_describes_every_field(hba):
    _, out, _ = hba("schema")
    schema = json.loads(out)
    assert schema["$defs"]["SftSpec"]["properties"]["lr"]["description"] == "Peak learning rate."
    assert schema["additionalProperties"] is False


def test_plan_shows_the_steps_and_what_is_done(hba):
    code, out, _ = hba("plan", QUICKSTART)
    assert code == 0
    table, _, facts = out.partition("\n\n")
    _, *steps = [line for line in table.splitlines() if not line.startswith(" ")]
    kinds = list(dict.fromkeys(line.split()[0] for line in steps))
    assert kinds == ["atlas", "describe", "backbone", "sft", "states", "bam", "grpo", "evaluate", "compare", "probe"]
    assert all("  no  " in line for line in steps)
    assert {"rows", "cost", "doctor"} <= {line.split("  ")[0] for line in facts.splitlines()}


def test_check_sets_an_atlas_beside_table_7(hba, toy):
    code, out, _ = hba("atlas", "check", QUICKSTART, "atlas.source=released", f"atlas.root={toy.jsonl}")
    assert code == 0
    assert "toy_tone" in out


def test_check_takes_a_folder_decodes_clips_and_says_how_to_describe_them(hba, toy):
    code, out, err = hba("atlas", "check", str(toy.jsonl), "--clips", "compute.workers=0", "atlas.datasets=[toy_tone]")
    assert code == 0
    assert "Rows by modality" in out and "longest, s" in out
    assert "are missing or stale: hba describe" in err


def test_check_ends_with_1_where_a_clip_would_stop_a_run(hba, tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    row = {"problem": "<audio>\nHow does it sound?", "answer": "sad", "dataset": "cremad", "audios": ["clip.wav"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = hba("atlas", "check", str(tmp_path), "--clips", "compute.workers=0")
    assert code == 1 and "a run would stop at the first bad row or clip" in err
    assert hba("atlas", "check", str(tmp_path), "--clips", "compute.workers=0", "atlas.on_bad_row=drop")[0] == 0


def test_describe_takes_a_folder_and_says_what_it_has_and_check_reads_it(hba, toy):
    pytest.importorskip("opensmile")
    words = ("atlas.datasets=[toy_tone]", "atlas.limit=2", "descriptors.streams=[acoustic]", "compute.workers=0")
    for extracted in ("6", "0"):
        code, out, _ = hba("describe", str(toy.jsonl), *words)
        (row,) = [line.split() for line in out.splitlines() if line.startswith("acoustic")]
        assert (code, row[:7]) == (0, ["acoustic", "6", "6", "0", "0", "6", extracted])
        assert "runs/descriptors" in out
    code, out, err = hba("atlas", "check", str(toy.jsonl), *words)
    assert code == 0 and "missing or stale: hba" not in err
    assert [line.split()[2:6] for line in out.splitlines() if line.startswith("acoustic")] == [["6", "6", "6", "0"]]


def test_all_datasets_are_listed(hba):
    _, out, _ = hba("atlas", "list")
    for name in ("mosei_senti", "mmsd", "16326", "toy_words", "social processes", "non-verbal communication", "open answers", "GPL-3.0"):
        assert name in out
    assert [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")][:6] == [
        *("Dimensions", "id", "Aff", "Cog", "Path", "Soc"),
    ]
