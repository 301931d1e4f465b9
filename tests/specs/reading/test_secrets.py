"""Secrets stay references: in the spec, in what is written, and in what is said; only who connects gets them."""

import time
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
            "http://***:***@host",
        ),
        ("${oc.env:MLFLOW_URI}", "${oc.env:MLFLOW_URI}", "http://me:hush@host:5000", "http://***:***@host:5000"),
        ('${oc.env: "MLFLOW_URI", null}', "${oc.env:MLFLOW_URI}", "http://me:hush@host:5000", "http://***:***@host:5000"),
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


@pytest.mark.parametrize(
    "name",
    [
        *("OPENAI_API_KEY", "HF_TOKEN", "aws_secret_access_key", "DB_PASSWORD", "X_CREDENTIALS", "accessToken", "apikey", "APIKeys"),
        *("DB_PWD", "DB_PW", "PASSWORD1", "SECRET2", "PRIVATEKEY", "MYKEY", "AWS_SECRETKEY", "HFTOKENS", "HF_TOKENS", "WANDB_APIKEY2"),
        *("MYPASS", "PASSCODE", "CREDS", "GITHUB_PAT", "MY_BEARER", "JWT", "SESSION_COOKIE", "COOKIES", "LOGIN_PIN", "DSN", "SENTRY_DSN"),
        *("AZURE_STORAGE_CONNECTION_STRING", "KEY_1", "OAUTH", "PASSPHRASE_2"),
    ],
)
def test_names_of_secrets(name: str):
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("JUDGE_KEY_ENV", "KEY_FILE", "TOKEN_FILE", "TOKENIZER_PATH", "MAX_TOKENS", "MAX_NEW_TOKENS", "maxTokens", "MAXTOKENS", "page"),
        *("PWD", "OLDPWD", "HOME", "PATH", "DATA_PATH", "MELD_ROOT", "HBA_STORAGE", "MONKEY", "MONKEY_DIR", "MONKEYS", "KEYBOARD", "_"),
        *(
            "COMPASS",
            "BYPASS",
            "LOW_PASSES",
            "COMPAT",
            "SPIN",
            "PINS_DIR",
            "SACRED",
            "PASSPORT",
            "PATIENTS",
            "AUTHOR",
            "SIGMA",
            "USER",
            "1",
        ),
    ],
)
def test_names_that_say_where_a_secret_is_and_ordinary_names_are_none(name: str):
    assert not looks_secret(name)


ADDRESSES = [
    ("http://hush@h", "http://***@h"),
    ("http://hush:@h", "http://***:@h"),
    ("http://u%3Ahush@h", "http://***@h"),
    ("http://u%3ahush:x@h", "http://***:***@h"),
    ("//u:hush@h", "//***:***@h"),
    ("http://u:hush#x@h", "http://***:***@h"),
    ("http://u:hush?x@h", "http://***:***@h"),
    ("http://u:x/hush@h", "http://***:***@h"),
    ("http://u:x hush@h", "http://***:***@h"),
    ("http://u:x@hush@h", "http://***:***@h"),
    ("HTTP:///u:hush@h", "HTTP:///***:***@h"),
    ("https://h/?apiKey=hush", "https://h/?apiKey=***"),
    ("https://h/?a=1;pwd=hush", "https://h/?a=1;pwd=***"),
    ("https://h/?api%5Fkey='hush'", "https://h/?api%5Fkey=***"),
]


