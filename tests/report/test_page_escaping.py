"""Templates of the page: text cannot become an element, and markup of the charts keeps its shape."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from hba_ray.report.page import environment
from tests.helpers.hostile import hostile

TEMPLATES = environment()


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data) -> None:
        self.texts.append(data)


PLAIN = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=32, exclude_characters="\x7f"))
PARAGRAPH = TEMPLATES.from_string('<p title="{{ value }}">{{ words }}</p>')


@hostile("HTML", examples=100)
@given(PLAIN, PLAIN)
def test_any_text_comes_back_as_text_and_as_an_attribute(words: str, value: str):
    reader = Reader()
    reader.feed(PARAGRAPH.render(words=words, value=value))
    reader.close()
    assert reader.tags == ["p"] and "".join(reader.texts) == words
    assert reader.attributes == [("title", value)]


def test_markup_is_kept_text_is_not_and_control_characters_are_shown():
    rendered = TEMPLATES.from_string("{{ text }}{{ markup }}").render(text="a<\x00b\x1b\n\x7f", markup=Markup("<br>"))
    assert rendered == "a&lt;\u2400b\u241b\n\u2421<br>"


def test_a_template_that_asks_for_what_it_was_not_given_is_refused():
    with pytest.raises(UndefinedError):
        TEMPLATES.from_string("{{ reprot }}").render(report=1)
