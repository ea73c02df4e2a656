"""Certificates made in a test: an authority, a server's and a client's, and the web configuration that uses them."""

from __future__ import annotations

import os
import ssl
from functools import cached_property
from pathlib import Path
from typing import Any

import bcrypt
import trustme
import yaml

PASSWORD = "correct horse"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()


class Certificates:
    """One directory with an authority's files; `ca` signs what is made."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(directory / "ca.pem")
        self.issue("server", "127.0.0.1")
        self.issue("client", "prometheus@example.org")

    def issue(self, name: str, identity: str) -> None:
        """Write NAME.pem and NAME.key anew, each replaced whole."""
        made = self.ca.issue_cert(identity)
        for blob, file in ((made.private_key_pem, f"{name}.key"), (made.cert_chain_pems[0], f"{name}.pem")):
            unfinished = self.directory / f"{file}.new"
            blob.write_to_path(unfinished)
            os.replace(unfinished, self.directory / file)

    @cached_property
    def web_file(self) -> Path:
        return self.directory / "web.yml"

    def write(self, tls: dict[str, Any] | None = None, **sections: Any) -> Path:
        """Write the web configuration file; paths are relative to it, as they may be."""
        server = {"cert_file": "server.pem", "key_file": "server.key", **(tls or {})}
        unfinished = self.directory / "web.yml.new"
        unfinished.write_text(yaml.safe_dump({"tls_server_config": server, **sections}))
        os.replace(unfinished, self.web_file)
        return self.web_file

    def client(self, *, with_certificate: bool = False, **versions: ssl.TLSVersion) -> ssl.SSLContext:
        """Return a context that trusts the authority."""
        context = ssl.create_default_context(cafile=self.directory / "ca.pem")
        if with_certificate:
            context.load_cert_chain(self.directory / "client.pem", self.directory / "client.key")
        for name, version in versions.items():
            setattr(context, name, version)
        return context
