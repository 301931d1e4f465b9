"""Every clip is decoded; damage, silence and lengths are counted by dataset and modality."""

import shutil
from pathlib import Path

import numpy as np
import soundfile

from hba_ray.actions.check_atlas import check_clips
from hba_ray.data.atlas import build_index
from hba_ray.data.tasks import SPLITS
from hba_ray.specs import AtlasSpec


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
    found, unreadable = check_clips(index, SPLITS, told.append)
    clips = {(one.dataset, one.modality): one for one in found}
    assert told == list(range(1, len(index.table) + 1))
    sound, film = clips["toy_tone", "audio"], clips["toy_nod", "video"]
    assert (sound.silent, sound.bad, min(sound.seconds)) == (1, {"empty file": 1}, 0.5)
    assert len(sound.seconds) == sound.clips - 1 and 1.0 < max(sound.seconds) < 1.5
    assert sum(film.bad.values()) == 1 and set(film.seconds) == {2.0}
    assert film.places[0].startswith("toy_nod toy_nod-train-")
    assert unreadable == {"missing file": 1}
