"""Whatever a spec or an override holds: it is accepted, or refused with its place, in a moment and without a traceback."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hba_ray.errors import SpecError
from hba_ray.specs import load_spec
from hba_ray.specs.base import value_at
from hba_ray.specs.load import as_yaml
from tests.helpers.hostile import hostile
from tests.helpers.hostile_specs import override_words, plain_texts, read_spec, spec_texts, text_fields

MINIMAL = "name: x\natlas:\n  source: toy\n"


@hostile("specs", 150)
@given(spec_texts(), override_words())
def test_a_changed_spec_with_any_overrides_is_accepted_or_refused_with_its_place(tmp_path: Path, text: str, words: list[str]):
    assert read_spec(tmp_path, text, words) in ("accepted", "refused")


@hostile("specs", 150)
@given(st.sampled_from(sorted(set(text_fields()) - {"name"})), plain_texts())
@example("atlas.root", "/data/CREMA-D #final")
@example("atlas.root", " ~/a: [b] ")
@example("compute.address", "0E0")
@example("tracking.experiment", "*x")
def test_any_text_given_to_any_text_field_arrives_unchanged(tmp_path: Path, key: str, text: str):
    file = tmp_path / "spec.yaml"
    file.write_text(MINIMAL)
    try:
        spec = load_spec(file, ["evaluate.judge={}", f"{key}={text}"])
    except SpecError as refused:  # a field of its own form, such as a URL
        assert refused.where == "command line" and key in str(refused)
        return
    arrived = None if text == "null" and text_fields()[key] else text.rstrip("/") if key.endswith("base_url") else text
    assert value_at(spec, key) == arrived
    (tmp_path / "again.yaml").write_text(as_yaml(spec))
    assert load_spec(tmp_path / "again.yaml") == spec


@hostile("specs", 80)
@given(st.lists(st.sampled_from(["\\", "${", "}", "a", "${oc.env:X", "$", "{"]), max_size=8).map("".join))
def test_what_is_written_is_read_back_the_same_also_where_it_looks_like_a_reference(tmp_path: Path, text: str):
    (tmp_path / "spec.yaml").write_text(MINIMAL)
    spec = load_spec(tmp_path / "spec.yaml")
    spec = spec.model_copy(update={"tracking": spec.tracking.model_copy(update={"experiment": f"a{text}b"})})
    (tmp_path / "again.yaml").write_text(as_yaml(spec))
    assert load_spec(tmp_path / "again.yaml") == spec


def doubling(first: str, levels: int) -> str:
    inner = ", ".join(f"a{level}: '${{x.a{level - 1}}}${{x.a{level - 1}}}'" for level in range(1, levels + 1))
    return f"{MINIMAL}x: {{a0: '{first}', {inner}}}\n"


@pytest.mark.hostile("spec bombs")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (doubling("xx", 33), "more than 1 MiB of text"),
        (doubling("", 33), "more than 1 MiB of text"),
        (doubling("", 14), "more than 1 MiB of text"),
        (
            f"{MINIMAL}x: {{a0: {{b: 1}}, "
            + ", ".join(f"a{n}: {{p: '${{x.a{n - 1}}}', q: '${{x.a{n - 1}}}'}}" for n in range(1, 18))
            + "}\n",
            "MiB",
        ),
        (f"{MINIMAL}x: {{a0: 1, " + ", ".join(f"a{n}: '${{x.a{n - 1}}}'" for n in range(1, 60)) + "}\n", "more than 20 references"),
        (f"{MINIMAL}x: ['{'${sft.lr}' * 600}']\n", "more than 500 references"),
        (f"{MINIMAL}x: '{'${' * 400}'\n", "nested deeper than 10 levels"),
        (f"{MINIMAL}x: '${{oc.env:{'[' * 5000}'\n", "nested deeper than 10 levels"),
        (f"{MINIMAL}x: '${{sft.lr}}{'x' * 20_000}'\n", "10000 are the most"),
        (f"{MINIMAL}x: ${{x}}\n", "x refers to itself"),
        (f"{MINIMAL}x: {{a: '${{x.b}}', b: '${{..x.a}}'}}\n", "refers to itself"),
        (f"{MINIMAL}x: '${{oc.decode:\"[1]\"}}'\n", "'oc.decode' is no source of values"),
        (f"{MINIMAL}x: '${{sft.${{name}}}}'\n", "names its key by another reference"),
        (f"{MINIMAL}x: '${{oc.env:a,,b}}'\n", "a name and a default"),
        (f"{MINIMAL}seed: ???\n", "give the value"),
    ],
)
def test_references_that_lead_too_far_are_refused_in_milliseconds_with_their_line(tmp_path: Path, text: str, says: str):
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    assert says in str(refused.value) and refused.value.where == f"{file}:4" and refused.value.way_out
    assert time.process_time() - started < 1


def test_references_that_people_use_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HBA_ROWS", "77")
    file = tmp_path / "spec.yaml"
    file.write_text(
        "name: x-${seed}\natlas:\n  source: toy\n  toy: {rows: '${oc.env:HBA_ROWS}'}\n"
        "seed: 3\nsft: {epochs: 2, warmup_steps: '${.epochs}'}\ntransfer: {epochs: '${sft.epochs}', lr: '${..sft.lr}'}\n"
        "bam: {datasets: [a, '${bam.datasets[0]}b']}\ncompute: {storage: '${oc.env:HBA_NOT_SET,${name}-runs}'}\n"
    )
    spec = load_spec(file, ["sft.lr=2e-4", "tracking.experiment=of ${name}, not \\${name}"])
    assert (spec.name, spec.atlas.toy.rows, spec.sft.warmup_steps, spec.transfer.epochs, spec.transfer.lr) == ("x-3", 77, 2, 2, 2e-4)
    assert (spec.bam.datasets, spec.compute.storage, spec.tracking.experiment) == (("a", "ab"), "x-3-runs", "of x-3, not ${name}")


@pytest.mark.hostile("spec bombs")
@pytest.mark.parametrize(
    ("value", "column", "says"),
    [
        ("!!bool bam", 7, "'bam', which is not a yes or no"),
        ("!!int ''", 7, "'', which is not a whole number"),
        ("!!float ''", 7, "'', which is not a number"),
        ("0b_", 7, "'0b_', which is not a whole number"),
        ("!!timestamp x", 7, "the tag !!timestamp"),
        ("!!set {a, b}", 7, "the tag !!set"),
        ("!!python/object/apply:os.system [x]", 7, "the tag !!python/object/apply:os.system"),
        ("9" * 4400, 7, "a number of 4400 digits"),
        ("0x" + "f" * 4400, 7, "a number of 4402 digits"),
        ("{a: 1, a: 2}", 14, "the key 'a' twice"),
        ("{[a]: 1}", 8, "a key that is no text"),
        ("[" * 60 + "]" * 60, 56, "nested deeper than 50 levels"),
        ("{a: [1}", 13, "is not YAML"),
    ],
)
def test_what_python_refuses_is_an_error_with_its_line_and_column(tmp_path: Path, value: str, column: int, says: str):
    file = tmp_path / "spec.yaml"
    file.write_text(f"{MINIMAL}seed: {value}\n")
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    assert says in refused.value.what and refused.value.way_out
    assert refused.value.where == f"{file}:4:{column}"


def test_a_root_that_is_a_set_and_a_file_that_is_no_spec_are_refused_without_a_word_of_them(tmp_path: Path):
    file = tmp_path / "spec.yaml"
    for text in ("!!set {hush, b}\n", "root:$6$hush:19000:0:99999:7:::\nbin:*:19000:0:99999:7:::\n", "- hush\n", "hush\n"):
        file.write_text(text)
        (tmp_path / "child.yaml").write_text(f"{MINIMAL}extends: spec.yaml\n")
        for path in (file, tmp_path / "child.yaml"):
            with pytest.raises(SpecError) as refused:
                load_spec(path)
            assert "hush" not in str(refused.value) and str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("word", "arrives"),
    [
        ("atlas.root=/a #b", "/a #b"),
        ("atlas.root=~", "~"),
        ("atlas.root=null", None),
        ("atlas.root=007", "007"),
        ("compute.storage=null", "null"),
        ("sft.max_gradient_norm=null", None),
        ("sft.lr=1e-3", 1e-3),
        ("atlas.datasets=[a, 'b #c']", ["a", "b #c"]),
        ("bam.norm=none", "none"),
        ("compute.zero=3", 3),
        ("compute.fork=true", True),
        ("bam.checkpoints.toy_nod=/a: *b #c", {"toy_nod": "/a: *b #c"}),
        ("grpo.verl.a.b=1e-3", {"a": {"b": 1e-3}}),
        ("grpo.verl.a=x #y", {"a": "x #y"}),
    ],
)
def test_a_value_is_what_its_field_takes(tmp_path: Path, word: str, arrives: object):
    file = tmp_path / "spec.yaml"
    file.write_text(f"{MINIMAL}stages: [sft, bam]\nsft: {{checkpoint: x}}\n")
    key = ".".join(word.partition("=")[0].split(".")[:2])
    assert value_at(load_spec(file, [word]), key) == arrives


def test_an_arm_and_an_axis_take_values_as_their_fields_do(tmp_path: Path):
    file = tmp_path / "spec.yaml"
    file.write_text(MINIMAL)
    spec = load_spec(file, ["sweep.arms.a.atlas.root=/x #y", "sweep.axes.sft.lr=[1e-3, 1e-4]"])
    assert spec.sweep and spec.sweep.arms == {"a": {"atlas.root": "/x #y"}} and spec.sweep.axes == {"sft.lr": (1e-3, 1e-4)}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sft.lr=1e-3 #x"], "given: '1e-3 #x'"),
        (["stages=[sft] #x"], "it takes a list"),
        (["sweep.axes.atlas.root=[/a #b, /c]"], "it takes a list"),
        (["sft=3", "sft.lr=1"], "gives as a whole"),
        (["transfer=${sft}", "transfer.lr=1"], "gives as a whole"),
    ],
)
def test_nothing_of_a_value_is_dropped(tmp_path: Path, words: list[str], says: str):
    file = tmp_path / "spec.yaml"
    file.write_text(MINIMAL)
    with pytest.raises(SpecError) as refused:
        load_spec(file, words)
    assert refused.value.where == "command line" and says in str(refused.value)


def test_a_part_of_a_section_that_is_a_reference_cannot_be_set(tmp_path: Path):
    file = tmp_path / "spec.yaml"
    file.write_text(f"{MINIMAL}transfer: ${{sft}}\n")
    with pytest.raises(SpecError, match="of which a part cannot be changed"):
        load_spec(file, ["transfer.lr=1"])


def test_a_pipe_or_a_device_is_no_file_of_prompts(tmp_path: Path):
    from hba_ray.judge.prompts import load_prompts

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"user: x\n" * 200_000)
    started = time.perf_counter()
    for name, says in (("pipe", "is not a file"), ("large", "larger than 1 MiB"), (".", "is a folder"), ("/dev/zero", "is not a file")):
        with pytest.raises(SpecError, match=says) as refused:
            load_prompts(str(tmp_path / name))
        assert refused.value.where.startswith("evaluate.judge.prompts=")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("field", ["{question:>9999999999}", "{question!r}", "{question:{answer}}"])
def test_a_field_of_a_template_has_no_format(tmp_path: Path, field: str):
    from hba_ray.judge.prompts import load_prompts

    file = tmp_path / "mine.yaml"
    file.write_text(f"user: '{field} {{reference}} {{answer}}'\nrubrics: {{}}\n")
    with pytest.raises(SpecError, match="a field with a format"):
        load_prompts(str(file))
