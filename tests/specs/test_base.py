"""Fingerprints outlive upgrades: a field that came later enters the identity of its section only where it does something new."""

from typing import Annotated, Any

import pytest
from pydantic import Field

from hba_ray.specs import Added, MediaSpec, SftSpec, Spec, fingerprint, identity_values


class LaterMedia(MediaSpec):
    crop: Annotated[float, Added(before=1.0)] = Field(default=1.0, gt=0)


class LaterSft(SftSpec):
    """The section `sft` after two releases; the second changed a default of the first."""

    schedule: Annotated[str, Added(before="cosine")] = "linear"
    betas: Annotated[tuple[float, ...], Added(before=(0.9, 0.999))] = (0.9, 0.999)


def holding(kind: type[MediaSpec], section: MediaSpec) -> list[Spec]:
    """A section in sections, by all ways that a spec knows."""

    class Holder(Spec):
        media: kind | None = None  # type: ignore[valid-type]
        by_name: dict[str, kind] = Field(default_factory=dict)  # type: ignore[valid-type]
        several: tuple[kind, ...] = ()  # type: ignore[valid-type]

    return [Holder(media=section), Holder(by_name={"a": section}), Holder(several=(section, section))]


@pytest.mark.parametrize("changes", [{}, {"batch": 32, "lr": 1e-3, "checkpoint": "somewhere"}])
def test_a_field_that_came_later_renames_nothing_while_it_does_nothing_new(changes: dict[str, Any]):
    before, after = SftSpec(**changes), LaterSft(schedule="cosine", **changes)
    assert after.identity() == before.identity()
    assert fingerprint(after.identity()) == fingerprint(before.identity())


def test_a_field_that_came_later_renames_what_it_changes():
    assert LaterSft(schedule="cosine", betas=(0.9, 0.95)).identity() == SftSpec().identity() | {"betas": [0.9, 0.95]}


def test_what_counts_is_what_was_done_before_and_not_the_default_of_today():
    assert LaterSft().identity() == SftSpec().identity() | {"schedule": "linear"}


def test_a_field_of_the_first_release_enters_at_its_default_too():
    assert set(SftSpec().identity()) == set(SftSpec.model_fields) - {"checkpoint"}


def test_sections_in_sections_keep_their_names_too():
    before, after = holding(MediaSpec, MediaSpec()), holding(LaterMedia, LaterMedia())
    first = {"audio_seconds": 10.0, "video_frames": 4, "video_pixels": 147_456}
    media, by_name, several = ({"media": None, "by_name": {}, "several": []} | held for held in (
        {"media": first}, {"by_name": {"a": first}}, {"several": [first, first]},
    ))  # fmt: skip
    assert [one.identity() for one in after] == [one.identity() for one in before] == [media, by_name, several]
    for old, changed in zip(before, holding(LaterMedia, LaterMedia(crop=0.5)), strict=True):
        assert changed.identity() != old.identity()


def test_a_section_that_came_later_as_a_whole_is_left_out_until_it_is_used():
    class Grown(Spec):
        atlas: MediaSpec = MediaSpec()
        later: Annotated[MediaSpec, Added(before=MediaSpec())] = MediaSpec()

    assert identity_values(Grown(), include={"later"}) == {}
    used = Grown(later=MediaSpec(video_frames=2))
    assert identity_values(used, include={"later"}) == {"later": MediaSpec(video_frames=2).identity()}


def test_fields_are_chosen_by_name():
    media = MediaSpec()
    assert identity_values(media, include={"video_frames"}) == {"video_frames": 4}
    assert identity_values(LaterMedia(crop=0.5), exclude={"video_frames", "audio_seconds"}) == {"video_pixels": 147_456, "crop": 0.5}
