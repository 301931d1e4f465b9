"""Where each corpus comes from: what was recorded, where, by whom, in which language, under which licence, and how to get it.

No atlas can measure these facts, so they stand here, beside the converters that read the files in question. The paper's Table 21 and
Figure 1e are about them. A licence is what the publishers state; where they state none that was found, it says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hba_ray.data.tasks import DATASETS, Dataset

NORTH_AMERICA, ASIA, EUROPE, ANYWHERE = "North America", "Asia", "Europe", "anywhere (web videos)"
UNSTATED = "no licence stated"
RELEASED = "The atlas that the paper's authors have released, HumanBehaviorAtlas/human_behavior_atlas on the hub, states CC BY-NC 4.0."


@dataclass(frozen=True)
class Origin:
    """Where a corpus comes from.

    Attributes:
        material: what its recordings are.
        recorded: region in which they were made; videos of the web come from anywhere.
        publishers: who made the corpus of them.
        region: of the publishers.
        language: of what is said, as a code of ISO 639-1.
        licence: of its files, as its publishers state it.
        obtain: how to get it.
        hub: the licence's name on the Hugging Face hub.
    """

    material: str
    recorded: str
    publishers: str
    region: str
    language: str
    licence: str
    obtain: str
    hub: str = "unknown"


ORIGINS: dict[str, Origin] = {
    "mosei": Origin(
        "monologues on YouTube",
        ANYWHERE,
        "Carnegie Mellon University, United States",
        NORTH_AMERICA,
        "en",
        "proper use is left to whoever uses it; videos are those of their uploaders",
        "links in the READMEs of github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK or, cut into clips, of github.com/thuiar/MMSA",
        "other",
    ),
    "meld": Origin(
        "scenes of a television series",
        NORTH_AMERICA,
        "Singapore University of Technology and Design, Singapore",
        ASIA,
        "en",
        "GPL-3.0; the clips are of the series",
        "github.com/declare-lab/MELD, or declare-lab/MELD on the Hugging Face hub",
        "gpl-3.0",
    ),
    "tess": Origin(
        "two actresses in a studio",
        NORTH_AMERICA,
        "University of Toronto, Canada",
        NORTH_AMERICA,
        "en",
        "believed to be CC BY-NC-ND 4.0; see the page it is downloaded from",
        "open download from the university's TSpace (1807/24487) or Borealis (doi 10.5683/SP2/E8H2MF)",
        "other",
    ),
    "cremad": Origin(
        "91 actors in a studio",
        NORTH_AMERICA,
        "University of Pennsylvania, United States",
        NORTH_AMERICA,
        "en",
        "Open Database License 1.0, its contents under the Database Contents License 1.0",
        "github.com/CheyneyComputerScience/CREMA-D, with Git LFS",
        "odbl",
    ),
    "chsimsv2": Origin(
        "clips of films, series and shows, in 11 scenarios",
        ASIA,
        "Tsinghua University, China",
        ASIA,
        "zh",
        UNSTATED,
        "links in the README of github.com/thuiar/ch-sims-v2",
    ),
    "siq2": Origin(
        "videos on YouTube",
        ANYWHERE,
        "Carnegie Mellon University, United States",
        NORTH_AMERICA,
        "en",
        "MIT for questions and answers; videos are those of their uploaders",
        "github.com/abwilf/Social-IQ-2.0-Challenge, whose script fetches those videos that are still online",
        "other",
    ),
    "intentqa": Origin(
        "everyday videos on Flickr, by way of NExT-QA",
        ANYWHERE,
        "Xi'an Jiaotong University, China",
        ASIA,
        "en",
        UNSTATED,
        "links in the README of github.com/JoseponLee/IntentQA",
    ),
    "mimeqa": Origin(
        "videos of mimes on YouTube",
        ANYWHERE,
        "Massachusetts Institute of Technology, United States",
        NORTH_AMERICA,
        "en",
        UNSTATED,
        "hzli1202/MimeQA on the Hugging Face hub",
    ),
    "urfunny": Origin(
        "TED talks",
        ANYWHERE,
        "University of Rochester, United States",
        NORTH_AMERICA,
        "en",
        UNSTATED,
        "links in the README of github.com/ROC-HCI/UR-FUNNY",
    ),
    "mustard": Origin(
        "scenes of television series",
        NORTH_AMERICA,
        "University of Michigan, United States",
        NORTH_AMERICA,
        "en",
        "MIT; the clips are of the series",
        "github.com/soujanyaporia/MUStARD",
        "other",
    ),
    "daicwoz": Origin(
        "interviews about mental health",
        NORTH_AMERICA,
        "University of Southern California, United States",
        NORTH_AMERICA,
        "en",
        "a signed agreement; nothing may be passed on",
        "an agreement with USC's Institute for Creative Technologies (dcapswoz)",
        "other",
    ),
    "mmpsy": Origin(
        "interviews at schools in Guangdong",
        ASIA,
        "its authors, with the education authorities of Guangdong, China",
        ASIA,
        "zh",
        "MIT",
        "github.com/shuyeit/mmpsy-data; the sound is not published",
        "mit",
    ),
    "ptsd_in_the_wild": Origin(
        "videos on YouTube",
        ANYWHERE,
        "LISSI, Université Paris-Est Créteil, France",
        EUROPE,
        "en",
        UNSTATED,
        "on request from the LISSI laboratory",
    ),
    "iemocap": Origin(
        "ten actors in a laboratory",
        NORTH_AMERICA,
        "University of Southern California, United States",
        NORTH_AMERICA,
        "en",
        "a signed release form; nothing may be passed on",
        "a release form of USC's SAIL laboratory",
        "other",
    ),
}
"""Corpus, as `Dataset.source` names it -> where it comes from. Toys and data of a user's own have none."""


def origin_of(dataset: Dataset) -> Origin | None:
    """Where a dataset comes from; None where that is not known here."""
    return None if dataset.is_own else ORIGINS.get(dataset.source)


def corpora_of(datasets: Iterable[str]) -> dict[str, list[Dataset]]:
    """Corpus -> its datasets among these, in the benchmark's order."""
    wanted, found = set(datasets), {}
    for name in (name for name in DATASETS if name in wanted):
        found.setdefault(DATASETS[name].source, []).append(DATASETS[name])
    return found


def corpus_title(datasets: list[Dataset]) -> str:
    """The paper's name of a corpus: that of its datasets without their tasks; its id where they have several.

    >>> corpus_title([DATASETS["mosei_senti"], DATASETS["mosei_emotion"]])
    'CMU-MOSEI'
    """
    names = {dataset.title.removesuffix(f" ({dataset.task.id})") for dataset in datasets}
    return names.pop() if len(names) == 1 else datasets[0].source
