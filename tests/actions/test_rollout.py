"""`hba doctor rollout`, with vLLM itself: on a random model of all modalities, and on the pretrained one, whose answers are words."""

from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.actions.rollout import check_rollout
from hba_ray.rl.parity import RowParity
from hba_ray.specs import ExperimentSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def parity(backbone: Path, storage: Path) -> list[RowParity]:
    atlas = {"source": "toy", "toy": {"rows": 48}, "media": {"audio_seconds": 2, "video_frames": 4, "video_pixels": 3136}}
    compute = {"storage": str(storage), "workers": 0}
    spec = {"name": "parity", "atlas": atlas, "model": {"backbone": str(backbone)}, "compute": compute}
    said: list[str] = []
    rows = check_rollout(ExperimentSpec.model_validate(spec), 1, said.append)
    assert said[-1] == f"vLLM answers {len(rows)} rows"
    return rows


@pytest.mark.parametrize("backbone", ["tiny_backbone", "small_backbone"])
def test_vllm_and_transformers_agree_on_rows_of_all_modalities(backbone: str, request: pytest.FixtureRequest, tmp_path: Path):
    rows = parity(request.getfixturevalue(backbone), tmp_path)
    assert {frozenset(row.modalities) for row in rows} >= {frozenset(), frozenset({"audios"}), frozenset({"videos", "audios"})}
    assert all(row.tokens for row in rows)
    assert [row for row in rows if not row.holds] == []
    if backbone == "small_backbone":
        assert any(word.isalpha() and len(word) > 2 for row in rows for word in row.text.split()), "it knows words"
