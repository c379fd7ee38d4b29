"""The border to the network: nothing else in this project opens a connection (SECURITY.md).

    body = fetch("GET", url, PUBLIC, max_bytes=2**20, timeout=30)
    body = with_retries(functools.partial(fetch, ...), attempts=5, backoff=1.0, stop=threading.Event())
    with open_url("GET", url, PUBLIC, timeout=30) as response:
        for block in response.blocks(timeout=30): ...

A request goes to an address that was checked before, leaves with the headers named here and no others, and
takes nothing from the environment: no ~/.netrc, no cookies, no proxy but that of --proxy. Redirects are
followed one at a time, each under the same rules, without reading their bodies.
Failures are either Transient (another attempt may help) or Refused (it will not).
"""

import contextlib
import dataclasses
import email.utils
import functools
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from data.addresses import is_loopback, is_public
from utils import UserError

# Longest pause before another attempt, in seconds.
MAX_WAIT = 120.0
# Redirects that are followed.
MAX_REDIRECTS = 5
# Bytes read at a time.
BLOCK = 1 << 16
MAX_URL = 4000
# What every request says beside its Host.
HEADERS = {"User-Agent": "RecGOAT", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}

T = TypeVar("T")


class Refused(Exception):
    """A failure that another attempt will not change. status: the HTTP status, or 0."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class Forbidden(Refused):
    """A request that this module does not make, or a server that it does not believe."""


class Transient(Exception):
    """A failure that another attempt may overcome. wait: seconds that the server asked for, or 0."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


# ---------------------------------------------------------------- URLs


@dataclasses.dataclass(frozen=True)
class Target:
    """The parts of a URL that a request needs."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        """The Host header: without the port where it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == usual_port(self.scheme) else f"{host}:{self.port}"


def usual_port(scheme: str) -> int:
    """The port of a URL that names none."""
    return 443 if scheme == "https" else 80


def parse_url(url: Any) -> Target:
    """The parts of an http or https URL. Raises ValueError, saying what is wrong with it."""
    if not isinstance(url, str) or len(url) > MAX_URL or not url.isprintable() or " " in url:
        raise ValueError("is not an http:// or https:// URL")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an http:// or https:// URL")
    if "@" in parts.netloc:
        raise ValueError("contains a user name, which would be sent to the server; remove it")
    # UnicodeError, which idna raises for impossible names, is a ValueError.
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    # idna turns some characters into spaces and punctuation.
    if not re.fullmatch("[a-z0-9._:%-]+", host):
        raise ValueError("is not an http:// or https:// URL")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # Escapes whatever is not printable ASCII, and leaves the escapes that are there.
    path = quote(path, safe="".join(map(chr, range(33, 127))))
    return Target(parts.scheme, host, parts.port or usual_port(parts.scheme), path)


def check_url(url: Any, where: str) -> None:
    """Raise UserError, beginning with `where`, unless url is an http or https URL without a user name."""
    try:
        parse_url(url)
    except ValueError as error:
        shown = server_text(re.sub("//[^/]*@", "//...@", str(url)), 60)
        raise UserError(f"{where}: '{shown}' {error}") from None


def check_key(key: str, where: str) -> None:
    """Raise UserError, beginning with `where`, for a secret that cannot stand in a header.

    Other modules would do so with a message that shows it.
    """
    if not re.fullmatch("[!-~]*", key):
        raise UserError(f"{where} holds spaces, line breaks or other characters of no key; set it again")


def next_url(url: str, location: str) -> str:
    """The URL that a redirect leads to. Raises Forbidden if it must not be followed."""
    # Servers send UTF-8, which http.client takes for Latin-1.
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode()
    try:
        new = urljoin(url, location)
        scheme = parse_url(new).scheme
    except ValueError as error:
        raise Forbidden(f"it redirects to {server_text(location, 100)}, which {error}") from None
    if (urlsplit(url).scheme, scheme) == ("https", "http"):
        raise Forbidden(f"it redirects from https to {server_text(new, 100)}, which is not allowed")
    return new


def server_text(text: str, length: int) -> str:
    """The first characters of a text from a server, without those that could control a terminal."""
    return re.sub(r"[^ -~]", "?", text[:length])


# ---------------------------------------------------------------- addresses


@dataclasses.dataclass(frozen=True)
class Access:
    """What a request and its redirects may reach beside public addresses, and by which way."""

    # A URL that the user named: its host may have any address.
    named: str = ""
    # Any host may (--allow_private 1).
    allow_private: bool = False
    # An http:// URL: what is not on this machine is reached through this proxy (--proxy URL).
    proxy: str = ""

    def allows_private(self, target: Target) -> bool:
        """Whether this host may have a private address."""
        return self.allow_private or (bool(self.named) and target.origin == parse_url(self.named).origin)


# For URLs that the user did not name, such as those of a downloaded list.
PUBLIC = Access()


