"""Packing is a step that all stages read and that changes none of them."""

from pathlib import Path

from hba_ray.data.atlas import read_rows
from hba_ray.data.packed import PackedClip
from hba_ray.data.rows import Row
from hba_ray.runs.plan import plan
from hba_ray.steps.base import Context
from hba_ray.steps.run import do_step
from hba_ray.store.folders import Storage
from tests.helpers.experiments import small_experiment


def test_packing_renames_no_other_step_and_follows_what_is_shown_of_a_clip(tmp_path: Path):
    def names(**changes: object) -> dict[str, str]:
        return {step.name: step.fingerprint for step in plan(small_experiment(tmp_path, **changes), Storage(tmp_path)).steps}

    plain, packs = names(), names(compute__pack=True)
    assert packs.keys() - plain.keys() == {"pack"} and plain.items() <= packs.items()
    assert list(packs).index("pack") == list(packs).index("sft") - 1
    assert packs["pack"] == names(compute__pack=True, sft__lr=0.1, atlas__modalities=["text", "audio"])["pack"]
    assert packs["pack"] != names(compute__pack=True, atlas__media__video_frames=4)["pack"]


def test_stages_read_packed_clips_and_do_not_rest_on_the_pack(tmp_path: Path):
    spec = small_experiment(tmp_path, compute__pack=True)
    steps = {step.name: step for step in plan(spec, Storage(tmp_path)).steps}
    for name in ("atlas", "pack"):
        result = do_step(Context(spec, steps[name], steps), lambda line: None)
    context = Context(spec, steps["sft"], steps)
    rows = [row for row in read_rows(context.index, range(8)) if isinstance(row, Row)]
    assert len(rows) == 8 and all(isinstance(clip, PackedClip) for row in rows for clips in row.media.values() for clip in clips)
    assert context.read == {"atlas"}
    assert result.rows == len(context.whole_index.table) and result.mib > 0
    assert steps["pack"].kind.notes(spec, result) == [f"Clips were decoded once for all stages: {result.rows} rows, {result.mib:.0f} MiB."]
