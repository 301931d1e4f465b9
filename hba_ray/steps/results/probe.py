"""The probe steps: linear classifiers on one stream of descriptors, or on the words of the prompt, scored like every other arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from hba_ray.errors import SpecError
from hba_ray.evaluation.arms import Arm
from hba_ray.progress import progress
from hba_ray.specs import ExperimentSpec, identity_values
from hba_ray.specs.sections.descriptors import USUAL_STREAMS, AcousticSpec, PoseSpec, VectorStream
from hba_ray.steps.base import Context, Draft, Result, StepKind
from hba_ray.steps.inputs import describe
from hba_ray.steps.results.evaluate import PREDICTIONS, SCORES
from hba_ray.store.folders import write_text

if TYPE_CHECKING:
    import pyarrow as pa

    from hba_ray.data.atlas import AtlasIndex


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """What a probe step says.

    Attributes:
        rows: that were predicted; `without_a_vector` of them got the most frequent training label.
    """

    rows: int
    without_a_vector: int


WORDS = "words"
"""The part of the step whose classifier reads the words of the prompt."""


class ProbeSteps(StepKind[ProbeResult]):
    """Fits a linear classifier on one stream of descriptors or on the prompt's words, and scores it like any arm."""

    name = "probe"
    result_type = ProbeResult

    def plan(self, draft: Draft) -> None:
        """
        Raises:
            SpecError: there is nothing to probe.
        """
        spec = draft.spec
        scored = {"split": spec.evaluate.split, **identity_values(spec.evaluate, include={"sentiment_merging"})}
        if spec.evaluate.bag_of_words:
            identity = {"atlas": draft["atlas"].fingerprint, "words": True, **scored, **describe.prompt_identity(spec)}
            draft.add(self, identity, "a linear classifier on the words of the prompt", arm=Arm(probe=WORDS), part=WORDS)
        if not spec.descriptors.probe:
            return
        streams: list[VectorStream] = [stream for stream in USUAL_STREAMS if stream in describe.settings(spec).streams]
        if not streams:
            raise SpecError("descriptors.probe", "there are no vectors to probe", "name pose or acoustic in descriptors.streams")
        for stream in streams:
            vectors = describe.vector_identity(spec, stream)
            identity = {"atlas": draft["atlas"].fingerprint, "vectors": vectors, **scored}
            draft.add(self, identity, f"a linear classifier on {stream} vectors alone", arm=Arm(probe=stream), part=stream)

    def make(self, context: Context) -> ProbeResult:
        import pyarrow.parquet as pq

        from hba_ray.evaluation.scores import score_predictions

        spec, index = context.spec, context.index
        with progress(context.step.name, total=len(index.counts())) as bar:
            table, probed = _probe(context, index, lambda dataset: bar.advance())
        pq.write_table(table, context.folder / PREDICTIONS)
        scores = score_predictions(table, index.label_counts("train"), datasets=probed, merging=spec.evaluate.sentiment_merging)
        write_text(context.folder / SCORES, scores.to_json())
        return ProbeResult(rows=len(table), without_a_vector=table.column("probability").null_count)

    def notes(self, spec: ExperimentSpec, result: ProbeResult) -> list[str]:
        notes = []
        if spec.descriptors.probe:
            notes.append(
                "Probes: logistic regression on one stream's descriptors and nothing else, fitted on the training split; "
                "a row without that stream gets the most frequent training label."
            )
        if spec.evaluate.bag_of_words:
            notes.append("Probe words: logistic regression on the TF-IDF weights of the prompt's words and pairs of words.")
        return notes


def _probe(context: Context, index: AtlasIndex, advance: Callable[[str], None]) -> tuple[pa.Table, list[str]]:
    """The predictions of a probe, and the datasets that were probed."""
    from hba_ray.evaluation.probe import probe
    from hba_ray.evaluation.words import probe_words

    spec = context.spec
    if context.part == WORDS:
        return probe_words(index, spec.evaluate.split, progress=advance)
    stream = cast(VectorStream, context.part)
    normalisation = cast(PoseSpec | AcousticSpec, spec.descriptors.of(stream)).normalisation
    descriptors = describe.open_descriptors(spec, index)
    return probe(descriptors, stream, index, spec.evaluate.split, normalisation=normalisation, progress=advance)