def look_up(target: Target) -> list[tuple[Any, ...]]:
    """What socket.getaddrinfo says of the host. Raises OSError if there is no such host."""
    # UnicodeError, for labels of more than 63 characters, is a ValueError.
    return socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)


def resolve(target: Target, access: Access, has_key: bool) -> list[tuple[Any, ...]]:
    """What socket.getaddrinfo says of the host, if all of its addresses may be contacted.

    has_key: whether the request carries a secret. Raises Forbidden, or OSError if there is no such host. With
    a proxy, which may know other hosts than this machine, the list is then empty.
    """
    try:
        found = look_up(target)
    except OSError:
        if not access.proxy:
            raise
        found = []
    addresses = [str(entry[4][0]) for entry in found]
    private = [address for address in addresses if not is_public(address)]
    if private and not access.allows_private(target):
        raise Forbidden(
            f"{target.host} has the private address {private[0]}; --allow_private 1 allows such addresses"
        )
    if has_key and target.scheme == "http" and not all(map(is_loopback, addresses)):
        raise Forbidden(f"would send the API key unencrypted to {addresses[0]}; use https")
    return found


# ---------------------------------------------------------------- connections


class Timed:
    """Mixin of sockets: every operation fails at a deadline, however slowly the other side sends or reads."""

    # Value of time.monotonic().
    deadline = float("inf")

    def arm(self, share: int = 1) -> None:
        """Set the timeout of the next operation to a share of the time that is left. Raises TimeoutError."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left / share)  # type: ignore[attr-defined]

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """As of socket; http.client reads with this alone."""
        self.arm()
        return super().recv_into(*args, **kwargs)  # type: ignore[misc]

    def send(self, *args: Any, **kwargs: Any) -> int:
        """As of socket; SSLSocket.sendall calls it."""
        self.arm()
        return super().send(*args, **kwargs)  # type: ignore[misc]

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        """As of socket, whose timeout is that of the whole call."""
        self.arm()
        super().sendall(*args, **kwargs)  # type: ignore[misc]


class TimedSocket(Timed, socket.socket):
    """A TCP socket with a deadline."""


class TimedTLS(Timed, ssl.SSLSocket):
    """A TLS socket with a deadline."""


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Checks certificates and host names against the authorities of this machine."""
    context = ssl.create_default_context()
    context.sslsocket_class = TimedTLS
    return context


def connect(found: list[tuple[Any, ...]], deadline: float, prepare: Callable[[TimedSocket], T]) -> T:
    """prepare(a socket to the first of these addresses that answers). Raises OSError, and as `prepare`."""
    failure: OSError = OSError("no address")
    for i, (family, kind, protocol, _, address) in enumerate(found):
        plain = TimedSocket(family, kind, protocol)
        try:
            plain.deadline = deadline
            plain.arm(share=len(found) - i)
            # The address that was checked, not the name: another look-up could give another address.
            plain.connect(address)
            return prepare(plain)
        except OSError as error:
            plain.close()
            failure = error
        except BaseException:
            plain.close()
            raise
    raise failure


def secured(plain: TimedSocket, target: Target) -> Any:
    """A connection to a host, with TLS for https. Raises OSError."""
    if target.scheme == "http":
        return plain
    plain.arm()
    secure: Any = tls_context().wrap_socket(plain, server_hostname=target.host)
    secure.deadline = plain.deadline
    return secure


def tunnelled(plain: TimedSocket, target: Target) -> Any:
    """A connection to an https host through a connection to a proxy. Raises OSError, Transient or Refused."""
    place = f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
    plain.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
    answer = http.client.HTTPResponse(plain, method="CONNECT")
    answer.begin()
    if is_transient(answer.status):
        raise Transient(f"the proxy answers with status {answer.status}")
    if answer.status != 200:
        raise Forbidden(
            f"the proxy answers with status {answer.status} {server_text(answer.reason, 80)}".strip()
        )
    return secured(plain, target)


def open_route(target: Target, access: Access, has_key: bool, deadline: float) -> tuple[Any, str]:
    """A connection to a host, direct or through a proxy, and what the request line asks for.

    Raises OSError, Transient or Forbidden.
    """
    found = resolve(target, access, has_key)
    on_this_machine = bool(found) and all(is_loopback(str(entry[4][0])) for entry in found)
    if not access.proxy or on_this_machine:
        return connect(found, deadline, functools.partial(secured, target=target)), target.path
    proxy = look_up(parse_url(access.proxy))
    if target.scheme == "https":
        return connect(proxy, deadline, functools.partial(tunnelled, target=target)), target.path
    if has_key:
        raise Forbidden("would send the API key unencrypted through the proxy; use https")
    return connect(proxy, deadline, lambda plain: plain), f"http://{target.host_header}{target.path}"


# ---------------------------------------------------------------- one request


