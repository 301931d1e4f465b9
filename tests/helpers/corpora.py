"""Writes small corpora as their publishers lay them out, in texts of our own, with the quirks that the real ones have.

Clips are the same few tiny files everywhere.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.helpers.films import film

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xb0\xff"


@cache
def tiny_film(sound: bool = True) -> bytes:
    """An MP4 of one second."""
    with tempfile.TemporaryDirectory() as folder:
        return film(Path(folder) / "a.mp4", "mpeg4", 10, sound=sound)


@cache
def tiny_sound() -> bytes:
    """A WAV of a fifth of a second."""
    wave = io.BytesIO()
    soundfile.write(wave, 0.1 * np.sin(np.arange(3200) / 5), 16_000, format="WAV", subtype="PCM_16")
    return wave.getvalue()


@cache
def long_film() -> bytes:
    """An AVI of six seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return film(Path(folder) / "a.avi", "mpeg4", 60)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def put_table(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, delimiter: str = ",", bom: bool = False, end: str = "\n"
) -> Path:
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter=delimiter, lineterminator=end)
    writer.writerow(header)
    writer.writerows(rows)
    return put(path, ("\ufeff" if bom else "") + lines.getvalue())


def put_lines(path: Path, values: Iterable[Any]) -> Path:
    return put(path, "".join(json.dumps(value) + "\n" for value in values))


MOSEI_VIDEOS = {"train": ("-a_b", "12345"), "validation": ("val_1",), "test": ("Zz9",)}
"""Videos of both layouts; the first has ten clips and more, so that numbers and text sort differently."""
MOSEI_SCORES = (-3, -2, -1.6666666, -1, -1 / 3, 0, 1 / 3, 1, 2, 2.3333333, 3)


def mosei_clips() -> list[tuple[str, str, str, float, dict[str, float]]]:
    """(split, video, clip, sentiment, emotions) of 14 clips."""
    found = []
    for split, videos in MOSEI_VIDEOS.items():
        for video in videos:
            for number, score in enumerate(MOSEI_SCORES if video == "-a_b" else MOSEI_SCORES[2:3]):
                emotions = {"happy": number / 3, "fear": 1.0} if video == "-a_b" else {"sad": 2.0}
                found.append((split, video, str(number), score, emotions))
    return found


def write_mosei(folder: Path, *, csd: bool = True) -> Path:
    """MMSA's layout; with `csd`, CMU's labels beside it."""
    modes = {"train": "train", "validation": "valid", "test": "test"}
    rows = [
        (video, clip, f"Words of {video} {clip}.", f"{score:.7g}", "x", modes[split], "", "", "")
        for split, video, clip, score, _ in mosei_clips()
    ]
    put_table(
        folder / "label.csv",
        ("video_id", "clip_id", "text", "label", "annotation", "mode", "label_T", "label_A", "label_V"),
        rows,
        bom=True,
    )
    for _, video, clip, *_ in mosei_clips():
        put(folder / "Raw" / video / f"{clip}.mp4", tiny_film())
    if csd:
        write_csd(folder / "CMU_MOSEI_Labels.csd")
    return folder


def write_csd(path: Path) -> Path:
    """Labels as the SDK keeps them: rows in the order in which numbers of clips sort as text."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("All Labels/data")
        for video in dict.fromkeys(video for _, video, *_ in mosei_clips()):
            its = sorted((one for one in mosei_clips() if one[1] == video), key=lambda one: one[2])
            columns = ("happy", "sad", "anger", "surprise", "disgust", "fear")
            values = [[score, *(emotions.get(name, 0.0) for name in columns)] for *_, score, emotions in its]
            held = data.create_group(video)
            held["features"] = np.array(values, dtype=np.float32)
            held["intervals"] = np.array([mosei_times(place) for place in range(len(its))], dtype=np.float32)
        stray = data.create_group("in_no_fold")
        stray["features"], stray["intervals"] = np.zeros((2, 7), np.float32), np.array([[0, 1], [1, 2]], np.float32)
    return path


def mosei_times(place: int) -> tuple[float, float]:
    """Seconds of the segment in a row; the first begins before the video."""
    return place * 3.25 - 0.1, place * 3.25 + 4


def write_mosei_of_cmu(folder: Path, *, csd: bool = True) -> Path:
    """CMU's layout: labels, transcripts with times, folds."""
    if csd:
        write_csd(folder / "CMU_MOSEI_Labels.csd")
    for video in dict.fromkeys(video for _, video, *_ in mosei_clips()):
        its = sorted(clip for _, owner, clip, *_ in mosei_clips() if owner == video)
        lines = {
            clip: "___".join((video, clip, *map(str, mosei_times(place)), f"Words of {video} {clip}.")) for place, clip in enumerate(its)
        }
        put(folder / "Transcript" / "Combined" / f"{video}.txt", "".join(lines[clip] + "\n" for clip in sorted(its, key=int)))
    lists = [
        f"standard_{fold}_fold = {list(MOSEI_VIDEOS[split])}"
        for fold, split in (("train", "train"), ("valid", "validation"), ("test", "test"))
    ]
    put(folder / "cmu_mosei_std_folds.py", '"""Folds."""\n' + "\n".join(lists) + "\n")
    return folder


