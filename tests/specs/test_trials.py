"""A sweep becomes the trials that it says, and a wrong axis is refused with its line before anything starts."""

from pathlib import Path

import pytest

from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec, SweepSpec, load_spec, trials

BASE = "name: x\natlas:\n  source: toy\nsft: {batch: 4}\n"


@pytest.fixture
def read(tmp_path: Path):
    def read(sweep: str, *words: str, base: str = BASE) -> ExperimentSpec:
        file = tmp_path / "spec.yaml"
        file.write_text(base + sweep)
        return load_spec(file, words)

    return read


def names(spec: ExperimentSpec) -> list[str]:
    return [trial.name for trial in trials(spec)]


def test_axes_and_seeds_are_all_combined(read):
    spec = read("sweep:\n  axes: {sft.lr: [1e-3, 1e-4], model.train: [all, heads]}\n  seeds: [0, 7]\n")
    made = trials(spec)
    assert [trial.name for trial in made[:3]] == [
        "sft.lr=0.001 model.train=all seed=0",
        "sft.lr=0.001 model.train=all seed=7",
        "sft.lr=0.001 model.train=heads seed=0",
    ]
    assert len(made) == 8
    last = made[-1]
    assert (last.spec.sft.lr, last.spec.model.train, last.spec.seed, last.spec.sweep) == (1e-4, "heads", 7, None)
    assert (last.arm, dict(last.sets)) == ("sft.lr=0.0001 model.train=heads", {"sft.lr": 1e-4, "model.train": "heads", "seed": 7})
    assert last.spec.sft.batch == 4


def test_a_spec_without_a_sweep_has_no_trials(read):
    assert trials(read("")) == []


def test_arms_are_named_and_an_empty_one_is_the_spec_itself(read):
    spec = read("sweep:\n  arms:\n    base: {}\n    text only: {atlas: {modalities: [text]}, sft.lr: 1e-3}\n")
    base, text = trials(spec)
    assert (base.name, text.name) == ("base", "text only")
    assert base.spec == spec.model_copy(update={"sweep": None})
    assert (text.spec.atlas.modalities, text.spec.sft.lr) == (("text",), 1e-3)


def test_nested_keys_and_the_command_line_say_the_same_as_dotted_ones(read):
    nested = read("sweep:\n  axes:\n    sft: {epochs: [1, 2]}\n")
    assert names(nested) == names(read("sweep:\n  axes: {sft.epochs: [1, 2]}\n")) == ["sft.epochs=1", "sft.epochs=2"]
    assert names(read("", "sweep.axes.sft.epochs=[3,4]")) == ["sft.epochs=3", "sft.epochs=4"]
    assert names(read("sweep:\n  axes: {sft.epochs: [1, 2]}\n", "sweep.axes.sft.epochs=[3]")) == ["sft.epochs=3"]
    assert names(read("sweep:\n  axes: {sft.epochs: [1, 2]}\n", "sweep=null")) == []


def test_drawn_points_repeat_stay_in_range_and_are_kept_when_more_are_drawn(read):
    text = "sweep:\n  search:\n    sft.lr: {loguniform: [1e-6, 1e-3]}\n    sft.shuffle_window: {choice: [8, 12]}\n  samples: "
    few, many = trials(read(text + "3\n")), trials(read(text + "9\n"))
    assert [trial.name for trial in few] == [trial.name for trial in many[:3]]
    rates = [trial.spec.sft.lr for trial in many]
    assert len(set(rates)) == 9 and all(1e-6 <= rate <= 1e-3 for rate in rates)
    assert min(rates) < 1e-5 < 1e-4 < max(rates)
    assert all(f"sft.lr={trial.spec.sft.lr:g}" in trial.name for trial in many)
    assert names(read(text + "3\n", "seed=1")) != [trial.name for trial in few]


def test_points_drawn_twice_are_run_once(read):
    assert len(trials(read("sweep:\n  search: {sft.epochs: {choice: [1, 2]}}\n  samples: 20\n"))) == 2


