"""HTML that cannot be broken by what stands in it: elements are made by a function, and text is escaped unless it is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

_VOID = frozenset(("br", "input", "link", "meta", "circle", "line", "path", "rect"))
"""Elements that hold nothing; those of SVG close themselves."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""What HTML may not hold; shown as the signs that Unicode has for them."""


class Html(str):
    """Markup, which is put into a page as it is."""

    __slots__ = ()


Child = str | Html | None | Iterable["str | Html | None"]


def text(words: str) -> Html:
    """Text as markup.

    >>> text('</script><b>"')
    '&lt;/script&gt;&lt;b&gt;&quot;'
    """
    return Html(escape(_CONTROL.sub(lambda sign: chr(0x2421 if sign[0] == "\x7f" else 0x2400 + ord(sign[0])), words), quote=True))


def join(*children: Child) -> Html:
    """Children one after the other; text among them is escaped, None is nothing."""
    return Html("".join(_flat(children)))


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element.

    Args:
        attributes: `_` stands for `-`, a last one is left out (`class_`); False and None leave an attribute out.

    >>> element("p", "a < b", class_="x", data_row=3, hidden=True)
    '<p class="x" data-row="3" hidden>a &lt; b</p>'
    """
    opening = name
    for key, value in attributes.items():
        if value is not None and value is not False:
            opening += f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(_written(value))}"')
    return Html(f"<{opening}/>") if name in _VOID else Html(f"<{opening}>{join(*children)}</{name}>")


def _written(value: str | float) -> str:
    """
    >>> _written(0.1 + 0.2), _written(5.0)
    ('0.3', '5')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Html):
            yield child
        elif isinstance(child, str):
            yield text(child)
        elif child is not None:
            yield from _flat(child)
