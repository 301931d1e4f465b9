"""Every clip is decoded; damage, silence and lengths are counted by dataset and modality."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from hba_ray.actions.check_atlas import check_clips
from hba_ray.data.atlas import build_index
from hba_ray.data.tasks import SPLITS
from hba_ray.specs import AtlasSpec, MediaSpec


def test_bad_and_silent_clips_are_counted_and_named(toy, tmp_path: Path):
    folder = tmp_path / "atlas"
    shutil.copytree(toy.jsonl, folder)
    index = build_index(AtlasSpec(root=str(folder)), folder)
    voices, films = (sorted(folder.rglob(f"*toy_{name}-train-*.{kind}")) for name, kind in (("tone", "wav"), ("nod", "mp4")))
    soundfile.write(voices[0], np.zeros(8000), 16_000)
    voices[1].write_bytes(b"")
    films[0].write_bytes(films[0].read_bytes()[:500])
    films[1].unlink()
    told: list[int] = []
    found, unreadable, _ = check_clips(index, SPLITS, MediaSpec(), told.append)
    clips = {(one.dataset, one.modality): one for one in found}
    assert told == sorted(told) and (told[0], told[-1]) == (0, len(index.table))
    sound, film = clips["toy_tone", "audio"], clips["toy_nod", "video"]
    assert (sound.silent, sound.bad, min(sound.seconds)) == (1, {"empty file": 1}, 0.5)
    assert len(sound.seconds) == sound.clips - 1 and 1.0 < max(sound.seconds) < 1.5
    assert sum(film.bad.values()) == 1 and set(film.seconds) == {2.0}
    assert film.places[0].startswith("toy_nod toy_nod-train-")
    assert [place for place in sound.places if place.endswith("the sound is silent")] == sound.places[:1]
    assert unreadable == {"missing file": 1}


def test_black_short_and_long_clips_are_named_but_not_more_than_asked_for(toy, tmp_path: Path):
    folder = tmp_path / "atlas"
    shutil.copytree(toy.jsonl, folder)
    index = build_index(AtlasSpec(root=str(folder)), folder)
    voices, films = (sorted(folder.rglob(f"*toy_{name}-train-*.{kind}")) for name, kind in (("tone", "wav"), ("nod", "mp4")))
    soundfile.write(voices[0], np.full(399, 0.1), 16_000)
    soundfile.write(voices[1], np.full(400, 0.1), 16_000)
    with av.open(str(films[0]), "w") as made:
        stream: Any = made.add_stream("libx264", rate=10)
        stream.height = stream.width = 64
        for _ in range(5):
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 6, np.uint8), format="rgb24")))
        made.mux(stream.encode())
    found, *_ = check_clips(index, SPLITS, MediaSpec(audio_seconds=0.5), places=3)
    clips = {(one.dataset, one.modality): one for one in found}
    sound, film = clips["toy_tone", "audio"], clips["toy_nod", "video"]
    assert film.black == 1 and [place.partition(": ")[2] for place in film.places] == ["the video is black"]
    assert sound.bad == {"audio too short": 1} and sound.longer == sound.clips - 2 > 3
    assert sum("of which the first 0.5 are read" in place for place in sound.places) == 3


def test_an_interrupted_check_goes_on_where_it_was_and_finds_the_same(toy, tmp_path: Path):
    index, kept = build_index(AtlasSpec(root=str(toy.jsonl)), toy.jsonl), tmp_path / "check.jsonl"
    whole = check_clips(index, SPLITS, MediaSpec(audio_seconds=0.5))
    named = Counter(one.name.partition("-")[0] for one in whole.contents)
    assert named.keys() == {"audio", "video"} and min(named.values()) > 30  # the same decoding names what the clips hold

    def interrupted(work: Any, parts: Any) -> Any:
        yield from map(work, parts[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_clips(index, SPLITS, MediaSpec(audio_seconds=0.5), spread=interrupted, kept=kept, part_rows=8)
    left: list[Any] = []
    told: list[int] = []

    def rest(work: Any, parts: Any) -> Any:
        left.extend(parts)
        return map(work, parts)

    assert check_clips(index, SPLITS, MediaSpec(audio_seconds=0.5), told.append, spread=rest, kept=kept, part_rows=8) == whole
    assert told[0] == 24 and sum(map(len, left)) == len(index.table) - 24
    assert not kept.exists()
