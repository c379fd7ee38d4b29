"""HTTP requests to slow, broken or hostile servers: bounded in size and time, retried where that may help.

    call = functools.partial(fetch, "GET", url, max_bytes=2**20, timeout=30)
    body = with_retries(call, attempts=5, backoff=1.0, stop=threading.Event())

Failures are either Transient (another attempt may help) or Refused (it will not).
"""

import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from data.encoders import require
from utils import UserError

requests = require("requests")

# Longest pause before another attempt, in seconds.
MAX_WAIT = 120.0

T = TypeVar("T")


class Refused(Exception):
    """A failure that another attempt will not change. status: the HTTP status, or 0."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class Transient(Exception):
    """A failure that another attempt may overcome. wait: seconds that the server asked for, or 0."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def check_url(url: Any, where: str) -> None:
    """Raise UserError, beginning with `where`, unless url is an http or https URL."""
    pattern = r"https?://[^\s/?#]+[^\s]*"
    if not isinstance(url, str) or len(url) > 4000 or not re.fullmatch(pattern, url, re.IGNORECASE):
        raise UserError(f"{where}: '{str(url)[:60]}' is not an http:// or https:// URL")


_local = threading.local()


def session() -> Any:
    """The requests session of this thread, which reuses its connections."""
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    return _local.session


def fetch(method: str, url: str, *, max_bytes: int, timeout: float, **options: Any) -> bytes:
    """Body of a response with status 200, read within `timeout` seconds and of at most `max_bytes`.

    options: those of requests.request. Raises Transient for a lost connection, a timeout, status 408, 425,
    429 or 5xx, and an incomplete body; Refused for anything else.
    """
    deadline = time.monotonic() + timeout
    failures = requests.exceptions
    try:
        with session().request(method, url, timeout=timeout, stream=True, **options) as response:
            check_status(response)
            return read_body(response, max_bytes, deadline)
    # InvalidSchema: a redirect to another protocol, such as file://.
    except (failures.InvalidSchema, failures.InvalidURL, failures.TooManyRedirects) as error:
        raise Refused(str(error)[:200]) from None
    except (failures.RequestException, OSError) as error:
        # requests wraps the error of urllib3, which wraps the cause.
        wrapped = error.args[0] if error.args else error
        cause = str(getattr(wrapped, "reason", wrapped)).split(": ")[-1]
        raise Transient(f"{type(error).__name__}: {cause}"[:200]) from None


def check_status(response: Any) -> None:
    """Raise Transient or Refused unless the status is 200."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise Transient(f"status {status}", float(wait) if re.fullmatch(r"[0-9]{1,4}", wait) else 0.0)
    if status != 200:
        raise Refused(f"status {status} {response.reason or ''}".strip(), status)


def read_body(response: Any, max_bytes: int, deadline: float) -> bytes:
    """The body of a streamed response.

    Raises Refused if it is too long, Transient if it is slow or incomplete.
    """
    body = bytearray()
    try:
        while part := response.raw.read1(2**16, decode_content=True):
            body += part
            if len(body) > max_bytes:
                raise Refused(f"longer than {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise Transient("timed out")
    except (Refused, Transient):
        raise
    # urllib3 raises exceptions of its own here: IncompleteRead, ReadTimeoutError, DecodeError, ...
    except Exception as error:
        raise Transient(f"{type(error).__name__}: {error}"[:200]) from None
    length = response.headers.get("Content-Length", "")
    # The length of an encoded body is that before decoding.
    if length.isdigit() and "Content-Encoding" not in response.headers and len(body) < int(length):
        raise Transient(f"broke off after {len(body)} of {length} bytes")
    return bytes(body)


def with_retries(call: Callable[[], T], attempts: int, backoff: float, stop: threading.Event) -> T:
    """Result of call(), repeated while it raises Transient, with pauses of backoff, 2 backoff, ... seconds.

    A longer pause that the server asks for is respected, up to MAX_WAIT. stop: an event that ends the pauses.
    Raises the last Transient after `attempts` calls, and any other exception of `call` at once.
    """
    for attempt in range(attempts):
        try:
            return call()
        except Transient as error:
            wait = min(max(error.wait, backoff * 2**attempt), MAX_WAIT)
            if attempt + 1 == attempts or stop.wait(wait):
                raise
    raise ValueError("attempts must be at least 1")
