"""Secrets: which environment variables and addresses hold one, and how they are kept out of files and off the screen.

A spec is written to disk, to logs and to MLflow, so it never holds a secret, only a reference to the environment variable
that does: `http://me:${oc.env:MLFLOW_PASSWORD}@host`. Whoever connects asks for the text with its secrets (`revealed`); what is
shown has `***` in their place (`masked`, `shown`).
"""

from __future__ import annotations

import os
import re

from hba_ray.errors import EnvironmentMissing

MASK = "***"
WHERE_SECRETS_GO = "tracking.mlflow alone takes secrets, as ${oc.env:NAME}; evaluate.judge.key_env names the variable of a judge's key"
REFERENCE = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*)\}")
"""A reference as it is kept in a spec."""
_SECRET_WORDS = frozenset({"KEY", "KEYS", "TOKEN", "SECRET", "PASS", "PASSPHRASE", "CREDENTIAL", "AUTH", "SIG", "SIGNATURE"})
_SECRET_ENDS = ("APIKEY", "ACCESSKEY", "TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "PASSWD", "CREDENTIALS")
_ABOUT_A_SECRET = frozenset(["ENV", "FILE", "PATH", "NAME", "DIR"])
"""Last words of names that say where a secret is to be found."""
_USER = re.compile(r"([A-Za-z][\w+.-]*://[^\s/?#:@]*:)([^\s/?#]+)@")
_PARAMETER = re.compile(r"([?&;#]([\w.-]+)=)([^\s&;#'\"]+)")


def looks_secret(name: str) -> bool:
    """Whether a variable, or a parameter of an address, holds a secret by its name.

    >>> [looks_secret(name) for name in ("OPENAI_API_KEY", "access_token", "JUDGE_KEY_ENV", "TOKENIZER_PATH", "MAX_TOKENS", "PWD")]
    [True, True, False, False, False, False]
    """
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).upper().replace("-", "_").replace(".", "_").split("_")
    if words[-1] in _ABOUT_A_SECRET:
        return False
    return any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDS) for word in words)


def masked(text: str) -> str:
    """A text in which passwords and tokens of addresses are hidden.

    >>> masked("at http://me:pa55@host:5000/x?token=abc&page=2")
    'at http://me:***@host:5000/x?token=***&page=2'
    """
    if "://" not in text:
        return text
    text = _USER.sub(rf"\1{MASK}@", text)
    return _PARAMETER.sub(lambda found: f"{found[1]}{MASK if looks_secret(found[2]) else found[3]}", text)


def holds_secret(text: str) -> bool:
    """Whether a text holds a password or a token itself, and not only a reference to one."""
    bare = REFERENCE.sub(MASK, text)
    return masked(bare) != bare


def references(text: str) -> list[str]:
    """The environment variables that a text refers to."""
    return REFERENCE.findall(text)


def revealed(text: str, where: str) -> str:
    """A text with what its references stand for.

    Args:
        where: the key that holds the text, for the error.

    Raises:
        EnvironmentMissing: the environment lacks a variable.
    """
    for name in references(text):
        if name not in os.environ:
            raise EnvironmentMissing(where, f"the environment has no variable {name}", f"set it: export {name}=...")
    return REFERENCE.sub(lambda found: os.environ[found[1]], text)


def shown(text: str) -> str:
    """A text with what its references stand for, and its secrets hidden."""
    return masked(REFERENCE.sub(lambda found: MASK if looks_secret(found[1]) else os.environ.get(found[1], found[0]), text))


def without_secrets(message: str, text: str) -> str:
    """A message, perhaps of a library, in which the secrets that a text refers to are hidden."""
    for name in references(text):
        if looks_secret(name) and (value := os.environ.get(name)):
            message = message.replace(value, MASK)
    return masked(message)
