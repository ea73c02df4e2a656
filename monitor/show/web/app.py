"""The HTTP application: one small table of routes over views, metrics and documents; reads only.

Handlers are plain functions, run in a thread pool, so that a slow database never stops `/livez`.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from monitor.show.documents import alerts_document, history_document, runs_document
from monitor.show.views import AlertQuery, DriftQuery, QuestionError, RunView, SourceError, Sources
from monitor.show.visible_text import visible
from monitor.show.web.addresses import (
    ALERTS_PATH,
    COMPARE_PATH,
    MAP_PATH,
    TENSOR_PATH,
    names_of,
    pair_of,
    run_of,
)
from monitor.show.web.guard import Guard, WebSettings
from monitor.show.web.map_page import SNAPSHOTS_MAX as MAP_SNAPSHOTS_MAX
from monitor.show.web.pages import ALERTS_SHOWN_MAX, SNAPSHOTS_SHOWN_MAX, Asset, Pages, load_assets
from monitor.show.web.run_course import wanted_snapshots
from monitor.show.web.tensor_page import MOMENTS_SHOWN_MAX
from storage.records import AlertState

ROWS_MAX = 500
QUERY_CHARACTERS_MAX = 500
INCIDENTS_SHOWN_MAX = 50
GZIP_BYTES_MIN = 1024
_GZIP_LEVEL = 1  # a scrape should be quick; level 9 costs five times as much for a tenth less


def create_app(
    settings: WebSettings,
    sources: Sources,
    registry: CollectorRegistry,
    readiness: Callable[[], str | None],
    clock: Callable[[], float],
) -> ASGIApp:
    """Return the application; `readiness` says why the daemon cannot do its work yet, None when it can.

    Routes: `/`, `/runs/{run}`, `/tensor?run=&name=`, `/map?run=`, `/compare?old=&new=`, `/alerts`, `/metrics`,
    `/livez`, `/readyz`, `/api/v1/runs`, `/api/v1/runs/{run}/history`, `/api/v1/alerts`. A database that cannot answer
    gives 503 with the reason; `/metrics` goes on without runs.
    """
    assets = load_assets()
    handlers = _Handlers(
        sources,
        Pages(assets, settings.refresh_seconds),
        registry,
        readiness,
        clock,
        shows_reason=not settings.is_protected,  # the probes are open to all
    )
    routes = [
        Route("/", handlers.overview),
        Route("/runs/{run:path}", handlers.run),
        Route(TENSOR_PATH, handlers.tensor),
        Route(ALERTS_PATH, handlers.alerts),
        Route(COMPARE_PATH, handlers.compare),
        Route(MAP_PATH, handlers.map),
        Route("/metrics", handlers.metrics),
        Route("/livez", _livez),
        Route("/readyz", handlers.readyz),
        Route("/api/v1/runs", handlers.api_runs),
        Route("/api/v1/runs/{run:path}/history", handlers.api_history),
        Route("/api/v1/alerts", handlers.api_alerts),
        *(Route(asset.url, _asset_handler(asset)) for asset in assets.values()),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: handlers.http_error,
            SourceError: handlers.source_error,
            Exception: handlers.unexpected_error,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, settings)


async def _livez(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


def _asset_handler(asset: Asset) -> Callable[[Request], Response]:
    def handler(_request: Request) -> Response:
        return Response(
            asset.content, media_type=asset.media_type, headers={"Cache-Control": "public, max-age=31536000, immutable"}
        )

    return handler


class _Handlers:
    def __init__(
        self,
        sources: Sources,
        pages: Pages,
        registry: CollectorRegistry,
        readiness: Callable[[], str | None],
        clock: Callable[[], float],
        *,
        shows_reason: bool,
    ) -> None:
        self._sources = sources
        self._pages = pages
        self._registry = registry
        self._readiness = readiness
        self._shows_reason = shows_reason
        self._clock = clock

    def overview(self, _request: Request) -> Response:
        return HTMLResponse(self._pages.overview(self._sources.views(), self._clock()))

    def run(self, request: Request) -> Response:
        views = self._sources.views()
        view = _view_of(views, request.path_params["run"])
        snapshots = self._sources.history(view.run.run, SNAPSHOTS_SHOWN_MAX) or ()
        alerts = self._sources.alerts(AlertQuery(run=view.run.run, limit=ALERTS_SHOWN_MAX))
        course = self._sources.course(wanted_snapshots(snapshots))
        return HTMLResponse(self._pages.run(view, snapshots, alerts, self._clock(), course, views=views))

    def tensor(self, request: Request) -> Response:
        names = names_of(request.scope["query_string"])
        if names is None:
            raise HTTPException(400, "A tensor has an address with ?run= and &name=.")
        moments = self._sources.tensor(*names, MOMENTS_SHOWN_MAX)
        if not moments:
            raise HTTPException(404, "There is no tensor of this name in this run.")
        alerts = self._sources.alerts(AlertQuery(run=names[0], limit=ALERTS_SHOWN_MAX))
        points = self._sources.course([moments[-1].snapshot.id]).points
        parameters = [point.name for point in points]
        return HTMLResponse(self._pages.tensor(names[0], moments, parameters, alerts, self._clock()))

    def alerts(self, _request: Request) -> Response:
        return HTMLResponse(
            self._pages.alerts(self._sources.closer.happenings(None, INCIDENTS_SHOWN_MAX), self._clock())
        )

    def compare(self, request: Request) -> Response:
        numbers = pair_of(request.scope["query_string"])
        if numbers is None:
            raise HTTPException(400, "Two checkpoints have an address with ?old= and &new=, both numbers.")
        found = self._sources.closer.comparison(*numbers)
        if found is None:
            raise HTTPException(404, "One of these checkpoints is not known, or was not measured.")
        return HTMLResponse(self._pages.compare(found, self._clock()))

    def map(self, request: Request) -> Response:
        run = run_of(request.scope["query_string"])
        found = None if run is None else self._sources.closer.drift_map(run, MAP_SNAPSHOTS_MAX)
        if run is None or found is None:
            raise HTTPException(404, "There is no run of this name.")
        return HTMLResponse(self._pages.map(run, found, self._clock()))

    def metrics(self, request: Request) -> Response:
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        names = request.query_params.getlist("name[]")
        source: Any = self._registry.restricted_registry(names) if names else self._registry
        body = encoder(source)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if len(body) >= GZIP_BYTES_MIN and gzip_accepted(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, compresslevel=_GZIP_LEVEL)
            headers["Content-Encoding"] = "gzip"
        return Response(body, headers=headers)

    def readyz(self, _request: Request) -> Response:
        reason = self._readiness()
        if reason is None:
            return PlainTextResponse("ready\n")
        text = f"not ready: {visible(reason)}\n" if self._shows_reason else "not ready\n"
        return PlainTextResponse(text, status_code=503)

    def api_runs(self, _request: Request) -> Response:
        return _json(runs_document(self._sources.views()))

    def api_history(self, request: Request) -> Response:
        run = request.path_params["run"]
        query = _drift_query(request)
        try:
            journey = self._sources.journey(run, _limit(request), query)
        except QuestionError as error:
            raise HTTPException(400, str(error)) from error
        if journey is None:
            raise HTTPException(404, "no such run; /api/v1/runs lists them")
        return _json(history_document(run, journey, with_drift=query is not None))

    def api_alerts(self, request: Request) -> Response:
        state = request.query_params.get("state")
        if state is not None and state not in {known.value for known in AlertState}:
            raise HTTPException(400, f"state: one of {', '.join(known.value for known in AlertState)}")
        query = AlertQuery(
            run=request.query_params.get("run"), state=state, since=_since(request), limit=_limit(request)
        )
        return _json(alerts_document(self._sources.alerts(query)))

    def http_error(self, request: Request, error: Exception) -> Response:
        status, reason = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
        return self._error(request, status, "Not found" if status == 404 else "Not possible", reason)

    def source_error(self, request: Request, error: Exception) -> Response:
        return self._error(request, 503, "The database does not answer", str(error))

    def unexpected_error(self, request: Request, _error: Exception) -> Response:
        return self._error(request, 500, "Something went wrong here", "the daemon's log has the details")

    def _error(self, request: Request, status: int, title: str, reason: str) -> Response:
        path = request.url.path
        if path.startswith("/api/"):
            return _json({"error": reason or title}, status)
        if path in {"/", TENSOR_PATH, ALERTS_PATH, COMPARE_PATH, MAP_PATH} or path.startswith("/runs/"):
            return HTMLResponse(self._pages.message(title, reason), status_code=status)
        return PlainTextResponse(f"{reason or title}\n", status_code=status)


def _view_of(views: Sequence[RunView], run: str) -> RunView:
    for view in views:
        if view.run.run == run:
            return view
    raise HTTPException(404, "There is no run of this name.")


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(ROWS_MAX))
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and 1 <= int(text) <= ROWS_MAX):
        raise HTTPException(400, f"limit: a whole number from 1 to {ROWS_MAX}")
    return int(text)


def _drift_query(request: Request) -> DriftQuery | None:
    """Return from where drift is asked for; `tensor` alone means drift from the snapshot before."""
    against, tensor = request.query_params.get("against"), request.query_params.get("tensor")
    if against is None and tensor is None:
        return None
    if len(against or "") > QUERY_CHARACTERS_MAX or len(tensor or "") > QUERY_CHARACTERS_MAX:
        raise HTTPException(400, f"against, tensor: at most {QUERY_CHARACTERS_MAX} characters")
    return DriftQuery(against=against or "previous", tensors=tensor)


def _since(request: Request) -> float | None:
    text = request.query_params.get("since")
    if text is None:
        return None
    try:
        since = float(text)
    except ValueError:
        since = math.nan
    if not math.isfinite(since):
        raise HTTPException(400, "since: Unix seconds")
    return since


def _json(document: object, status: int = 200) -> Response:
    """Return JSON in ASCII, which any text survives, and without NaN, which is not JSON."""
    body = json.dumps(document, allow_nan=False, ensure_ascii=True, separators=(",", ":")) + "\n"
    return Response(body, status_code=status, media_type="application/json")
