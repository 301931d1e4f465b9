"""Prompt files: one of ours by its name, a user's by its path, and what is refused with the key, the file and ours as the way out."""

from pathlib import Path

import pytest

from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec
from hba_ray.specs.load import load_prompt_file

OURS = {"standard": "data/reasoning.yaml"}


class Wording(Spec):
    template: str


def load(name: str) -> Wording:
    return load_prompt_file(Wording, name, key="grpo.prompts", built_in=OURS)


def test_ours_comes_by_its_name_and_a_user_s_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("template: Why?\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(str(tmp_path / "mine.yaml")).template == load("~/mine.yaml").template == "Why?"
    assert "{problem}" in load("standard").template


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"template: \xff", "is not a text file in UTF-8"),
        (b"a: \0", "is not YAML"),
        (b"[" * 5000, "is nested deeper than 50 levels"),
        (b"template: 1", "template: "),
        (None, "no such file"),
    ],
)
def test_what_is_refused_is_named_in_one_line_with_the_way_out(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SpecError) as refused:
        load(str(file))
    assert refused.value.where.startswith(f"grpo.prompts={file}") and says in refused.value.what and "\n" not in refused.value.what
    assert refused.value.way_out == "give standard or a YAML file in the form of hba_ray/data/reasoning.yaml"
