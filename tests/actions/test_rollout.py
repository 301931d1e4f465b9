"""`hba doctor rollout`, with vLLM itself: on a random model, and on the pretrained one, with rows of all modalities.

It runs as a command, since it puts patches on transformers and vLLM that stay for as long as a process lives.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hba_ray.rl.parity import TOLERANCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("backbone", ["tiny_backbone", "small_backbone"])
def test_vllm_and_transformers_agree_on_rows_of_all_modalities(backbone: str, request: pytest.FixtureRequest, tmp_path: Path):
    spec = {
        "name": "parity",
        "atlas": {"source": "toy", "toy": {"rows": 48}, "media": {"audio_seconds": 2, "video_frames": 4, "video_pixels": 3136}},
        "model": {"backbone": str(request.getfixturevalue(backbone))},
        "compute": {"storage": str(tmp_path), "workers": 0},
    }
    (tmp_path / "parity.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "hba_ray", "doctor", "rollout", str(tmp_path / "parity.yaml")]
    done = subprocess.run(command, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines() if line.startswith("toy")]
    assert {clips for _, clips, *_ in rows} == {"none", "audios", "videos", "videos, audios"}
    for _, _, prompt_tokens, same_prompt, largest, same_greedy in rows:
        assert int(prompt_tokens) > 10 and (same_prompt, same_greedy) == ("True", "True") and float(largest) <= TOLERANCE
