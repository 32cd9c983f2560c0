"""HTTP endpoints about the model and access to it: list of models, list of voices, client secrets for
browsers."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from echat.serve.app_state import App
from echat.serve.http.errors import APIError
from echat.serve.http.request_slots import client_name
from echat.serve.keys import Keys
from echat.serve.protocol.json_text import Body
from echat.serve.protocol.session import Session
from echat.serve.protocol.session_update import update
from echat.serve.protocol.size_limits import check_text
from echat.serve.settings import Limits

PER_SESSION_FIELDS = ("id", "object", "expires_at")  # set anew for every session, not kept in a secret


class Expiry(BaseModel):
    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(600, ge=10, le=7200)


class SecretRequest(Body):
    """Request for a short-lived key that a browser may hold."""

    expires_after: Expiry = Expiry()
    session: dict[str, Any] = Field(default_factory=dict)


def add_models(api: FastAPI, app: App, keys: Keys) -> None:
    """Add the routes."""
    row = {"id": app.model, "object": "model", "created": int(time.time()), "owned_by": "echat"}

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [row]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != app.model:
            raise APIError(404, f"model {name[:80]!r} is not served here", "model_not_found", "model")
        return row

    @api.get("/v1/audio/voices")
    async def voices() -> dict[str, Any]:
        return {"voices": [{"id": name, "name": name} for name in app.voices]}

    @api.post("/v1/realtime/client_secrets")
    async def secrets(payload: SecretRequest, request: Request) -> dict[str, Any]:
        session, refused = update(app.new_session(), payload.session)
        if refused:
            raise refused[0]
        limits = app.config.limits
        secret, made = keys.new_secret(
            payload.expires_after.seconds,
            _session_json(session, limits),
            request.scope.get("echat.key"),
            client_name(request),
            limits.secrets_per_key,
        )
        return {"value": secret, "expires_at": made.expires, "session": session.dump()}


def _session_json(session: Session, limits: Limits) -> str:
    """The session settings that a secret carries, as JSON of limited size."""
    check_text("session.instructions", session.instructions, limits)
    values = {name: value for name, value in session.dump().items() if name not in PER_SESSION_FIELDS}
    text, most = json.dumps(values), limits.fields_bytes // 4
    if len(text) > most:
        raise APIError(
            400,
            f"session: expected at most {most} bytes (a quarter of limits.fields_bytes), "
            f"found {len(text)}; send less",
            "session_too_large",
            "session",
        )
    return text