def write_tess(
    folder: Path, words: Sequence[str] = ("bath", "cool", "dime", "east", "fall", "gate", "hush", "iron", "jump", "keen")
) -> Path:
    """The usual re-upload: folders of many spellings, one file without the F, and the whole tree twice."""
    names = {
        "angry": "angry",
        "disgust": "disgust",
        "fear": "Fear",
        "happy": "happy",
        "neutral": "neutral",
        "ps": "Pleasant_surprise",
        "sad": "Sad",
    }
    for speaker in ("OAF", "YAF"):
        for code, folder_name in names.items():
            for word in words:
                said_by = "OA" if (speaker, word, code) == ("OAF", words[0], "neutral") else speaker
                for base in ("", "TESS Toronto emotional speech set data/"):
                    put(folder / f"{base}{speaker}_{folder_name}" / f"{said_by}_{word}_{code}.wav", tiny_sound())
    put(folder / "__MACOSX" / "OAF_angry" / "._OAF_bath_angry.wav", APPLE_DOUBLE)
    put(folder / "OAF_angry" / "._OAF_bath_angry.wav", APPLE_DOUBLE)
    return folder


def write_chsims(folder: Path) -> Path:
    """Clips named with other numbers of zeros than in the table; a vote that contradicts the score; a video in two splits."""
    header = ("video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode")
    scores = ("-1.0", "-0.7", "-0.6", "-0.1", "0.0", "0.1", "0.2", "0.7", "0.8", "1.0")
    rows = [
        ("video_0001", f"{place:04d}", f"第{place}句，很好。", score, "", "", "", "Positive", "train") for place, score in enumerate(scores)
    ]
    rows += [
        ("video_0001", "0013", "再见。", "-0.2", "", "", "", "Positive", "valid"),
        ("aqgy3_0001", "00000", "好！", "0.4", "", "", "", "Negative", "test"),
    ]
    put_table(folder / "meta.csv", header, rows, bom=True, end="\r\n")
    for video, clip, *_ in rows:
        put(folder / "Raw" / video / f"{clip.zfill(5) if clip == '0003' else clip}.mp4", tiny_film())
    return folder


def siq2_row(video: str, number: int, qid: str, *, split: str = "train") -> dict[str, Any]:
    choices = [f"Choice {place} of {video}." for place in range(4)]
    return {
        "qid": qid,
        "q": f"Why does person {number} of {split} wait",
        "vid_name": video,
        "ts": "0.00-60.06",
        "ans_corr": choices[number % 4],
        "answer_idx": number % 4,
        "idx_types": ["matched", "matched", "rewrite", "corr"],
        **{f"a{place}": text for place, text in enumerate(choices)},
    }


CAPTIONS = """WEBVTT
Kind: captions

NOTE made by a machine

STYLE
::cue { color: red }

00:00:00.000 --> 00:00:02.000 align:start
Well<00:00:01.000><c> hello</c>

00:00:02.000 --> 00:00:03.000
Well hello
you &amp; me
"""


def write_siq2(folder: Path) -> Path:
    """A qid that stands for two questions, a clip that is gone, captions that roll, a split file that contradicts the rows."""
    train = [siq2_row("-x_1", 0, "-x_1_q0"), siq2_row("-x_1", 1, "-x_1_q1"), siq2_row("yY2", 2, "yY2_q0"), siq2_row("yY2", 3, "yY2_q0")]
    train.append(siq2_row("gone", 4, "gone_Q4_0"))
    put_lines(folder / "qa" / "qa_train.json", train)
    put_lines(folder / "qa" / "qa_val.json", [siq2_row("v_al", 5, "v_al_q0", split="val"), siq2_row("gone_too", 6, "g_q0", split="val")])
    put_lines(folder / "qa" / "qa_test.json", [{"qid": "t", "q": "Without an answer?", "vid_name": "yY2"}])
    put(folder / "original_split.json", json.dumps({"subsets": {"youtubeclips": {"train": ["v_al"], "test": ["-x_1"]}}}))
    for video in ("-x_1", "yY2", "v_al"):
        put(folder / "video" / f"{video}.mp4", tiny_film(sound=video != "v_al"))
    put(folder / "audio" / "wav" / "yY2.wav", tiny_sound())
    put(folder / "transcript" / "-x_1.vtt", CAPTIONS)
    return folder


