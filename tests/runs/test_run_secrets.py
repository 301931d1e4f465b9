"""A run whose MLflow store is named by a secret: the secret is in no file of the run and in no line that it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hba_ray.specs.load import as_yaml
from hba_ray.store.folders import RESOLVED
from tests.helpers.experiments import small_experiment

SECRET = "sk-hush-4711"


def hba(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "STORE_TOKEN"} | variables
    return subprocess.run(
        [sys.executable, "-m", "hba_ray", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.slow
def test_a_secret_is_in_no_file_and_in_no_line_of_a_run_and_the_run_is_read_back_without_it(tmp_path: Path):
    pytest.importorskip("torch")
    (tmp_path / "spec.yaml").write_text(as_yaml(small_experiment(tmp_path / "runs", sft__epochs=1), exclude_unset=True))
    store = f"tracking.mlflow=sqlite:///{tmp_path}/stores/${{oc.env:STORE_TOKEN}}.db"
    (tmp_path / "stores").mkdir()

    refused = hba(tmp_path, "run", "spec.yaml", store)
    assert refused.returncode == 5 and "the environment has no variable STORE_TOKEN" in refused.stderr

    done = hba(tmp_path, "run", "spec.yaml", store, STORE_TOKEN=SECRET)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stores" / f"{SECRET}.db").stat().st_size > 0, "MLflow got the secret itself"
    assert SECRET not in done.stdout + done.stderr and f"sqlite:///{tmp_path}/stores/***.db" in done.stdout
    (resolved,) = (tmp_path / "runs").glob(f"*/{RESOLVED}")
    assert yaml.safe_load(resolved.read_text())["tracking"]["mlflow"] == store.partition("=")[2]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 20 and not [file for file in files if SECRET.encode() in file.read_bytes()]

    again = hba(tmp_path, "report", str(resolved.parent))
    assert again.returncode == 0 and SECRET not in again.stdout + again.stderr
