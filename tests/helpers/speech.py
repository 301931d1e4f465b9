"""Speech that espeak-ng speaks, and how much of it is understood."""

from __future__ import annotations

import ctypes
import re
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

SENTENCES = (
    "The weather is lovely today, so we walked along the river.",
    "She laughed when her brother dropped the cake.",
    "Please call the doctor and ask about the results.",
    "I never thought that the train would leave on time.",
    "They were angry because nobody told them the truth.",
    "My grandmother keeps her letters in a wooden box.",
    "He sounded tired, but he said that everything was fine.",
    "The children were surprised by the small black dog.",
    "We should meet again next week and finish the work.",
    "Nothing makes me happier than a quiet morning with coffee.",
)
RATE = 16_000
_SYNCHRONOUS, _UTF8 = 2, 1
_RECEIVE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """Speaks American English by the library of espeak-ng.

    Args:
        library: of espeak-ng.
        data: the folder that holds its `espeak-ng-data`, or that folder itself.
    """

    def __init__(self, library: Path, data: Path):
        self._library = ctypes.CDLL(str(library))
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), 0)
        assert self._rate > 0, f"espeak-ng does not find its data in {data}"
        self._library.espeak_SetVoiceByName(b"en-us")

    def say(self, text: str, file: Path) -> Path:
        """Writes a text as sound of 16 kHz."""
        parts: list[np.ndarray] = []

        def receive(samples, count: int, events) -> int:
            if samples and count > 0:
                parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        callback, spoken = _RECEIVE(receive), text.encode()
        self._library.espeak_SetSynthCallback(callback)
        self._library.espeak_Synth(spoken, len(spoken) + 1, 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        shared = gcd(RATE, self._rate)
        samples_T = resample_poly(np.concatenate(parts) / 32768, RATE // shared, self._rate // shared)
        soundfile.write(file, samples_T, RATE)
        return file


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Words inserted, deleted or changed, and words said; case and punctuation do not count.

    >>> word_errors("She said: no!", "she says no no")
    (2, 3)
    """
    truth, other = (re.sub(r"[^a-z' ]", "", text.lower()).split() for text in (said, heard))
    distance = list(range(len(other) + 1))
    for row, word in enumerate(truth, 1):
        diagonal, distance[0] = distance[0], row
        for column, found in enumerate(other, 1):
            best = min(distance[column] + 1, distance[column - 1] + 1, diagonal + (word != found))
            diagonal, distance[column] = distance[column], best
    return distance[-1], len(truth)