INTENTQA_HEADER = (
    *("video_id", "frame_count", "width", "height", "question", "answer", "qid", "type"),
    *("a0", "a1", "a2", "a3", "a4", "action", "lemma", "lemma_id"),
)


def intentqa_row(video: str, qid: int, answer: int) -> list[Any]:
    choices = [f"to choose {place}" for place in range(5)]
    return [video, 300, 640, 360, f"why did the boy {qid} wave at the start", answer, qid, "CW", *choices, "wave", "wave", 0]


def write_intentqa(folder: Path) -> Path:
    """The same qid and question with other videos; one video nested as in NExT-QA, one silent."""
    files = {
        "train": [intentqa_row("2909445186", 0, 1), intentqa_row("3837320324", 0, 2), intentqa_row("3837320324", 1, 0)],
        "val": [intentqa_row("10000000001", 0, 4)],
        "test": [intentqa_row("0042", 7, 3)],
    }
    for name, rows in files.items():
        put_table(folder / f"{name}.csv", INTENTQA_HEADER, rows, end="\r\n")
    for video in ("3837320324", "10000000001", "0042"):
        put(folder / "Videos" / f"{video}.mp4", tiny_film(sound=video != "0042"))
    put(folder / "Videos" / "0101" / "2909445186.mp4", tiny_film())
    put(folder / "map_vid_vidorID.json", json.dumps({"2909445186": "0101/2909445186"}))
    return folder


def write_mimeqa(folder: Path, *, test_files: bool = True) -> Path:
    """Questions and answers in two tables that belong together by row; a clip that is named .webm."""
    asked, answers = [], []
    for number in range(10):
        file = f"{number // 2 + 1:04d}.{'webm' if number < 2 else 'mp4'}"
        asked.append(
            (
                file,
                f"({number}.0, {number + 2}.5)" if number % 2 else "",
                "Intention" if number % 2 else "Working Memory",
                f"What is act {number}?",
            )
        )
        answers.append((file, f"Mime {number} lifts a box."))
    put_table(folder / "data" / "annotation_final.csv", ("file", "timestamp", "question type", "question"), asked)
    put_table(folder / "data" / "annotation_final_human.csv", ("file", "reference_answer"), answers)
    for video in range(1, 6):
        put(folder / "mp4" / f"{video:04d}.mp4", tiny_film())
    if test_files:
        put(folder / "data" / "test_files.json", json.dumps(["0001.webm"]))
    return folder


def write_urfunny(folder: Path) -> Path:
    """Ids of version 1 in the labels, sentences as text and as lists, arrays beside them, a pickle of Python 2."""
    folds = {"train": [11, 12, 13], "dev": [21], "test": [31]}
    ids = [sample for its in folds.values() for sample in its]
    texts: dict[Any, Any] = {
        sample: {
            "punchline_sentence": f"And that was sheep number {sample}." if sample % 2 else [f"Sheep {sample}", "jumped."],
            "context_sentences": ["I counted sheep.", f"Up to {sample}."] if sample != 13 else [],
            "punchline_features": np.ones((2, 4), np.float32),
        }
        for sample in ids
    }
    labels = {sample: sample % 2 for sample in (*ids, 99_001, 99_002)}
    put(folder / "data_folds.pkl", pickle.dumps(folds, protocol=2))
    put(folder / "language_sdk.pkl", pickle.dumps(texts, protocol=4))
    put(folder / "humor_label_sdk.pkl", pickle.dumps(labels))
    for sample in ids:
        put(folder / "urfunny2_videos" / f"{sample}.mp4", tiny_film())
    return folder


DAIC_SESSIONS: Mapping[str, tuple[str, int, int]] = {
    "300": ("train", 3, 0),
    "409": ("train", 10, 0),
    "319": ("train", 14, 1),
    "373": ("validation", 9, 0),
    "451": ("test", 11, 1),
    "487": ("test", 2, 0),
}
"""Session -> split, score, binary column."""


