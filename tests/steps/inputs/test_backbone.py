"""What is made sure of a backbone before the first step of a run."""

import json

import pytest

from hba_ray.errors import DataError, SpecError
from hba_ray.steps.inputs.backbone import check_window
from tests.helpers.experiments import small_experiment


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("preprocessor_config.json", {"chunk_length": 10}),
        ("processor_config.json", {"feature_extractor": {"chunk_length": 10}}),
    ],
)
def test_more_sound_than_the_backbone_takes_is_refused(tmp_path, file, settings):
    (tmp_path / file).write_text(json.dumps(settings))
    longer = small_experiment(tmp_path, model__backbone=str(tmp_path), atlas__media__audio_seconds=11)
    with pytest.raises(SpecError, match=r"11 s of each sound are asked for, and the feature extractor of .* takes 10 s"):
        check_window(longer)
    check_window(small_experiment(tmp_path, model__backbone=str(tmp_path), atlas__media__audio_seconds=10))


def test_damaged_settings_of_a_processor_are_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        check_window(small_experiment(tmp_path, model__backbone=str(tmp_path)))
