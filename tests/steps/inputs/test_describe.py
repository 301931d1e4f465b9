"""Descriptors as a step: extracted once into the storage's own store, said in the report, opened by later steps."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hba_ray.actions.describe import describe_atlas, index_of
from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.rows import TAG, Row
from hba_ray.data.tasks import SPLITS
from hba_ray.descriptors.pose import PARTS
from hba_ray.descriptors.tables import table_of
from hba_ray.errors import DataError, SpecError
from hba_ray.runs.plan import plan
from hba_ray.runs.results import read_scores
from hba_ray.specs.sections.descriptors import STREAMS
from hba_ray.steps.base import Context
from hba_ray.steps.inputs import describe
from hba_ray.steps.run import do_step
from hba_ray.store.folders import Storage
from tests.convert.conftest import write_cremad
from tests.helpers.experiments import small_experiment
from tests.helpers.whisper import checkpoint

pytest.importorskip("opensmile")
DESCRIBED = {"descriptors__streams": ["acoustic"], "atlas__limit": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An atlas whose sound was described: its spec, its index, and what the step said."""
    spec = small_experiment(tmp_path_factory.mktemp("runs"), **DESCRIBED)
    context = _context_of(spec)
    result = do_step(context, lambda line: None)
    return spec, AtlasIndex.load(context.folder_of("atlas")), result


def test_nothing_is_extracted_unless_the_spec_says_so(tmp_path: Path):
    assert "describe" not in {step.name for step in plan(small_experiment(tmp_path), Storage(tmp_path)).steps}


def test_the_step_is_named_by_what_is_extracted_and_not_by_how_it_is_read(tmp_path: Path):
    def name(**changes: object) -> str:
        spec = small_experiment(tmp_path, **{"descriptors__streams": ["pose", "acoustic"], **changes})
        return next(step.fingerprint for step in plan(spec, Storage(tmp_path)).steps if step.name == "describe")

    assert name() == name(descriptors__acoustic={"normalisation": "l2"}) == name(compute__extractors=2)
    assert name() == name(descriptors__streams=["acoustic", "pose"])
    assert len({name(), name(descriptors__pose={"fps": 4}), name(descriptors__streams=["pose"]), name(atlas__limit=1)}) == 4


def test_adapters_without_any_descriptor_to_learn_from_are_refused_before_a_model_is_trained(tmp_path: Path):
    root = write_cremad(tmp_path)
    shutil.rmtree(root / "AudioWAV", ignore_errors=True)
    spec = small_experiment(
        tmp_path / "runs", atlas={"source": "cremad", "root": str(root)}, stages=["sft", "bam"], bam={"streams": ["acoustic"]}
    )
    with pytest.raises(DataError, match=r"bam\.streams: none of \d+ rows has a clip that can be described \(acoustic\)\n  put the clips"):
        do_step(_context_of(spec), lambda line: None)


def test_every_row_is_described_or_counted(made):
    spec, index, result = made
    found = result.streams["acoustic"]
    assert found.rows == len(index.table) and found.described + found.absent == found.rows and found.described > 5
    (note,) = describe.DescribeSteps().notes(spec, result)
    assert f"{found.described} of {found.rows} rows have a vector, {found.absent} have no clip for it." in note


def test_masked_rows_are_said_with_their_reasons(made):
    spec, _, result = made
    bad = replace(result.streams["acoustic"], bad={"corrupt audio": 2, "empty file": 1})
    notes = describe.DescribeSteps().notes(spec, describe.DescribeResult(streams={"acoustic": bad}, unreadable={"missing file": 4}))
    assert "3 are masked (corrupt audio: 2, empty file: 1)" in notes[0] and "missing file: 4" in notes[1]


def test_later_steps_find_vectors_by_sample(made):
    spec, index, _ = made
    descriptors = describe.open_descriptors(spec, index)
    lines = [int(line) for line in index.rows_of("validation")]
    samples = [descriptors.names[line][0] for line in lines]
    assert descriptors.lines_of("validation", samples[::-1]) == lines[::-1]
    _, present_B = descriptors.vectors("acoustic", descriptors.lines_of("validation", samples))
    signatures = np.array(index.table.column("modality_signature").to_pylist())[lines]
    assert present_B.tolist() == ["audio" in signature for signature in signatures]
    with pytest.raises(DataError, match="is no extracted row of test"):
        descriptors.lines_of("test", samples[:1])
    descriptors.places["test"]["twice"] = None
    with pytest.raises(DataError, match="several rows"):
        descriptors.lines_of("test", ["twice"])


def test_transcripts_are_part_of_every_prompt_that_is_trained_on(tmp_path: Path):
    def named(**changes: object) -> dict[str, str]:
        return {step.name: step.fingerprint for step in plan(small_experiment(tmp_path, **changes), Storage(tmp_path)).steps}

    without, acoustic = named(), named(descriptors__streams=["acoustic"])
    spoken = named(descriptors__streams=["transcripts"])
    other = named(descriptors__streams=["transcripts"], descriptors__transcripts={"model": "base"})
    for name in ("backbone", "sft", "evaluate sft"):
        assert without[name] == acoustic[name] and len({without[name], spoken[name], other[name]}) == 3


