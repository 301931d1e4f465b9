from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as some

from hba_ray.rl.dataset import batches, make_prompt
from tests.rl.conftest import Toy


@given(groups=some.lists(some.sampled_from("abc"), min_size=1, max_size=40), size=some.integers(1, 7), seed=some.integers(0, 9))
def test_an_epoch_shows_no_row_twice_and_has_as_many_batches_as_verl_counts(groups: list[str], size: int, seed: int):
    made = batches(tuple(groups), size, seed, epoch=0)
    items = [item for batch in made for item in batch]
    assert len(made) == len(groups) // size
    assert all(len(batch) == size for batch in made)
    assert len(set(items)) == len(items)


@given(seed=some.integers(0, 50))
def test_batches_are_of_one_group_as_far_as_its_rows_go(seed: int):
    groups = ("audio",) * 9 + ("video",) * 6
    made = batches(groups, 4, seed, epoch=1)
    kinds = Counter(tuple(sorted({groups[item] for item in batch})) for batch in made)
    assert kinds == {("audio",): 2, ("video",): 1}  # 1 audio and 2 video rows are left: fewer than a batch


def test_the_order_depends_on_seed_and_epoch_alone():
    groups = tuple("ab" * 10)
    assert batches(groups, 4, 0, 0) == batches(groups, 4, 0, 0)
    assert batches(groups, 4, 0, 0) != batches(groups, 4, 0, 1) != batches(groups, 4, 1, 1)


def test_an_epoch_of_the_whole_atlas_is_cut_in_seconds():
    groups = tuple(("text", "text+audio", "text+audio+video")[row % 3] for row in range(74_451))
    started = time.process_time()
    assert len(batches(groups, 256, 0, 0)) == 290
    assert time.process_time() - started < 5


def test_a_prompt_has_the_wording_of_the_spec(toy: Toy):
    file, line = str(toy.atlas / "train"), toy.line("text_video_audio")
    plain = make_prompt(file, line, toy.settings).messages
    system, user = make_prompt(file, line, replace(toy.settings, layout="released", system="Be brief.")).messages
    assert [turn["role"] for turn in plain] == ["user"] and system["content"][0]["text"] == "Be brief."
    texts = [[part.get("text") for part in turn["content"] if part["type"] == "text"] for turn in (plain[0], user)]
    assert "".join(texts[0]) != "".join(texts[1]), "line breaks around clips are kept"
    assert "".join(texts[1]).replace("\n", "") == "".join(texts[0]).replace("\n", "")
