"""Requests to servers that may be slow, broken or hostile: bounded in size and time, tried again where that may help."""

import re
import threading
import time

from data.encoders import require
from utils import UserError

requests = require("requests")


class Refused(Exception):
    """An answer that asking again will not change. status: the HTTP status, or 0."""

    def __init__(self, reason, status=0):
        super().__init__(reason)
        self.status = status


class Transient(Exception):
    """A failure that may pass. wait: seconds that the server asked for, or 0."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


def check_url(url, where):
    """Raise UserError unless url is an http or https address."""
    if (
        not isinstance(url, str)
        or not re.fullmatch(r"https?://[^\s/?#]+[^\s]*", url, re.IGNORECASE)
        or len(url) > 4000
    ):
        raise UserError(f"{where}: '{str(url)[:60]}' is no http:// or https:// address")


_local = threading.local()


def session():
    """This thread's connections, which it may use again."""
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    return _local.session


def fetch(method, url, *, most_bytes, timeout, **options):
    """Body (bytes) of an answer with status 200, read within `timeout` seconds and of at most `most_bytes`.

    Raises Transient for a lost connection, time out, 408, 425, 429, 5xx or a body cut short; Refused for anything else.
    """
    deadline = time.monotonic() + timeout
    try:
        with session().request(method, url, timeout=timeout, stream=True, **options) as answer:
            check_status(answer)
            return read_body(answer, most_bytes, deadline)
    except requests.exceptions.InvalidSchema as error:  # a redirect to file:// and the like
        raise Refused(str(error)[:200]) from None
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
        raise Refused(str(error)[:200]) from None
    except (requests.exceptions.RequestException, OSError) as error:
        cause = (
            error.args[0] if error.args else error
        )  # requests wraps urllib3's error, which wraps the cause
        raise Transient(
            f"{type(error).__name__}: {str(getattr(cause, 'reason', cause)).split(': ')[-1]}"[:200]
        ) from None


def check_status(answer):
    """Raise Transient or Refused unless an answer's status is 200."""
    if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
        wait = answer.headers.get("Retry-After", "")
        raise Transient(
            f"status {answer.status_code}", float(wait) if re.fullmatch(r"[0-9]{1,4}", wait) else 0.0
        )
    if answer.status_code != 200:
        raise Refused(f"status {answer.status_code} {answer.reason or ''}".strip(), answer.status_code)


def read_body(answer, most_bytes, deadline):
    """The body of a streamed answer. Raises Refused if it is too long, Transient if it takes too long or breaks off."""
    body = bytearray()
    try:
        while part := answer.raw.read1(2**16, decode_content=True):
            body += part
            if len(body) > most_bytes:
                raise Refused(f"longer than {most_bytes} bytes")
            if time.monotonic() > deadline:
                raise Transient("timed out")
    except (Refused, Transient):
        raise
    except (
        Exception
    ) as error:  # urllib3 raises its own errors here: IncompleteRead, ReadTimeoutError, DecodeError, ...
        raise Transient(f"{type(error).__name__}: {error}"[:200]) from None
    told = answer.headers.get("Content-Length", "")
    if told.isdigit() and "Content-Encoding" not in answer.headers and len(body) < int(told):
        raise Transient(f"broke off after {len(body)} of {told} bytes")
    return bytes(body)


def persistently(call, attempts, backoff, stop):
    """call() until it raises no Transient, at most `attempts` times, waiting backoff, 2 backoff, 4 backoff, ... seconds.

    A wait that the server asks for is kept, up to two minutes. stop: a threading.Event that ends the waiting.
    Raises the last Transient, or what else call raises.
    """
    for attempt in range(attempts):
        try:
            return call()
        except Transient as error:
            if attempt + 1 == attempts or stop.wait(min(max(error.wait, backoff * 2**attempt), 120.0)):
                raise
