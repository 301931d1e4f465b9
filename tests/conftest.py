"""What all tests share: one thread a process, no network, profiles of hypothesis, the count of hostile inputs, and where GPU tests run."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.buckets import make_bucket, s3_server
from tests.helpers.hostile import TALLIES, is_nightly, register_profiles, table
from tests.helpers.packages import SMOLLM2, WHISPER_TINY, files_of

register_profiles()
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_gpu, night = bool(shutil.which("nvidia-smi")), is_nightly()
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="this machine has no NVIDIA GPU"))
        if item.get_closest_marker("hostile") and not item.get_closest_marker("timeout"):
            # A hang inside a library hears no alarm: a thread ends the whole process then.
            item.add_marker(pytest.mark.timeout(24 * 3600 if night else 300, method="thread"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Counts a test that bears the mark `hostile` and counts no examples itself as one that was tried."""
    mark = item.get_closest_marker("hostile")
    if mark is None:
        return (yield)
    tally = TALLIES[mark.args[0]]
    tried, faults = tally.tried, len(tally.faults)
    try:
        result = yield
    except Exception as error:
        if len(tally.faults) == faults:
            tally.faults.add(f"{type(error).__name__} in {item.nodeid}")
        tally.tried += tally.tried == tried
        raise
    tally.tried += tally.tried == tried
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if is_nightly():
        terminalreporter.section(f"hostile inputs, SEED={config.getoption('--hypothesis-seed')}")
        for line in table():
            terminalreporter.line(line)


@dataclass(frozen=True)
class Toy:
    """A small toy atlas in both layouts."""

    parquet: Path
    jsonl: Path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    from hba_ray.data.toy import build_toy
    from hba_ray.specs import ToySpec

    folder = tmp_path_factory.mktemp("toy")
    for layout in ("parquet", "jsonl"):
        build_toy(ToySpec(rows=80), folder / layout, layout)
    return Toy(folder / "parquet", folder / "jsonl")


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2.5-Omni that knows no text but bytes and a few words."""
    from hba_ray.models.tiny import build_tiny
    from hba_ray.specs import TinySpec

    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    build_tiny(TinySpec(hidden=64, layers=2, heads=2, vocabulary=512), folder, ["what does the person feel", "sarcasm"], audio_seconds=2.0)
    return folder


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return files_of(request.config, SMOLLM2, "*.gguf")[0]


@pytest.fixture(scope="session")
def whisper_tiny(request: pytest.FixtureRequest) -> Path:
    """The model.bin of Whisper tiny.en."""
    return files_of(request.config, WHISPER_TINY, "model.bin")[0]


@pytest.fixture(scope="session")
def small_backbone(smollm2: Path, whisper_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with real weights."""
    from hba_ray.models.small import build_small

    folder = tmp_path_factory.mktemp("backbone") / "small"
    build_small(smollm2, whisper_tiny, folder)
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """The variables by which a client finds a server of object storage that runs for the time of the tests."""
    for package in ("obstore", "moto"):
        pytest.importorskip(package, reason=f"needs {package}, of the extra dev")
    with s3_server() as variables:
        yield variables


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a storage in a bucket of its own."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return make_bucket(s3["AWS_ENDPOINT_URL"])


@pytest.fixture
def cut_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends supervised training in this process right after the checkpoint of the given step was written."""

    def arm(step: int) -> None:
        from hba_ray.training.hooks import FolderCheckpointStore
        from tests.helpers.sft_jobs import Cut

        save = FolderCheckpointStore.save

        def save_then_die(self: FolderCheckpointStore, folder: Path, metrics: dict[str, float]) -> None:
            save(self, folder, metrics)
            if metrics["step"] == step:
                monkeypatch.undo()
                raise Cut

        monkeypatch.setattr(FolderCheckpointStore, "save", save_then_die)

    return arm
