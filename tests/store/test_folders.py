"""Results are finished or not, never half; hostile folders end in one error with a way out."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.errors import DataError, EnvironmentMissing, SpecError
from hba_ray.store.folders import (
    REPORT,
    RESOLVED,
    Storage,
    append_line,
    claimed,
    clear,
    done,
    file_of_run,
    finish,
    keep_lines,
    note,
    write_text,
)


def test_a_step_is_done_once_it_says_so(tmp_path: Path):
    assert done(tmp_path / "never begun") is None
    assert done(tmp_path) is None
    finish(tmp_path, {"rows": 3})
    assert done(tmp_path) == {"rows": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["done.json"]


OWN_KEYS = {"seal", "step"}
"""Keys of a mark that no step may write itself."""


@given(
    facts=st.dictionaries(
        st.text(max_size=5).filter(lambda key: key not in OWN_KEYS),
        st.integers() | st.text(max_size=5) | st.lists(st.floats(allow_nan=False)),
        max_size=4,
    )
)
def test_a_mark_with_another_value_than_was_written_is_damaged(tmp_path_factory: pytest.TempPathFactory, facts: dict):
    folder = tmp_path_factory.mktemp("step")
    finish(folder, {**facts, "rows": 30})
    assert done(folder) == {**facts, "rows": 30}
    mark = folder / "done.json"
    mark.write_text(mark.read_text().replace('"rows": 30', '"rows": 31'))
    with pytest.raises(DataError, match="not those that were written"):
        done(folder)


def test_the_folder_of_one_step_is_not_taken_for_that_of_another(tmp_path: Path):
    for name in ("sft-one", "sft-two"):
        (tmp_path / name).mkdir()
        finish(tmp_path / name, {"rows": 3})
    (tmp_path / "sft-one").rename(tmp_path / "kept")
    (tmp_path / "sft-two").rename(tmp_path / "sft-one")
    with pytest.raises(DataError, match=r"sft-one/done\.json: is that of another step: sft-two\n"):
        done(tmp_path / "sft-one")
    (tmp_path / "moved").mkdir()
    (tmp_path / "kept").rename(tmp_path / "moved" / "sft-one")
    assert done(tmp_path / "moved" / "sft-one") == {"rows": 3}, "a storage may be moved"


def test_a_mark_that_is_a_pipe_is_damaged_and_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "done.json")
    with pytest.raises(DataError, match="is damaged: it is no file"):
        done(tmp_path)


def test_clearing_a_step_leaves_its_lock_alone(tmp_path: Path):
    with claimed(tmp_path):
        finish(tmp_path, {"rows": 3})
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_bytes(b"1")
        (tmp_path / "elsewhere").symlink_to(Path(__file__).parent)
        clear(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [".lock"] and Path(__file__).exists()
    clear(tmp_path / "never begun")


@given(text=st.one_of(st.binary(max_size=60), st.sampled_from([b"", b"null", b"[]", b'{"rows": 3', b"7", b"[" * 100_000])))
def test_a_damaged_mark_is_an_error_and_never_taken_for_done(tmp_path_factory: pytest.TempPathFactory, text: bytes):
    folder = tmp_path_factory.mktemp("step")
    (folder / "done.json").write_bytes(text)
    try:
        facts = done(folder)
    except DataError as error:
        assert error.where == str(folder / "done.json")
        assert "do the step again" in str(error)
    else:
        assert isinstance(facts, dict)


def test_a_mark_that_is_a_folder_is_damaged_too(tmp_path: Path):
    (tmp_path / "done.json").mkdir()
    with pytest.raises(DataError, match="is damaged"):
        done(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "table.md"
    write_text(file, "before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "after")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_the_ledger_gets_a_line_for_each_event(tmp_path: Path):
    note(tmp_path, event="started", step="sft")
    note(tmp_path, event="done", step="sft")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["event"], line["pid"]) for line in lines] == [("started", os.getpid()), ("done", os.getpid())]


def test_lines_are_taken_out_of_a_file_and_a_torn_one_with_them(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_line(file, {"step": step})
    with file.open("a") as torn:
        torn.write('{"step": 4, "lo')
    assert keep_lines(file, lambda line: line["step"] <= 2) == [{"step": 1}, {"step": 2}]
    append_line(file, {"step": 3})
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_missing_file_of_lines_stays_missing(tmp_path: Path):
    assert keep_lines(tmp_path / "none.jsonl", lambda line: True) == [] and not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(("name", "what"), [(RESOLVED, "is no run"), (REPORT, "is no finished run")])
def test_a_folder_that_is_no_run_is_refused_with_the_file_that_it_lacks(tmp_path: Path, name: str, what: str):
    with pytest.raises(SpecError, match=f"{what}: it holds no {name}"):
        file_of_run(tmp_path, name)
    (tmp_path / name).touch()
    assert file_of_run(tmp_path, name) == tmp_path / name


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path):
    (tmp_path / "runs").write_text("not a folder")
    for folder in ("runs", "runs/deeper"):
        with pytest.raises(EnvironmentMissing, match=r"compute\.storage=FOLDER") as refused:
            Storage(tmp_path / folder)
        assert refused.value.where == str(tmp_path / folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere but here
        folder = Path("/proc/runs")
    with pytest.raises(EnvironmentMissing, match="cannot be written to"):
        Storage(folder)


def hold(folder: str, held: "multiprocessing.synchronize.Event") -> None:
    with claimed(Path(folder)):
        held.set()
        time.sleep(600)


@pytest.mark.chaos
def test_a_claim_keeps_others_out_until_its_holder_dies(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold, args=(str(tmp_path), held), daemon=True)
    holder.start()
    try:
        assert held.wait(120)
        with pytest.raises(EnvironmentMissing, match="another process works on this"), claimed(tmp_path):
            pytest.fail("two processes hold one claim")
    finally:
        holder.kill()
        holder.join()
    with claimed(tmp_path, wait_seconds=60):
        assert (tmp_path / ".lock").exists()


FULL_DISK = """
import sys
from pathlib import Path
from hba_ray.errors import EnvironmentMissing
from hba_ray.store.folders import Storage, claimed, copy_folder, done, finish
step, large = Storage(sys.argv[1]).step("sft", "0" * 12), Path(sys.argv[2])
(large / "weights").write_bytes(bytes(4 << 20))
for write in (lambda: (step / "weights").write_bytes(bytes(4 << 20)), lambda: copy_folder(large, step)):
    try:
        with claimed(step):
            write()
            finish(step, {})
    except EnvironmentMissing as error:
        print(error)
    assert done(step) is None
    (step / "weights").unlink()
with claimed(step):
    finish(step, {"rows": 1})
assert done(step) == {"rows": 1}
"""


def test_a_limit_on_the_size_of_files_is_named_with_the_way_out(tmp_path: Path):
    with pytest.raises(EnvironmentMissing, match=r"compute\.storage=FOLDER"), claimed(tmp_path / "step"):
        raise OSError(errno.EFBIG, "File too large", "predictions.parquet")


def test_a_full_disk_is_named_and_leaves_nothing_that_looks_finished(tmp_path: Path):
    script = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1" "$4"'
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(small), sys.executable, FULL_DISK, str(large)]
    if os.geteuid() or subprocess.run([*command[:4], 'mount -t tmpfs -o size=1m none "$1"', "sh", str(small)], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("No space left on device") == ran.stdout.count("compute.storage=FOLDER") == 2
