"""Specs and words of the command line that nobody would write by hand: shipped specs with parts changed, and overrides of any kind."""

import random
import time
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.specs.reading.overrides import kinds_at

SHIPPED = sorted((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))
SECONDS = 10.0
"""Most that reading one spec may take on a busy machine; a quiet one needs some hundredths."""
SNIPPETS = (
    *("!!bool bam", "!!int ''", "!!float ''", "!!timestamp x", "!!set {a, b}", "!!binary x", "!!python/object/apply:os.system [x]"),
    *("0b_", "0x_", "._", "1e999", "9" * 5000, "0x" + "f" * 5000, ".nan", "-.inf", "1:2:3", "2024-01-31", "=", "~", "yes", "???"),
    *("${name}", "${x", "${oc.env:NO_SUCH_VARIABLE}", "${oc.env:A,${seed}}", "${oc.decode:'1'}", "${sft}", "${.}", "${..}", "${a.${b}}"),
    *(
        "\\${x}",
        "&a [*a]",
        "*a",
        "<<",
        "{? : 1}",
        "{[a]: 1}",
        "{a: 1, a: 2}",
        "[" * 200,
        "{a: " * 200,
        "'",
        '"\\ud800"',
        '"\\0"',
        "\x1b]0;x\x07",
    ),
    *("http://me:pa55@host", "[/x]", "-", "- -", "|", ">", "%x", "@x", "`x", "\t", "/a #b", "a: b", "\u202e", "/dev/zero", "/etc/shadow"),
)
"""Values that a parser, a constructor or a printer has stumbled over."""


@cache
def text_fields() -> dict[str, bool]:
    """Dotted key of every field that takes text alone -> whether it takes null, too."""
    found: dict[str, bool] = {}

    def walk(section: type[BaseModel], path: list[str]) -> None:
        for name in section.model_fields:
            here = [*path, name]
            kinds = kinds_at(ExperimentSpec, here)
            if kinds and kinds <= {str, NoneType}:
                found[".".join(here)] = NoneType in kinds
            inner = section.model_fields[name].annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                walk(inner, here)

    walk(ExperimentSpec, [])
    return found


def plain_texts() -> st.SearchStrategy[str]:
    """Any text that a field takes as it is: no reference, no half character, and no mark of a value to come."""
    signs = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
    awkward = st.sampled_from(
        [" #", ": ", "*", "[", "]", "{", "&a ", "'", '"', "~", "null ", "yes", "1e-3", "\\", "$", "|\n", " ", "=", "- "]
    )
    return st.lists(signs | awkward, max_size=5).map("".join).filter(lambda text: "${" not in text and text.strip() != "???")


def keys() -> st.SearchStrategy[str]:
    """Keys of specs, and some that are none."""
    known = [*text_fields(), "seed", "sft.lr", "sft.epochs", "stages", "atlas.modalities", "compute.workers", "sweep", "sft", "extends"]
    more = ["sweep.axes.sft.lr", "sweep.arms.a.atlas.root", "sweep.search.sft.lr", "grpo.verl.x.y", "bam.checkpoints.x", "x", "name.y"]
    return st.sampled_from([*known, *more])


def override_words() -> st.SearchStrategy[list[str]]:
    """Words `key=value` of any kind."""
    values = st.sampled_from(SNIPPETS) | plain_texts() | st.text(max_size=20)
    return st.lists(st.builds("{}={}".format, keys(), values) | st.text(max_size=10), max_size=3)


@st.composite
def spec_texts(draw: st.DrawFn) -> str:
    """The text of a shipped spec, without what it extends, in which values are replaced and letters changed."""
    raw = yaml.safe_load(draw(st.sampled_from(SHIPPED)).read_text(encoding="utf-8"))
    raw.pop("extends", None)
    raw = {"name": "x", "atlas": {"source": "toy"}} | raw
    source = random.Random(draw(st.integers(0, 2**32)))
    marks: dict[str, str] = {}
    for _ in range(draw(st.integers(0, 4))):
        section: Any = raw
        while isinstance(section, dict) and section:
            key = source.choice(list(section))
            if not isinstance(section[key], dict) or not section[key] or source.random() < 0.3:
                mark = f"MARK{len(marks)}"
                marks[mark], section[key] = draw(st.sampled_from(SNIPPETS)), mark
                break
            section = section[key]
    text = yaml.safe_dump(raw, sort_keys=False)
    for mark, snippet in marks.items():
        text = text.replace(mark, snippet)
    for _ in range(draw(st.integers(0, 3))):
        place = source.randrange(len(text) + 1)
        cut = source.choice([0, 0, 1, 5, 40])
        text = text[:place] + draw(st.sampled_from(["", *"{}[]:#&*!|>'\"%@`\t\n\r-?,$\\\0"]) | st.text(max_size=3)) + text[place + cut :]
    return text


def read_spec(folder: Path, text: str, words: list[str]) -> str:
    """What comes of a spec: "accepted" or "refused", always within `SECONDS` and with a place.

    Args:
        folder: for the file; the text may hold half characters, which a file cannot.
    """
    file = folder / "hostile.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    started = time.perf_counter()
    try:
        assert isinstance(load_spec(file, words), ExperimentSpec)
        said = "accepted"
    except SpecError as refused:
        assert refused.where and refused.what and len(str(refused)) < 5000, str(refused)
        assert "pa55" not in str(refused)
        said = "refused"
    assert time.perf_counter() - started < SECONDS
    return said
