"""Addresses of the pages, safe for any name; one place, so that links and routes cannot drift apart."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

TENSOR_PATH = "/tensor"
MAP_PATH = "/map"
COMPARE_PATH = "/compare"
ALERTS_PATH = "/alerts"
_NUMBER_DIGITS_MAX = 18


def run_url(run: str) -> str:
    """Return the address of a run's page."""
    return f"/runs/{_quoted(run)}"


def tensor_url(run: str, tensor: str) -> str:
    """Return the address of a tensor's page; names travel as parameters, since both may hold slashes."""
    return f"{TENSOR_PATH}?run={_quoted(run)}&name={_quoted(tensor)}"


def map_url(run: str) -> str:
    """Return the address of the page that shows a run from above."""
    return f"{MAP_PATH}?run={_quoted(run)}"


def run_of(query: bytes) -> str | None:
    """Return the run that `map_url` wrote into a query string, None where it is not in it."""
    fields = _fields(query)
    run = fields.get("run", [])
    return run[0] if len(run) == 1 else None


def pair_of(query: bytes) -> tuple[int, int] | None:
    """Return the numbers of two snapshots (`?old=1&new=2`), None where a query string does not hold them."""
    fields = _fields(query)
    texts = [fields.get(name, []) for name in ("old", "new")]
    if any(len(found) != 1 or not found[0].isascii() or not found[0].isdecimal() for found in texts):
        return None
    if any(len(found[0]) > _NUMBER_DIGITS_MAX for found in texts):
        return None
    return int(texts[0][0]), int(texts[1][0])


def names_of(query: bytes) -> tuple[str, str] | None:
    """Return (run, tensor) as `tensor_url` wrote them into a query string, None where they are not in it."""
    fields = _fields(query)
    run, name = fields.get("run", []), fields.get("name", [])
    return (run[0], name[0]) if len(run) == len(name) == 1 else None


def _fields(query: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(query.decode("ascii"), errors="surrogatepass", max_num_fields=8)
    except ValueError:  # not ASCII, not UTF-8 under the escapes, or too many fields
        return {}


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")
