"""Whether a user and a password fit one of the bcrypt hashes of a web configuration file.

A check is slow on purpose: it runs in a thread, one at a time, and what fitted is remembered, so that a scraper costs
one check and a guesser no more than one core. Nothing is read or stored here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping

import bcrypt

AUTHORIZATION_CHARACTERS_MAX = 4096
REMEMBERED_MAX = 100
# Compared for users that there are not, so that the time taken does not tell who there is.
NOBODY = "$2b$10$CMx4fqgmwdskxbUl4XMkSuNrIK9EQ2vqRa7KSekO.FCVc8y/v/d0q"


class Logins:
    """Checks logins against changing tables of hashes; one a port."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._fitted: set[bytes] = set()
        self._turn = asyncio.Lock()

    async def fit(self, authorization: str, users: Mapping[str, str]) -> bool:
        """Say whether a header `Authorization: Basic ...` names one of the users with the right password."""
        login = parse_basic(authorization)
        if login is None:
            return False
        user, password = login
        hashed = users.get(user, NOBODY)
        mark = hmac.digest(self._key, b"\0".join((user.encode(), hashed.encode(), password)), hashlib.sha256)
        if mark in self._fitted:
            return True
        async with self._turn:
            fits = await asyncio.to_thread(_check, password, hashed)
        if not fits or user not in users:
            return False
        if len(self._fitted) >= REMEMBERED_MAX:
            self._fitted.clear()
        self._fitted.add(mark)
        return True


def parse_basic(authorization: str) -> tuple[str, bytes] | None:
    """Return user and password of a header for basic authentication, None where it is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic" or len(authorization) > AUTHORIZATION_CHARACTERS_MAX:
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def _check(password: bytes, hashed: str) -> bool:
    try:
        return bcrypt.checkpw(password, hashed.encode())
    except ValueError:
        return False  # longer than the 72 bytes that bcrypt takes: nothing such was ever hashed