def write_daicwoz(folder: Path, *, said: Callable[[str], str] = lambda session: f"my secret is {session}") -> Path:
    """One session where score and column disagree, one without an item, one that is interrupted, one without the agent."""
    train = ["Participant_ID", "PHQ8_Binary ", " PHQ8_Score", "Gender", "PHQ8_Sleep"]
    for split, file in (("train", "train_split_Depression_AVEC2017.csv"), ("validation", "dev_split_Depression_AVEC2017.csv")):
        its = [(name, binary, score, 0, "" if name == "319" else 1) for name, (its, score, binary) in DAIC_SESSIONS.items() if its == split]
        put_table(folder / file, train, its)
    tested = [(name, binary, score, 1) for name, (its, score, binary) in DAIC_SESSIONS.items() if its == "test"]
    put_table(folder / "full_test_split.csv", ("Participant_ID", "PHQ_Binary", "PHQ_Score", "Gender"), tested, bom=True)
    put_table(folder / "test_split_Depression_AVEC2017.csv", ("participant_ID", "Gender"), [(name, 1) for name, *_ in tested])
    for session in DAIC_SESSIONS:
        lines: list[tuple[Any, ...]] = [(1, 2, "Participant", "is this on"), (3, 4, "Ellie", "how_doingV (so how are you doing today)")]
        lines += [
            (5, 6, "Participant", said(session)),
            (7, 8, "Participant", "<sync>"),
            (9, 10, "Participant", "<laughter> [synch] no"),
            (10, 11, "Participant", ""),
        ]
        lines += [(400, 401, "Participant", "somebody comes in"), (500, 501, "Ellie", "bye")]
        kept = [line for line in lines if line[2] != "Ellie" or session != "451"]
        place = folder / f"{session}_P"
        put_table(place / f"{session}_TRANSCRIPT.csv", ("start_time", "stop_time", "speaker", "value"), kept, delimiter="\t")
        put(place / f"._{session}_TRANSCRIPT.csv", APPLE_DOUBLE)
        put(place / f"{session}_AUDIO.wav", tiny_sound())
    return folder


def mmpsy_entries(count: int = 20, *, said: str = "my secret") -> list[dict[str, Any]]:
    """Ten answers and more, so that numbers and text sort differently."""
    return [
        {
            "user_id": f"user_{number}",
            "phq-label": {"score": number, "level": "Normal"},
            "gad-label": {"score": number // 2 + 3, "level": "Normal"},
            "audios": {f"wav_{place}.wav": f"{said} {number}\nnumber {place}" for place in (1, 10, 2)},
        }
        for number in range(1, count + 1)
    ]


def write_mmpsy(folder: Path) -> Path:
    put(folder / "data" / "wav_select.json", json.dumps(mmpsy_entries(), ensure_ascii=False))
    return folder


def write_ptsd(folder: Path) -> Path:
    """Titles with quotes and signs that become alike when simplified, folders of many spellings, one clip in two splits."""
    base = folder / "PTSD_Project_train_validation_test_split"
    for place in (
        "train/PTSD/war/My 'story' \U0001f600.mp4",
        'train/PTSD/war/My "story" \U0001f600.mp4',
        "train/No PTSD/talk/A walk.mp4",
        "val/no_ptsd/b.mp4",
        "val/ptsd/flood/c.mp4",
        "test/NORMAL/A walk.mp4",
        "test/Ptsd /war/d.mp4",
    ):
        put(base / place, tiny_film() + place.encode())
    put(base / "test" / "NORMAL" / "same.mp4", (base / "train" / "No PTSD" / "talk" / "A walk.mp4").read_bytes())
    put(base / "test" / "NORMAL" / "._same.mp4", APPLE_DOUBLE)
    return folder


def write_iemocap(folder: Path, *, films: bool = False) -> Path:
    """Five sessions: lines of raters, of no utterance and of no label, side files, a file in Latin-1, folders beside the evaluations."""
    codes = ("neu", "ang", "exc", "hap", "sad", "fru", "xxx", "sur")
    for session in range(1, 6):
        place, dialog = folder / "IEMOCAP_full_release" / f"Session{session}", f"Ses0{session}F_impro05a"
        rated, spoken = (
            ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""],
            ["M: Yeah.", f"{dialog}_FXX0 [001.0000-002.0000]: Hm."],
        )
        for number, code in enumerate(codes):
            name = f"{dialog}_{'FM'[number % 2]}{number:03d}"
            rated += [f"[{number}.2901 - {number + 1}.2357]\t{name}\t{code}\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()", ""]
            spoken.append(f"{name} [{number:03d}.2901-{number + 1:03d}.2357]: Caf\u00e9 number {number}.")
            put(place / "sentences" / "wav" / dialog / f"{name}.wav", tiny_sound())
        if films:
            put(place / "dialog" / "avi" / "DivX" / f"{dialog}.avi", long_film())
        put(place / "dialog" / "EmoEvaluation" / f"{dialog}.txt", "\n".join(rated))
        put(place / "dialog" / "EmoEvaluation" / f"._{dialog}.txt", APPLE_DOUBLE)
        put(place / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialog}_e1.txt", "not read")
        put(place / "dialog" / "transcriptions" / f"{dialog}.txt", "\n".join(spoken).encode("latin-1"))
    return folder


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "mosei": write_mosei,
    "tess": write_tess,
    "chsimsv2": write_chsims,
    "siq2": write_siq2,
    "intentqa": write_intentqa,
    "mimeqa": write_mimeqa,
    "urfunny": write_urfunny,
    "daicwoz": write_daicwoz,
    "mmpsy": write_mmpsy,
    "ptsd_in_the_wild": write_ptsd,
    "iemocap": write_iemocap,
}
"""Source -> what writes its corpus into a folder."""
