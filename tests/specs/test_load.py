"""Specs are read, merged and refused with the file, the line, the key and the nearest valid key."""

import itertools
import os
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec, fingerprint, load_spec

ROOT = Path(__file__).parents[2]
MINIMAL = "name: x\natlas:\n  source: toy\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "spec.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_defaults_are_the_papers_numbers(write):
    spec = load_spec(write(MINIMAL))
    assert (spec.sft.epochs, spec.sft.batch, spec.sft.lr, spec.sft.warmup_steps) == (5, 512, 1e-4, 50)
    assert (spec.model.lora.rank, spec.model.lora.alpha, spec.model.lora.dropout) == (32, 64, 0.05)
    assert (spec.atlas.media.audio_seconds, spec.atlas.media.video_frames) == (10, 4)


def test_the_nearer_file_wins_and_the_command_line_wins_over_files(write):
    write("atlas: {source: toy}\nsft: {lr: 1e-3, epochs: 2}\n", "base/far.yaml")
    write("extends: far.yaml\nsft: {epochs: 3}\n", "base/near.yaml")
    path = write("extends: base/near.yaml\nname: x\nsft: {batch: 8}\n")
    spec = load_spec(path, ["sft.batch=16"])
    assert (spec.sft.lr, spec.sft.epochs, spec.sft.batch) == (1e-3, 3, 16)


def test_scientific_notation_without_a_point_is_a_number(write):
    assert load_spec(write(MINIMAL + "sft:\n  lr: 5e-7\n")).sft.lr == 5e-7


def test_values_can_refer_to_others(write):
    assert load_spec(write(MINIMAL + "sft:\n  warmup_steps: 7\n  epochs: ${sft.warmup_steps}\n")).sft.epochs == 7


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("name: x\natlas:\n  source: toy\nsft:\n  learning_rate: 1\n", 5, "did you mean 'sft.lr'"),
        ("name: x\natlas:\n  source: toy\nsft:\n  epoch: 1\n", 5, "did you mean 'sft.epochs'"),
        ("name: x\natlas:\n  source: toy\nrank: 8\n", 4, "did you mean 'model.lora.rank'"),
        ("name: x\natlas:\n  source: toy\n  modalties: [text]\n", 4, "did you mean 'atlas.modalities'"),
        ("name: x\natlas:\n  source: toy\nsft: {epochs: 0}\n", 4, "greater than or equal to 1"),
        ("name: x\natlas:\n  source: gestures\n", 3, "'released'"),
        ("name: x\natlas:\n  source: toy\n  modalities: [audio]\n", 2, "must contain text"),
        ("name: x\natlas:\n  source: released\n", 2, "atlas.root=FOLDER"),
        ("name: a/b\natlas:\n  source: toy\n", 1, "should match pattern"),
        ("name: x\natlas:\n  source: toy\nstages: [sft, sft]\n", 4, "named twice"),
        ("name: x\natlas:\n  source: toy\nstages: [bam]\n", 4, "'sft'"),
        ("name: x\natlas:\n  source: toy\nstages: sft\n", 4, "it takes a list"),
        ("name: x\natlas:\n  source: toy\nsft: [1]\n", 4, "it takes keys"),
        ("name: x\natlas:\n  source: toy\nsft.lr: 1\n", 4, "in a file keys are nested: sft: {lr: ...}"),
        ("name: ../x\natlas:\n  source: toy\n", 1, "letters, digits, dots, dashes, underscores"),
        ("name: x\natlas:\n  source: toy\nseed: yes\n", 4, "seed: is true, a yes or no"),
        ("name: x\natlas:\n  source: toy\nseed: 4294967296\n", 4, "less than 4294967296"),
        ("name: x\natlas:\n  source: toy\nsft: {epochs: 9223372036854775808}\n", 4, "no number of 64 bits"),
        ('name: x\natlas:\n  source: released\n  root: "a\\0b"\n', 4, "a zero byte"),
        ('name: x\natlas:\n  source: toy\ncompute: {storage: "\\ud800"}\n', 4, "half a character"),
        ("name: x\natlas:\n  source: toy\ncompute: {storage: ''}\n", 4, "at least 1 character"),
        ("name: x\natlas: {source: toy}\ncompute:\n  storage: ftp://host/runs\n", 4, "give one that begins with s3"),
        ("name: x\natlas: {source: toy}\ncompute:\n  storage: s3:/bucket/runs\n", 4, "write s3://BUCKET/FOLDER"),
        ("name: x\natlas: {source: toy}\ncompute:\n  storage: gs//bucket/runs\n", 4, "write gs://BUCKET/FOLDER"),
        ("name: x\natlas: {source: toy}\ncompute:\n  storage: 's3://'\n", 4, "names no bucket"),
        ("name: x\natlas: {source: toy}\ncompute:\n  storage: s3:///runs\n", 4, "names no bucket"),
        ("name: x\natlas: {source: toy}\ntracking:\n  mlflow: 10.0.0.5:5000\n", 4, "give it as http://10.0.0.5:5000"),
        ("name: x\natlas: {source: toy}\ncompute:\n  storage: s3://key:secret@bucket/runs\n", 4, "holds a password or a token"),
        ("name: x\natlas:\n  source: cremad\n  root: gs://bucket/cremad\n", 4, "a folder that all machines see"),
    ],
)
def test_a_bad_key_or_value_is_named_with_its_line(write, text, line, says):
    path = write(text)
    with pytest.raises(SpecError) as refused:
        load_spec(path)
    assert refused.value.where == f"{path}:{line}"
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("atlas: {source: toy}\nstages: [grpo]\ngrpo: {nodes: 2}\ncompute: {workers: 2, storage: 's3://b/r'}", "done whole on one node"),
        ("atlas: {root: 's3://b/atlas'}", "give a storage in a bucket, too"),
        ("atlas: {sources: [{root: 's3://b/atlas'}, {root: other}]}", "give a storage in a bucket, too"),
    ],
)
def test_what_nodes_of_a_cluster_could_not_do_with_a_bucket_is_refused(write, text, says):
    path = write(f"name: x\n{text}\n")
    load_spec(path)
    with pytest.raises(SpecError, match=says):
        load_spec(path, ["compute.address=auto"])


