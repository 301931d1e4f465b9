"""Sentence embeddings for the similarity reward: one encoder per process, kept vectors, no network.

Legend of shapes: N texts, D width of an embedding (384 for all-MiniLM-L6-v2).
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np

from hba_ray.errors import EnvironmentMissing
from hba_ray.specs.grpo import EncoderSpec

KEPT_TEXTS = 20_000
"""Embeddings kept, those used last; about 30 MB."""
LONGEST_TEXT = 8192
"""Characters of a text that are looked at; the encoder itself reads 256 tokens."""
DECIMALS = 6
"""Of a similarity. Embeddings differ in the seventh with the texts that they are batched with, and responses
that say the same must earn the same."""
_BATCH = 16
"""Texts of about one length that are encoded together; in larger batches short ones wait for long ones."""

_loading = Lock()


class Encoder:
    """A sentence-transformers model on the CPU that encodes each text once. Threads may share it.

    Args:
        folder: a sentence-transformers model.
    """

    def __init__(self, folder: Path):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._using = Lock()

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The cosine of each pair's embeddings, in -1..1; texts that are new are encoded in one batch.

        Equal texts have 1 and are not encoded.
        """
        other = [pair for pair in pairs if pair[0] != pair[1]]
        first_ND, second_ND = np.split(self.embed([text for pair in zip(*other, strict=True) for text in pair]), 2)
        cosines = iter(np.clip(np.einsum("nd,nd->n", first_ND, second_ND), -1, 1))
        return [1.0 if first == second else round(float(next(cosines)), DECIMALS) for first, second in pairs]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1, shape (N, D), float32."""
        cut = [text[:LONGEST_TEXT].encode(errors="replace").decode() for text in texts]  # no lone surrogates
        with self._using:
            new = [text for text in dict.fromkeys(cut) if text not in self._kept]
            if new:
                vectors = self._model.encode(new, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
                self._kept.update(zip(new, np.asarray(vectors, dtype=np.float32), strict=True))
            for text in cut:
                self._kept.move_to_end(text)
            found_ND = np.stack([self._kept[text] for text in cut]) if cut else np.empty((0, 0), dtype=np.float32)
            while len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
        return found_ND


def shared_encoder(spec: EncoderSpec) -> Encoder:
    """This process's encoder.

    Raises:
        EnvironmentMissing: neither the package nor the folder is there, or sentence-transformers is not installed.
    """
    with _loading:
        return _loaded(encoder_folder(spec))


def encoder_folder(spec: EncoderSpec) -> Path:
    """Where the encoder lies on this machine.

    Raises:
        EnvironmentMissing: the package or the folder is not there.
    """
    if spec.path is not None:
        folder, where = Path(spec.path), "grpo.reward.encoder.path"
    else:
        where = "grpo.reward.encoder.package"
        found = importlib.util.find_spec(spec.package)
        if found is None or not found.submodule_search_locations:
            raise EnvironmentMissing(
                where,
                f"no package '{spec.package}' is installed",
                "install the extra rl-cpu or rl-gpu, or give grpo.reward.encoder.path=FOLDER",
            )
        folder = Path(found.submodule_search_locations[0]) / "model"
    if not (folder / "modules.json").is_file():
        raise EnvironmentMissing(
            where, f"{folder} is no sentence-transformers model", "it lacks modules.json; give a folder with all its files"
        )
    return folder


@cache
def _loaded(folder: Path) -> Encoder:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise EnvironmentMissing("grpo.reward", "sentence-transformers is not installed", "install the extra rl-cpu or rl-gpu")
    return Encoder(folder)