class Response:
    """The answer to a request, whose body has not been read. Close it, or use it as a context manager."""

    def __init__(self, sock: Any, answer: http.client.HTTPResponse) -> None:
        self.sock, self.answer = sock, answer
        self.status, self.headers, self.reason = answer.status, answer.headers, server_text(answer.reason, 80)
        # Bytes that the server announces, None if it does not. http.client counts its own number down.
        self.length: int | None = answer.length

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, whatever is left of the body."""
        self.answer.close()
        self.sock.close()

    def blocks(self, timeout: float = 0.0) -> Iterator[bytes]:
        """Yield the body in parts of up to BLOCK bytes.

        timeout: seconds for every BLOCK bytes; 0: the whole body within the time of the request.
        It ends early where the server does: compare its size with `length`. Raises Transient if it is slow.
        """
        size = next_deadline = 0
        while True:
            if timeout and size >= next_deadline:
                self.sock.deadline, next_deadline = time.monotonic() + timeout, size + BLOCK
            with network_errors():
                part = self.answer.read1(BLOCK)
            if not part:
                break
            size += len(part)
            yield part


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
    """Turn the errors of sockets, TLS and HTTP into Forbidden or Transient."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Forbidden(
            f"its certificate is not valid ({error.verify_message}); check the clock and the certificates of "
            "this machine"
        ) from None
    except TimeoutError:
        raise Transient("timed out") from None
    # ValueError: impossible host names, and numbers that are none.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Transient(server_text(f"{type(error).__name__}: {reason}", 200)) from None


def request(
    method: str, url: str, headers: Mapping[str, str], body: bytes | None, access: Access, deadline: float
) -> Response:
    """Send one request and read the head of the answer. Raises Forbidden or Transient."""
    target = parse_url(url)
    with network_errors(), contextlib.ExitStack() as undo:
        sock, wanted = open_route(target, access, "Authorization" in headers, deadline)
        undo.callback(sock.close)
        connection = http.client.HTTPConnection(target.host, target.port)
        # Given a socket, http.client opens none.
        connection.sock = sock
        connection.request(method, wanted, body, {"Host": target.host_header, **HEADERS, **headers})
        answer = connection.getresponse()
        undo.pop_all()
        return Response(sock, answer)


def open_url(
    method: str,
    url: str,
    access: Access,
    *,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Response:
    """The answer to a request after its redirects, of any other status.

    timeout: seconds for all of it. Redirects are answers like others if there is something that another
    server must not get: a body or an Authorization header. Raises Forbidden or Transient.
    """
    deadline, headers = time.monotonic() + timeout, headers or {}
    redirects = 0 if body is not None or "Authorization" in headers else MAX_REDIRECTS
    for _ in range(redirects + 1):
        response = request(method, url, headers, body, access, deadline)
        location = response.headers.get("Location")
        if not redirects or response.status not in (301, 302, 303, 307, 308) or not location:
            return response
        # The body of a redirect may have no end.
        response.close()
        url = next_url(url, location)
    raise Refused(f"more than {redirects} redirects")


# ---------------------------------------------------------------- whole bodies


def fetch(
    method: str,
    url: str,
    access: Access,
    *,
    max_bytes: int,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """Body of a response with status 200, read within `timeout` seconds and of at most `max_bytes`.

    Raises Transient for a lost connection, a timeout, status 408, 425, 429 or 5xx, and an incomplete body;
    Refused for anything else.
    """
    with open_url(method, url, access, timeout=timeout, headers=headers, body=body) as response:
        check_status(response)
        if (response.length or 0) > max_bytes:
            raise Refused(f"longer than {max_bytes} bytes")
        content = bytearray()
        for block in response.blocks():
            content += block
            if len(content) > max_bytes:
                raise Refused(f"longer than {max_bytes} bytes")
        if response.length is not None and len(content) < response.length:
            raise Transient(f"broke off after {len(content)} of {response.length} bytes")
        return bytes(content)


def check_status(response: Response) -> None:
    """Raise Transient or Refused unless the status is 200 and the body is sent as it is."""
    if is_transient(response.status):
        raise Transient(f"status {response.status}", retry_after(response.headers))
    if response.status == 407:
        raise Forbidden("the proxy asks for a password, which cannot be given")
    if response.status != 200:
        raise Refused(f"status {response.status} {response.reason}".strip(), response.status)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Refused(f"sent with Content-Encoding {server_text(encoding, 40)}, which was not asked for")


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 425, 429) or status >= 500


def retry_after(headers: Any) -> float:
    """Seconds that a server asks to wait, 0 if it does not say."""
    value = headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def post_json(url: str, value: object, key: str, access: Access, *, max_bytes: int, timeout: float) -> bytes:
    """Body of the answer to a POST of `value` as JSON. Raises as `fetch` and `check_key`.

    key: bearer token, "" for none.
    """
    check_key(key, "the API key")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = json.dumps(value).encode()
    return fetch("POST", url, access, max_bytes=max_bytes, timeout=timeout, headers=headers, body=body)


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
