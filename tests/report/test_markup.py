"""Markup: text cannot become an element, and an element cannot lose its shape."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from hba_ray.report.markup import Html, element, join, text


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


@settings(deadline=None)
@given(PLAIN, PLAIN)
def test_any_text_comes_back_as_text_and_as_an_attribute(words: str, value: str):
    reader = Reader()
    reader.feed(element("p", words, title=value))
    reader.close()
    assert reader.tags == ["p"] and "".join(reader.texts) == words
    assert reader.attributes == [("title", value)]


def test_markup_is_kept_nothing_is_nothing_and_control_characters_are_shown():
    assert join("a<", None, [Html("<br>"), ["b"]]) == "a&lt;<br>b"
    assert text("a\x00b\x1b\n") == "a\u2400b\u241b\n"
    assert element("input", type="search", hidden=False, required=True) == '<input type="search" required/>'
