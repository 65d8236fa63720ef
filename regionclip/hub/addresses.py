"""Addresses of files on the web and on the Hugging Face hub, as URLs with the headers that they need."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote

from regionclip.errors import user_error

HUB = "hf://"
"""Scheme of the hub: `hf://[spaces/|datasets/]owner/repository[@revision]/path`."""

_KINDS = ("spaces", "datasets")
_REVISION = re.compile(r"^(?P<name>[^@]+)(@(?P<revision>.+))?$")


@dataclass(frozen=True)
class Location:
    """Where a file is."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    """Never sent to another host that the server redirects to."""


def locate(address: str) -> Location:
    """Return the location of an address: `http://`, `https://`, `file://`, or of the hub.

    The hub's endpoint is $HF_ENDPOINT, and its token that of huggingface_hub (`HF_TOKEN`, or a login).

    Raises:
        UserError: an address of the hub without owner, repository or path.
    """
    if not address.startswith(HUB):
        return Location(address)
    parts = address.removeprefix(HUB).split("/")
    kind = parts.pop(0) + "/" if parts[0] in _KINDS else ""
    match = _REVISION.match(parts[1]) if len(parts) >= 3 and all(parts) else None
    if match is None:
        fix = "correct owner, repository and path"
        raise user_error(address, "hf://[spaces/|datasets/]owner/repository[@revision]/path", "another form", fix)
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    revision = quote(match["revision"] or "main", safe="")
    path = quote("/".join(parts[2:]))
    return Location(f"{endpoint}/{kind}{parts[0]}/{match['name']}/resolve/{revision}/{path}", _authorization())


def _authorization() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}