def test_the_authors_settings_can_be_an_arm(read):
    paper, authors = trials(read("sweep:\n  axes: {compat: [paper, authors]}\n"))
    assert (paper.spec.sft.answer_case, authors.spec.sft.answer_case) == (paper.spec.sft.answer_case, "lower")
    with pytest.raises(SpecError, match="leave compat out"):
        read("compat: authors\nsweep:\n  axes: {compat: [paper, authors]}\n")


@pytest.mark.parametrize(
    ("sweep", "line", "says"),
    [
        ("  axes:\n    sft.epochs: [1]\n    sft.learning_rate: [1]\n", 8, "did you mean 'sft.lr'"),
        ("  axes:\n    sft.epochs: []\n", 6, "the axis 'sft.epochs' has no values"),
        ("  axes:\n    sft.epochs: [1, 0]\n", 7, "trial 'sft.epochs=0': sft.epochs: Input should be greater than or equal to 1"),
        ("  axes:\n    sft.batch: [4, 5]\n", 5, "trial 'sft.batch=5': sft.batch 5 is not a multiple"),
        ("  axes:\n    sft.lr.peak: [1]\n", 7, "sft.lr: Input should be a valid number"),
        ("  axes:\n    nowhere.lr: [1]\n", 7, "unknown key 'nowhere'"),
        ("  axes:\n    sft.epochs: 3\n", 7, "it takes a list"),
        ("  axes:\n    seed: [0, 1]\n", 7, "sweep.seeds"),
        ("  axes:\n    compute.workers: [1, 2]\n", 7, "'compute.workers' cannot be varied: it says where a trial runs"),
        ("  axes:\n    name: [a, b]\n", 7, "it names the sweep as a whole"),
        ("  axes:\n    sft.epochs: [1, 1]\n", 5, "are the same experiment"),
        ("  arms: {a: {sft.epochs: 1}}\n  axes: {sft.epochs: [1, 2]}\n", 7, "varied by sweep.arms too"),
        ("  arms:\n    a: {sft.epochs: 1}\n    b: {sft.epochs: 0}\n", 8, "trial 'b': sft.epochs"),
        ("  arms: {'a\"b': {}}\n", 6, "needs a name"),
        ("  seeds: [1, 1]\n", 6, "named twice"),
        ("  seeds: []\n", 5, "varies nothing"),
        ("  search: {sft.lr: {uniform: [2, 1]}}\n  samples: 2\n", 6, "the first has to be the smaller"),
        ("  search: {sft.lr: {loguniform: [0, 1]}}\n  samples: 2\n", 6, "above 0"),
        ("  search: {sft.lr: {normal: [0, 1]}}\n  samples: 2\n", 6, "it takes keys"),
        ("  search: {sft.lr: {uniform: [0.1, 1]}}\n", 5, "search needs samples"),
        ("  axes: {sft.epochs: [1]}\n  samples: 3\n", 5, "search, which is missing"),
        ("  axes: {sft.epochs: [1]}\n  asha: {grace: 9, most: 3}\n", 7, "no trial would ever be stopped"),
        ("  search: {sft.lr: {uniform: [0.1, 1]}}\n  samples: 20000\n", 5, "10000 is the most"),
        ("  axis: {sft.epochs: [1]}\n", 6, "did you mean 'sweep.axes'"),
    ],
)
def test_a_bad_sweep_is_refused_with_its_line(read, tmp_path: Path, sweep: str, line: int, says: str):
    with pytest.raises(SpecError) as refused:
        read("sweep:\n" + sweep)
    assert says in str(refused.value)
    assert refused.value.where == f"{tmp_path / 'spec.yaml'}:{line}"
    assert refused.value.exit_code == 2


def test_a_bad_axis_on_the_command_line_is_said_to_be_there(read):
    with pytest.raises(SpecError, match="command line: trial") as refused:
        read("", "sweep.axes.sft.epochs=[0]")
    assert "greater than or equal" in str(refused.value)


def test_a_rendered_sweep_means_the_same(read):
    import yaml

    spec = read("sweep:\n  axes: {sft.lr: [1e-3, 1e-4]}\n  seeds: [0, 1]\n")
    again = ExperimentSpec.model_validate(yaml.safe_load(yaml.safe_dump(spec.identity())))
    assert names(again) == names(spec)
    assert isinstance(again.sweep, SweepSpec)