@pytest.mark.parametrize("key", ["tracking.mlflow", "atlas.root", "compute.storage", "model.backbone", "evaluate.judge.base_url"])
@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_a_secret_in_an_address_is_refused_with_its_place_and_hidden(tmp_path: Path, read, key: str, address: str, shown: str):
    assert masked(f"at {address} now") == f"at {shown} now"
    with pytest.raises(SpecError) as refused:
        read(f"{key}={address}")
    assert refused.value.where == "command line" and shown in str(refused.value) and "hush" not in str(refused.value)
    *sections, name = key.split(".")
    value: dict = {name: address}
    for section in reversed(sections):
        value = {section: value}
    (tmp_path / "own.yaml").write_text("extends: spec.yaml\n" + yaml.safe_dump(value))
    with pytest.raises(SpecError) as refused:
        load_spec(tmp_path / "own.yaml")
    assert refused.value.where == f"{tmp_path / 'own.yaml'}:{1 + len(key.split('.'))}" and "hush" not in str(refused.value)


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
@pytest.mark.parametrize("inner", ["x", {}, [1], "${oc.env:A B}"])
def test_a_secret_in_a_key_is_refused_with_its_place_and_hidden(tmp_path: Path, read, address: str, shown: str, inner):
    with pytest.raises(SpecError) as refused:
        read(f"bam.checkpoints={yaml.safe_dump({address: inner}, default_flow_style=True)}")
    assert refused.value.where == "command line" and "hush" not in str(refused.value)
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"bam": {"checkpoints": {address: inner}}, "extends": "spec.yaml"}))
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    assert refused.value.where == f"{file}:3" and f"bam.checkpoints.{shown}" in str(refused.value) and "hush" not in str(refused.value)
    file.write_text(f"{yaml.safe_dump({address: 1})}{yaml.safe_dump({address: 1})}")
    with pytest.raises(SpecError, match="twice") as refused:
        load_spec(file)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_errors_about_files_hide_secrets(tmp_path: Path, read, address: str, shown: str):
    file = tmp_path / "own.yaml"
    for extends in (address, [address], {"a": address}, f"{address}\x07"):
        file.write_text(yaml.safe_dump({"extends": extends}))
        with pytest.raises(SpecError) as refused:
            load_spec(file)
        assert refused.value.where == f"{file}:1" and "hush" not in str(refused.value)
    if address.lower().startswith("http"):
        with pytest.raises(SpecError) as refused:
            load_spec(address)
        assert "hush" not in str(refused.value)


@pytest.mark.parametrize("address", ["http://${oc.env:TOKEN_FILE}@h", "//u:${oc.env:TOKEN_FILE}@h", "http://h/?key=${oc.env:TOKEN_FILE}"])
@pytest.mark.parametrize("value", ["hush", "a/hush", "a hush"])
def test_a_reference_is_secret_by_its_place_in_an_address_whatever_its_name(read, monkeypatch, address: str, value: str):
    monkeypatch.setenv("TOKEN_FILE", value)
    tracking = read(f"tracking.mlflow={address}").tracking
    assert tracking.mlflow == address and value in (tracking.uri or "") and "hush" not in (tracking.shown or "hush")
    assert tracking.mlflow == read(f"tracking.mlflow={address.replace('oc.env:', 'oc.env: ').replace('}', ', x y}')}").tracking.mlflow
    assert "hush" not in without_secrets(f"cannot reach {value}", address)
    for key in ("atlas.root", "evaluate.judge.base_url"):
        with pytest.raises(SpecError) as refused:
            read(f"{key}={address}")
        assert "hush" not in str(refused.value) and "TOKEN_FILE" in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        *("u:x@h", "data/me@x", "data//me@x/y", "sqlite:///me@x.db", "sqlite:////data/me@x.db", "C://x", "C:/me@x", "s3://bucket/a@b"),
        *("http://host:5000/a@b", "http://[::1]:5000/a@b", "http://h/?page=2&max_tokens=5", "http://h/#a", "what?key=x", "// a@b"),
    ],
)
def test_ordinary_texts_are_taken_and_shown_as_they_are(read, text: str):
    assert masked(text) == text and read(f"tracking.experiment={text}").tracking.experiment == text


def test_texts_of_a_mebibyte_are_searched_in_a_moment():
    started = time.process_time()
    for part in ("//a:", "//a", "http:/", "a", "/", ";a=", "@", ":", "//a:@"):
        masked("//x" + part * ((1 << 20) // len(part)))
    assert time.process_time() - started < 10


def test_what_libraries_say_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_PASSWORD", "hush")
    said = without_secrets("API request to http://me:hush@host/api?token=hush failed for hush", "http://me:${oc.env:MLFLOW_PASSWORD}@host")
    assert said == "API request to http://***:***@host/api?token=*** failed for ***"
    assert masked("redis://:hush@host#access_token=hush") == "redis://:***@host#access_token=***"
    assert masked("see http://host:5000/a@b?page=2 and c:d@e") == "see http://host:5000/a@b?page=2 and c:d@e"


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
def test_a_container_of_azure_before_an_account_is_no_secret_and_a_password_there_is(scheme: str, read):
    address = f"{scheme}://runs-1@lab.dfs.core.windows.net/folder"
    assert masked(address) == address and read(f"compute.storage={address}").compute.storage == address
    for hidden in (f"{scheme}://me:hush@lab.dfs.core.windows.net", f"{scheme}://Sv2_xYtoken@lab.net", "s3://runs@lab.net"):
        assert "***" in masked(hidden)
