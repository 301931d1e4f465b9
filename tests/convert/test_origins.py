"""Where corpora come from: every one that is published has its facts, and its name is the paper's."""

from hba_ray.convert.origins import ASIA, EUROPE, NORTH_AMERICA, ORIGINS, corpora_of, corpus_title, origin_of
from hba_ray.data.tasks import DATASETS


def test_every_published_corpus_has_an_origin_and_no_other_has():
    assert ORIGINS.keys() == {dataset.source for dataset in DATASETS.values() if not dataset.is_toy and not dataset.is_own}
    assert {origin.region for origin in ORIGINS.values()} == {NORTH_AMERICA, ASIA, EUROPE}  # as Figure 1e names them
    for origin in ORIGINS.values():
        assert all((origin.material, origin.recorded, origin.publishers, origin.licence, origin.obtain, origin.hub))
        assert origin.language in ("en", "zh")
    assert origin_of(DATASETS["toy_tone"]) is None


def test_what_only_an_agreement_gives_is_not_said_to_be_open():
    assert {corpus for corpus, origin in ORIGINS.items() if "nothing may be passed on" in origin.licence} == {"daicwoz", "iemocap"}
    assert {corpus: origin.hub for corpus, origin in ORIGINS.items() if origin.hub not in ("other", "unknown")} == {
        "meld": "gpl-3.0",
        "cremad": "odbl",
        "mmpsy": "mit",
    }


def test_the_sixteen_datasets_are_the_thirteen_corpora_of_table_2():
    corpora = corpora_of(name for name, dataset in DATASETS.items() if dataset.is_benchmark)
    assert [corpus_title(its) for its in corpora.values()] == [
        *("CMU-MOSEI", "MELD", "TESS", "CREMA-D", "CH-SIMSv2", "Social-IQ 2.0", "IntentQA", "MimeQA", "UR-FUNNYv2", "MUStARD"),
        *("DAIC-WOZ", "MMPsy", "PTSD-in-the-Wild"),
    ]
    assert corpus_title([DATASETS["toy_tone"], DATASETS["toy_nod"]]) == "toy"
