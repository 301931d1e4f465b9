"""Secrets stay references: in the spec, in what is written, and in what is said; only who connects gets them."""

from pathlib import Path

import pytest
import yaml

from hba_ray.errors import EnvironmentMissing, SpecError
from hba_ray.specs import TrackingSpec, load_spec
from hba_ray.specs.load import as_yaml
from hba_ray.specs.reading.secrets import looks_secret, masked, without_secrets

MINIMAL = "name: x\natlas:\n  source: toy\n"
SECRETS = {"OPENAI_API_KEY": "sk-hush", "MLFLOW_PASSWORD": "hush", "MLFLOW_URI": "http://me:hush@host:5000", "PLAIN": "http://host:5000"}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "spec.yaml").write_text(MINIMAL)
    return lambda *words: load_spec(tmp_path / "spec.yaml", words)


@pytest.mark.parametrize(
    ("stated", "kept", "uri", "shown"),
    [
        (
            "http://me:${oc.env:MLFLOW_PASSWORD}@host",
            "http://me:${oc.env:MLFLOW_PASSWORD}@host",
            "http://me:hush@host",
            "http://me:***@host",
        ),
        ("${oc.env:MLFLOW_URI}", "${oc.env:MLFLOW_URI}", "http://me:hush@host:5000", "http://me:***@host:5000"),
        ('${oc.env: "MLFLOW_URI", null}', "${oc.env:MLFLOW_URI}", "http://me:hush@host:5000", "http://me:***@host:5000"),
        ("https://host/${oc.env:OPENAI_API_KEY}/", "https://host/${oc.env:OPENAI_API_KEY}/", "https://host/sk-hush/", "https://host/***/"),
        ("${oc.env:PLAIN}", "http://host:5000", "http://host:5000", "http://host:5000"),
        ("${oc.env:NOT_SET,null}", None, None, None),
        ("${oc.env:NOT_SET,http://host}", "http://host", "http://host", "http://host"),
    ],
)
def test_a_secret_stays_a_reference_until_it_is_used(read, tmp_path: Path, stated: str, kept: str, uri: str, shown: str):
    spec = read(f"tracking.mlflow={stated}")
    assert (spec.tracking.mlflow, spec.tracking.uri, spec.tracking.shown) == (kept, uri, shown)
    text = as_yaml(spec)
    assert yaml.safe_load(text)["tracking"]["mlflow"] == kept and "hush" not in text + repr(spec)
    (tmp_path / "resolved.yaml").write_text(text)
    assert load_spec(tmp_path / "resolved.yaml") == spec


def test_a_spec_that_refers_to_a_secret_is_read_also_where_there_is_none(read, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_PASSWORD")
    tracking = read("tracking.mlflow=http://me:${oc.env:MLFLOW_PASSWORD}@host").tracking
    with pytest.raises(EnvironmentMissing, match=r"tracking\.mlflow: the environment has no variable MLFLOW_PASSWORD"):
        _ = tracking.uri


@pytest.mark.parametrize(
    "word",
    [
        "atlas.root=${oc.env:OPENAI_API_KEY}",
        "atlas.root=${oc.env:OPENAI_API_KEY,x}",
        "atlas.root=${oc.env:MLFLOW_URI}",
        "evaluate.judge.key_env=${oc.env:OPENAI_API_KEY}",
        "evaluate.judge.base_url=http://me:hush@host/v1",
        "evaluate.judge.base_url=${oc.env:MLFLOW_URI}",
        "tracking.mlflow=http://me:hush@host",
        "tracking.mlflow=postgresql://me:hush@host/db",
        "tracking.mlflow=http://host/?access_token=hush",
        "tracking.mlflow=${oc.env:NOT_SET,${oc.env:MLFLOW_PASSWORD}}",
        "tracking.mlfow=http://me:hush@host",
        "compute.storage=${tracking.mlflow}",
        "extends=${oc.env:OPENAI_API_KEY}",
        "grpo.verl.x=[1, 'http://me:hush@host']",
        "tracking.mlflow=[http://me:hush@host",
        "tracking.mlflow[0]=http://me:hush@host",
        "-http://me:hush@host",
        "sft.lr={a: http://me:hush@host",
    ],
)
def test_a_secret_where_none_is_taken_is_refused_and_not_repeated(read, word: str):
    with pytest.raises(SpecError) as refused:
        read("tracking.mlflow=http://me:${oc.env:MLFLOW_PASSWORD}@host", word)
    assert "hush" not in str(refused.value) and refused.value.where == "command line"


def test_a_password_in_a_section_made_by_a_program_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"give it as \$\{oc\.env:NAME\}"):
        TrackingSpec(mlflow="http://me:hush@host")


def test_names_that_say_where_a_secret_is_are_none():
    assert all(
        map(looks_secret, ("OPENAI_API_KEY", "HF_TOKEN", "aws_secret_access_key", "DB_PASSWORD", "X_CREDENTIALS", "accessToken", "apikey"))
    )
    assert not any(map(looks_secret, ("JUDGE_KEY_ENV", "KEY_FILE", "TOKENIZER_PATH", "MAX_TOKENS", "PWD", "HOME", "MONKEY", "page")))


def test_what_libraries_say_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_PASSWORD", "hush")
    said = without_secrets("API request to http://me:hush@host/api?token=hush failed for hush", "http://me:${oc.env:MLFLOW_PASSWORD}@host")
    assert said == "API request to http://me:***@host/api?token=*** failed for ***"
    assert masked("redis://:hush@host#access_token=hush") == "redis://:***@host#access_token=***"
    assert masked("see http://host:5000/a@b?page=2 and c:d@e") == "see http://host:5000/a@b?page=2 and c:d@e"
