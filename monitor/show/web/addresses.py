"""Addresses of the pages, safe for any name; one place, so that links and routes cannot drift apart."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

TENSOR_PATH = "/tensor"


def run_url(run: str) -> str:
    """Return the address of a run's page."""
    return f"/runs/{_quoted(run)}"


def tensor_url(run: str, tensor: str) -> str:
    """Return the address of a tensor's page; names travel as parameters, since both may hold slashes."""
    return f"{TENSOR_PATH}?run={_quoted(run)}&name={_quoted(tensor)}"


def names_of(query: bytes) -> tuple[str, str] | None:
    """Return (run, tensor) as `tensor_url` wrote them into a query string, None where they are not in it."""
    try:
        fields = parse_qs(query.decode("ascii"), errors="surrogatepass", max_num_fields=8)
    except ValueError:  # not ASCII, not UTF-8 under the escapes, or too many fields
        return None
    run, name = fields.get("run", []), fields.get("name", [])
    return (run[0], name[0]) if len(run) == len(name) == 1 else None


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")
