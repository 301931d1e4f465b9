"""Secrets: which environment variables and addresses hold one, and how they are kept out of files and off the screen.

A spec is written to disk, to logs and to MLflow, so it never holds a secret, only a reference to the environment variable
that does: `http://me:${oc.env:MLFLOW_PASSWORD}@host`. Whoever connects asks for the text with its secrets (`revealed`); what is
shown has `***` in their place (`masked`, `shown`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import unquote

from hba_ray.errors import EnvironmentMissing

MASK = "***"
WHERE_SECRETS_GO = "tracking.mlflow alone takes secrets, as ${oc.env:NAME}; evaluate.judge.key_env names the variable of a judge's key"
REFERENCE = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*)\}")
"""A reference as it is kept in a spec."""
_SECRET_WORDS = frozenset({"PW", "PIN", "OTP", "CRED", "SIG", "SIGNATURE", "AUTHORIZATION"})
"""Words that are a secret only by themselves: SPIN and SACRED are none."""
_SECRET_ENDS = (
    *("KEY", "TOKEN", "SECRET", "PASS", "PASSWORD", "PASSWD", "PWD", "PASSCODE", "PASSPHRASE", "CREDS", "CREDENTIAL", "AUTH"),
    *("PAT", "BEARER", "JWT", "COOKIE", "DSN", "CONNECTIONSTRING"),
)
"""Ends of words; an S or digits may follow."""
_ORDINARY = re.compile(
    r"(MON|DON|TUR|JOC|HOC|WHIS|MIC)KEY|(COM|ENCOM|BY|SUR|TRES|OVER|UNDER|LOW|HIGH|BAND)PASS|(COM|EX|S)PAT"
    r"|(MAX|MIN|NUM|N|NEW|TOTAL|PROMPT|COMPLETION|INPUT|OUTPUT)TOKENS"
)
"""Words that end so and are no secret."""
_COUNTS = frozenset(["MAX", "MIN", "NUM", "N", "NEW", "TOTAL", "COUNT", "PROMPT", "COMPLETION", "INPUT", "OUTPUT"])
"""Words beside which TOKENS are counted."""
_FOLDERS = frozenset(["PWD", "OLDPWD"])
"""Variables in which a shell keeps folders."""
_ABOUT_A_SECRET = frozenset(["ENV", "FILE", "PATH", "NAME", "DIR"])
"""Last words of names that say where a secret is to be found."""
_USER = re.compile(
    r"((?<![\w/])//(?!/)|(?i:(?<=http:)|(?<=https:))/+)"
    # all before an @; or, where no number of a port follows the colon, a password with a slash or a space in it
    r"([^\s/]+|[^\s/?#@:\[]*:(?!\d*(?:[/?#,;'\")\]\s]|$))[^\n]{0,200})@"
)
"""User and password of an address; a `Path` leaves one slash of two."""
_CONTAINER = re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}")
_PARAMETER = re.compile(r"([?&;#]([\w.%\[\]-]+)=)([^\s&;#]+)")


def looks_secret(name: str) -> bool:
    """Whether a variable holds a secret by its name.

    >>> [looks_secret(name) for name in ("OPENAI_API_KEY", "access_token", "JUDGE_KEY_ENV", "TOKENIZER_PATH", "MAX_TOKENS", "PWD")]
    [True, True, False, False, False, False]
    """
    parts = re.split(r"[\W_]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).upper())
    words = [word for part in parts if (word := part.strip("0123456789"))]
    if not words or words[-1] in _ABOUT_A_SECRET or "_".join(words) in _FOLDERS:
        return False
    return "CONNECTION_STRING" in "_".join(words) or any(
        not (word == "TOKENS" and _COUNTS.intersection(words)) and _is_secret(word) for word in words
    )


def _is_secret(word: str) -> bool:
    one = word.removesuffix("S") if word.endswith(tuple(f"{end}S" for end in _SECRET_ENDS)) and not word.endswith("PASS") else word
    if _ORDINARY.fullmatch(word) or _ORDINARY.fullmatch(one):
        return False
    return one in _SECRET_WORDS or one.endswith(_SECRET_ENDS)


def _parameter_is_secret(name: str) -> bool:
    """Whether a parameter of an address holds a secret by its name; an address has no PWD that is a folder."""
    name = unquote(name)
    return looks_secret(name) or name.upper() in _FOLDERS


def masked(text: str) -> str:
    """A text in which users, passwords and tokens of addresses are hidden. Many services take a token as the user, with any password.

    >>> masked("at http://me:pa55@host:5000/x?token=abc&page=2")
    'at http://***:***@host:5000/x?token=***&page=2'
    >>> masked("http://token@host")
    'http://***@host'
    """
    return _masked(text, lambda user, password: MASK)


def _masked(text: str, user_shown: Callable[[str, str], str]) -> str:
    """The text with its secrets hidden.

    Args:
        user_shown: what to show of the user before an @, given the password.
    """
    if "//" not in text and ":/" not in text:
        return text
    text = _USER.sub(lambda found: found[0] if _is_container(found) else f"{found[1]}{_hidden_user(found[2], user_shown)}@", text)
    return _PARAMETER.sub(lambda found: f"{found[1]}{MASK if _parameter_is_secret(found[2]) else found[3]}", text)


def _is_container(found: re.Match[str]) -> bool:
    """Whether what stands before an @ is a container of Azure's storage, as in abfs://CONTAINER@ACCOUNT.dfs.core.windows.net."""
    before = found.string[max(0, found.start(2) - len("abfss://")) : found.start(2)]
    return before.lower().endswith(("abfs://", "abfss://")) and _CONTAINER.fullmatch(found[2]) is not None


def _hidden_user(text: str, user_shown: Callable[[str, str], str]) -> str:
    """What stands before the @ of an address, hidden."""
    user, colon, password = text.partition(":")
    return f"{user and user_shown(user, password)}{colon}{password and MASK}"


def _name_shown(user: str, password: str) -> str:
    """The user, where a password beside it says that it is a name."""
    return user if password and not re.search(r"%3a|[?#]", user, re.IGNORECASE) else MASK


def holds_secret(text: str) -> bool:
    """Whether a text holds a password or a token itself, and not only a reference to one."""
    bare = REFERENCE.sub(MASK, text)
    return _masked(bare, _name_shown) != bare


def secret_references(text: str) -> list[str]:
    """The environment variables that a text refers to as secrets: by their names, or by their place in an address."""
    placed = [found[0] for found in _USER.finditer(text)]
    placed += [found[3] for found in _PARAMETER.finditer(text) if _parameter_is_secret(found[2])]
    names = {name for part in placed for name in references(part)}
    return [name for name in references(text) if name in names or looks_secret(name)]


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
    secret = secret_references(text)
    return masked(REFERENCE.sub(lambda found: MASK if found[1] in secret else os.environ.get(found[1], found[0]), text))


def without_secrets(message: str, text: str) -> str:
    """A message, perhaps of a library, in which the secrets that a text refers to are hidden."""
    for name in secret_references(text):
        if value := os.environ.get(name):
            message = message.replace(value, MASK)
    return masked(message)
