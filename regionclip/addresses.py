"""Addresses of streams as messages and files show them: without passwords."""

from __future__ import annotations

import re

HIDDEN = "***"
"""In place of what is not shown."""

_USER = re.compile(r"""(?<=://)[^\s"']*@""")
"""User and password; up to the last @, since an unescaped password may have any character."""

_SECRET = re.compile(
    r"([?&;][^=&;\s]*(?:pass|pwd|token|secret|key|auth|sig|credential)[^=&;\s]*=)[^&;#\s]+", re.IGNORECASE
)
"""Value of a query parameter whose name says that it is secret, as some cameras have it."""


def masked(text: str) -> str:
    """Return a text, such as a command line, whose addresses have no user, password or token."""
    return _USER.sub(f"{HIDDEN}@", _SECRET.sub(rf"\1{HIDDEN}", text))