def test_an_error_in_an_extended_file_names_that_file(write):
    base = write("atlas: {source: toy}\nsft:\n  lrr: 1\n", "base.yaml")
    with pytest.raises(SpecError, match=r"lrr"):
        load_spec(write("extends: base.yaml\nname: x\n"))
    with pytest.raises(SpecError) as refused:
        load_spec(write("extends: base.yaml\nname: x\n"))
    assert refused.value.where == f"{base}:3"


@pytest.mark.parametrize("word", ["sft.lr", "=3", "sft.=3", "[=3", "sft..lr=3", "--lr=3", ""])
def test_an_override_of_another_form_is_refused(write, word):
    with pytest.raises(SpecError, match="key=value"):
        load_spec(write(MINIMAL), [word])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("stages[0]=bam", "give the whole list"),
        ("atlas.datasets.0=toy_nod", "give the whole list"),
        ("name=???", "a value that is still to come"),
        ("sft.lr=[1", r"is not YAML: expected ',' or '\]'"),
        ("x" + ".y" * 3000 + "=1", "no key of a spec is as deep"),
        ("seed=" + "{a: " * 300 + "1" + "}" * 300, "nested deeper"),
        ("seed=" + "9" * 6000, "digits"),
    ],
)
def test_an_override_that_means_nothing_is_refused_and_never_ignored(write, word, says):
    with pytest.raises(SpecError, match=says) as refused:
        load_spec(write(MINIMAL), [word])
    assert refused.value.where == "command line" and len(str(refused.value)) < 500


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["seed", "sft.lr", "name", "sft", "atlas", "sweep.axes.sft.lr"]), st.text(max_size=20)), max_size=3)
)
@example([("seed", "&a [*a]")])
@example([("sft", "3"), ("sft.lr", "1")])
def test_any_overrides_give_a_spec_or_one_located_error(tmp_path_factory, pairs):
    path = tmp_path_factory.getbasetemp() / "minimal.yaml"
    path.write_text(MINIMAL)
    try:
        assert isinstance(load_spec(path, [f"{key}={value}" for key, value in pairs]), ExperimentSpec)
    except SpecError as refused:
        assert refused.where and refused.what


def test_an_unknown_override_is_blamed_on_the_command_line(write):
    with pytest.raises(SpecError) as refused:
        load_spec(write(MINIMAL), ["sft.lrate=3"])
    assert refused.value.where == "command line"


def test_a_batch_that_workers_cannot_fill_evenly_is_refused(write):
    with pytest.raises(SpecError, match=r"not a multiple of compute.micro_batch x compute.workers = 6"):
        load_spec(write(MINIMAL), ["sft.batch=16", "compute.micro_batch=3", "compute.workers=2"])