@pytest.mark.slow
def test_what_whisper_hears_reaches_the_rows_of_later_steps(tmp_path: Path):
    pytest.importorskip("whisper")
    whisper = {"model": str(checkpoint(tmp_path / "tiny.pt")), "rows": "all"}
    spec = small_experiment(
        tmp_path, atlas__datasets=["toy_tone"], descriptors__streams=["transcripts"], descriptors__transcripts=whisper, atlas__limit=1
    )
    context = _context_of(spec)
    result = do_step(context, lambda line: None)
    assert isinstance(result, describe.DescribeResult)
    assert result.streams["transcripts"].described == 3 and not context.index.transcripts
    later = replace(context.step, folder=tmp_path)
    index = Context(spec, later, {**context.earlier, "describe": context.step}).index
    assert index.transcripts
    rows = {line: next(iter(read_rows(index, [line]))) for line in index.transcripts}
    assert all(
        isinstance(row, Row) and TAG.sub("", text).split()[0] in row.problem
        for (line, text) in index.transcripts.items()
        for row in [rows[line]]
    )
    assert set(index.transcripts.values()) <= {text for split in SPLITS for text in index.texts(split)}


@pytest.mark.ray
@pytest.mark.slow
def test_one_run_fills_all_three_tables_through_the_real_extractors(tmp_path: Path):
    pytest.importorskip("whisper")
    if shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])) is None:
        pytest.skip("there is no uv, which builds MediaPipe's environment")
    whisper = {"model": str(checkpoint(tmp_path / "tiny.pt")), "rows": "all"}
    spec = small_experiment(
        tmp_path / "runs", atlas__limit=1, descriptors__streams=list(STREAMS), descriptors__transcripts=whisper, compute__workers=1
    )
    found = describe_atlas(spec, lambda line: None).streams
    descriptors = describe.open_descriptors(spec, index := index_of(spec)[0])
    lines = range(len(index.table))
    for stream in STREAMS:
        assert found[stream].extracted == found[stream].clips >= found[stream].described > 0 and not found[stream].bad
        assert found[stream].described + found[stream].absent == found[stream].rows == len(lines)
    signatures = index.table.column("modality_signature").to_pylist()
    pose_BD, seen_B = descriptors.vectors("pose", lines)
    acoustic_BD, heard_B = descriptors.vectors("acoustic", lines)
    assert (pose_BD.shape, acoustic_BD.shape) == ((len(lines), 3318), (len(lines), 6373))
    assert seen_B.tolist() == ["video" in signature for signature in signatures] and pose_BD[seen_B].any(axis=1).all()
    assert heard_B.tolist() == ["audio" in signature for signature in signatures] and acoustic_BD[heard_B].any(axis=1).all()
    assert [text is not None for text in descriptors.transcripts(lines)] == heard_B.tolist()
    table = table_of(Storage(spec.compute.storage).descriptors, describe.settings(spec), "pose")
    detected_T4 = np.array(table.columns(["detected"]).column("detected").to_pylist())
    assert (detected_T4[:, : list(PARTS).index("face") + 1].min(axis=1) >= 0.95).all(), "33 + 478 points in 95 % of the frames of each clip"
    again = describe_atlas(spec, lambda line: None).streams
    assert all(one.extracted == 0 for one in again.values())


def test_a_second_atlas_of_the_same_clips_extracts_nothing(made):
    spec, _, result = made
    again = describe.DescribeSteps().make(_context_of(spec.model_copy(update={"atlas": spec.atlas.model_copy(update={"limit": 2})})))
    assert result.streams["acoustic"].extracted > 5 and again.streams["acoustic"].extracted == 0


def _context_of(spec) -> Context:
    """What the describe step is given once the atlas is there."""
    steps = {step.name: step for step in plan(spec).steps}
    do_step(Context(spec, steps["atlas"], {}), lambda line: None)
    return Context(spec, steps["describe"], {"atlas": steps["atlas"]})


def test_probes_are_arms_with_scores_of_their_own(made):
    spec, _, _ = made
    spec = spec.model_copy(update={"descriptors": spec.descriptors.model_copy(update={"probe": True})})
    steps = {step.name: step for step in plan(spec, Storage(spec.compute.storage)).steps}
    step = steps["probe acoustic"]
    result = do_step(Context(spec, step, steps), lambda line: None)
    scores = read_scores(step)
    assert str(step.arm) == "probe acoustic" and {score.dataset for score in scores.datasets} >= {"toy_tone"}
    assert result.rows == sum(score.rows for score in scores.datasets) and result.without_a_vector < result.rows
    (note,) = step.kind.notes(spec, result)
    assert "logistic regression" in note


def test_a_probe_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match=r"descriptors\.probe"):
        plan(small_experiment(tmp_path, descriptors__probe=True), Storage(tmp_path))
