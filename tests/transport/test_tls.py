"""TLS: real certificates, real clients, on real sockets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio
import trustme

from modelreg.transport import Limits, Server
from modelreg.transport.tls import TlsListener, TlsUnusable, make_context

from .service import service