def test_extending_in_a_circle_is_refused(write):
    write("extends: b.yaml\n", "a.yaml")
    with pytest.raises(SpecError, match="extends itself"):
        load_spec(write("extends: a.yaml\n", "b.yaml"))


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"a: [1", b"- 1\n- 2\n", b"a: *b\n", b"\t- x", b"name: x\n" * 200_000, b"a: &a [*a]\n", b"3"]
)
def test_a_file_that_is_no_spec_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as refused:
        load_spec(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_suggests_the_nearest_name(write):
    path = write(MINIMAL, "quickstart.yaml")
    with pytest.raises(SpecError, match=r"did you mean .*quickstart.yaml"):
        load_spec(path.with_name("quikstart.yaml"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=string.printable, max_size=80))
@example("? ?\n")
@example("<<: x")
@example("atlas: {source: toy, media: {audio_seconds: .inf}}")
@example("name: ${oc.env:NO_SUCH_VARIABLE}")
@example("name: ${name}")
@example("!!python/object/apply:os.system ['true']")
def test_any_text_is_a_spec_or_one_located_error(tmp_path, text):
    path = tmp_path / "any.yaml"
    path.write_text(text)
    try:
        assert isinstance(load_spec(path), ExperimentSpec)
    except SpecError as refused:
        assert refused.where and refused.what


def test_compat_authors_fills_only_what_the_spec_leaves_open(write):
    spec = load_spec(write(MINIMAL + "compat: authors\nsft: {epochs: 3}\n"))
    assert spec.sft.epochs == 3
    assert (spec.sft.answer_case, spec.sft.scheduler_horizon) == ("lower", "micro_batches")
    assert (spec.model.media_to_backbone, spec.model.lora.scope) == (False, "all")


def test_where_a_spec_runs_does_not_name_it():
    here, there = ({"name": "x", "atlas": {"source": "toy"}, "compute": {"workers": n}} for n in (1, 2))
    specs = [ExperimentSpec.model_validate(raw) for raw in (here, there)]
    assert specs[0] != specs[1]
    assert len({fingerprint(spec.model_dump(mode="json", exclude={"compute", "tracking"})) for spec in specs}) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_spec_is_valid(path):
    assert load_spec(path).name


def test_refusing_a_spec_takes_under_two_seconds_and_imports_nothing_heavy(write):
    path = write("name: x\natlas: {source: toy}\nsft: {lrr: 1}\n")
    probe = (
        "import sys, hba_ray.cli.main\n"
        f"sys.argv = ['hba', 'validate', {str(path)!r}]\n"
        "try: hba_ray.cli.main.main()\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'ray', 'transformers', 'mlflow', 'pandas'} & set(sys.modules)))\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "2 []"
    assert "did you mean 'sft.lr'" in done.stderr
    assert time.monotonic() - started < 20  # the goal is two seconds on an idle machine; `make bench` measures it


@pytest.mark.parametrize(
    "stated", ["3", "true", '""', '"a\\0b"', "{a: b}", "[3]", "nope.yaml", "a" * 300, "???", "['???']", ".", "/dev/zero"]
)
def test_an_extends_that_names_no_file_is_refused_where_it_is_written(write, stated):
    path = write(f"{MINIMAL}extends: {stated}\n")
    with pytest.raises(SpecError, match="extends") as refused:
        load_spec(path)
    assert refused.value.where == f"{path}:4"


@pytest.mark.parametrize("aliases", ["[*{0}, *{0}, *{0}, *{0}]", "{{p: *{0}, q: *{0}, r: *{0}, s: *{0}}}"])
def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(write, aliases):
    levels = "abcdefghijklmnop"
    bomb = "a: &a [x]\n" + "".join(f"{own}: &{own} {aliases.format(before)}\n" for before, own in itertools.pairwise(levels))
    started = time.perf_counter()
    for text in (bomb, "name: &a [*a]\n", "sft: &a {b: *a}\n"):
        with pytest.raises(SpecError, match="stands for more than 100000 values"):
            load_spec(write(text))
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "kernel log"])
def test_what_is_no_file_is_not_read_as_a_spec(tmp_path, kind):
    path = {"device": Path("/dev/zero"), "kernel log": Path("/proc/kmsg")}.get(kind, tmp_path / kind)
    if kind == "kernel log" and not os.access(path, os.R_OK):
        pytest.skip("the kernel's log is not for this user")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(SpecError, match=r"is a folder|is not a file|is empty"):
        load_spec(path)


def test_a_file_whose_end_never_comes_is_not_waited_for(write):
    """Of what /proc calls regular files: a read from the kernel's log waits for its next line."""
    if not os.access("/proc/kmsg", os.R_OK):
        pytest.skip("the kernel's log is not for this user")
    path = write(f"{MINIMAL}extends: /proc/kmsg\n")
    started = time.perf_counter()
    with pytest.raises(SpecError, match="extends /proc/kmsg: is empty") as refused:
        load_spec(path)
    assert refused.value.where == f"{path}:4" and time.perf_counter() - started < 2


def test_files_that_extend_each_other_billions_of_times_are_refused_at_once(write):
    for level in range(40):
        write(f"extends: [{level + 1}.yaml, {level + 1}.yaml]\n", f"{level}.yaml")
    write(MINIMAL, "40.yaml")
    started = time.perf_counter()
    with pytest.raises(SpecError, match="comes from more than 64 files"):
        load_spec(write("extends: 0.yaml\n"))
    assert time.perf_counter() - started < 5


def test_a_file_is_extended_by_two_others_of_one_spec(write):
    write(MINIMAL, "base.yaml")
    write("extends: base.yaml\nseed: 1\n", "left.yaml")
    write("extends: base.yaml\nsft: {epochs: 2}\n", "right.yaml")
    spec = load_spec(write("extends: [left.yaml, right.yaml]\n"))
    assert (spec.seed, spec.sft.epochs) == (1, 2)


@pytest.mark.parametrize("value", [True, False])
def test_no_number_or_name_is_a_yes_or_no(value):
    for key in ("seed", "name"):
        with pytest.raises(ValueError, match="a yes or no"):
            ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, key: value})
    assert ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy", "split_surprise": value}}).atlas.split_surprise is value
