"""data/web.py against servers that redirect, stream for ever, stall, lie, or ask for credentials."""

import contextlib
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_server import for_ever, message, ok, raw_server, redirect

from data import web
from data.network_flags import proxy_url
from data.web import PUBLIC, Access, Forbidden, Refused, Transient
from utils import UserError

LOCAL = Access(allow_private=True)


def get(url, access=LOCAL, max_bytes=10**6, timeout=5.0, **options):
    return web.fetch("GET", url, access, max_bytes=max_bytes, timeout=timeout, **options)


def names(monkeypatch, table):
    """Let host names have the addresses of a table {name: [addresses, those of the next look-up, ...]}."""
    asked = []

    def getaddrinfo(host, port, **_):
        asked.append(host)
        answers = table[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(web.socket, "getaddrinfo", getaddrinfo)
    return asked


def connections(monkeypatch):
    """Refuse every connection; the list gets the addresses."""
    reached = []

    def connect(_, address):
        reached.append(address[0])
        raise ConnectionRefusedError("refused by the test")

    monkeypatch.setattr(web.TimedSocket, "connect", connect)
    return reached


# ---------------------------------------------------------------- what leaves the machine


def test_a_request_byte_for_byte():
    with raw_server(ok(b"hello")) as server:
        assert get(f"{server.url}/a b?q=ä&x=%2F#part".replace(" ", "%20")) == b"hello"
        expected = (
            "GET /a%20b?q=%C3%A4&x=%2F HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{server.port}\r\n"
            "User-Agent: RecGOAT\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
        )
        assert server.received == [expected.encode()]


@pytest.mark.parametrize("scheme", ["Basic", "Digest", "Negotiate", "Bearer"])
def test_a_server_that_asks_for_credentials_gets_none(scheme, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password sesame\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    demand = message("401 Unauthorized", f'WWW-Authenticate: {scheme} realm="x"', "Content-Length: 0")
    with raw_server(demand) as server, pytest.raises(Refused, match="status 401 Unauthorized"):
        get(server.url)
    assert len(server.received) == 1 and b"uthorization" not in server.received[0]


def test_cookies_are_forgotten():
    with raw_server(lambda connection, request: connection.sendall(answer(request))) as server:

        def answer(request):
            if b"GET /first" in request:
                return redirect("/second", "Set-Cookie: id=1")
            return ok(b"x", "Set-Cookie: id=2")

        assert get(f"{server.url}/first") == get(f"{server.url}/second") == b"x"
    assert len(server.received) == 3 and not any(b"ookie" in request for request in server.received)


def test_a_redirect_does_not_carry_a_key_or_a_body():
    with raw_server(redirect("/elsewhere")) as server:
        with pytest.raises(Refused, match="status 302"):
            get(server.url, headers={"Authorization": "Bearer sesame"})
        with pytest.raises(Refused, match="status 302"):
            web.post_json(server.url, {"a": 1}, "", LOCAL, max_bytes=9, timeout=5)
    assert len(server.received) == 2


def test_a_key_goes_unencrypted_to_this_machine_alone(monkeypatch):
    """What counts is the address: a name such as localhost may lead anywhere."""
    names(monkeypatch, {"localhost": [["93.184.215.14"]], "here": [["127.0.0.1", "192.168.0.7"]]})
    reached = connections(monkeypatch)
    for host in ("localhost", "here"):
        with pytest.raises(Forbidden, match="unencrypted"):
            web.post_json(f"http://{host}/v1", {}, "sesame", LOCAL, max_bytes=9, timeout=5)
    assert reached == []


@given(st.text(max_size=60) | st.from_regex(r"https?://[^@]{0,40}", fullmatch=True))
@settings(max_examples=300, deadline=None)
def test_no_url_can_add_a_line_to_a_request(url):
    with contextlib.suppress(ValueError):
        target = web.parse_url(url)
        assert target.scheme in ("http", "https") and 0 < target.port < 2**16
        assert all("!" <= c <= "~" for c in target.host_header + target.path) and target.path[0] == "/"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:sesame@host/",
        "http://me@host/",
        "http://good.example\\@bad.example/",
        "http://",
        "http:///x",
        "http://a:port/",
        "http://a:99999/",
        "http://[::",
        "http://a/\r\nX: y",
        "http://a/\x1b[31m",
        "http://a/\u202e",
        "//a/b",
        "http://\u00b8/",
        "file:///etc/passwd",
        "http://" + "a" * 5000,
        None,
        7,
    ],
)
def test_bad_urls(url):
    with pytest.raises(UserError, match=r"^urls.tsv, line 3: ") as error:
        web.check_url(url, "urls.tsv, line 3")
    assert str(error.value).isprintable() and "sesame" not in str(error.value)


def test_other_scripts():
    assert web.parse_url("https://bücher.example/ü").host == "xn--bcher-kva.example"
    assert web.parse_url("http://[::1]:80/").host_header == "[::1]"


# ---------------------------------------------------------------- addresses

PRIVATE = [
    "127.0.0.1",
    "localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "0.0.0.0",
    # Other spellings of 127.0.0.1, which the resolver of the C library understands.
    "2130706433",
    "0x7f.1",
    "127.1",
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "[fe80::1]",
    "[fd00::1]",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused(host):
    """Directly, and where a server that the user named redirects to."""
    with raw_server(ok(b"secret")) as inside:
        url = f"http://{host}:{inside.port}/latest/meta-data"
        with pytest.raises(Forbidden, match=r"private address .*--allow_private 1"):
            get(url, PUBLIC)
        with raw_server(redirect(url)) as outside:
            with pytest.raises(Forbidden, match=r"private address .*--allow_private 1"):
                get(outside.url, Access(named=outside.url))
            assert len(outside.received) == 1
    assert inside.received == []


def test_a_named_server_may_redirect_to_itself_and_the_flag_allows_the_rest():
    with raw_server(ok(b"x")) as inside:
        answer = lambda connection, request: connection.sendall(  # noqa: E731
            ok(b"y") if b" /own " in request else redirect("/own" if b" /a " in request else inside.url)
        )
        with raw_server(answer) as named:
            assert get(f"{named.url}/a", Access(named=f"{named.url}/v1")) == b"y"
            assert get(f"{named.url}/b", LOCAL) == b"x"
            with pytest.raises(Forbidden, match="private"):
                get(f"{named.url}/b", Access(named=named.url))


def test_one_private_address_among_public_ones_is_enough(monkeypatch):
    names(monkeypatch, {"both.example": [["93.184.215.14", "10.0.0.1"]]})
    reached = connections(monkeypatch)
    with pytest.raises(Forbidden, match=r"private address 10\.0\.0\.1"):
        get("http://both.example/", PUBLIC)
    assert reached == []


def test_the_address_that_was_checked_is_the_one_that_is_contacted(monkeypatch):
    """DNS rebinding: the second look-up of the name would give an address of this machine."""
    asked = names(monkeypatch, {"rebind.example": [["93.184.215.14"], ["127.0.0.1"]]})
    reached = connections(monkeypatch)
    with pytest.raises(Transient, match="refused by the test"):
        get("http://rebind.example/", PUBLIC)
    assert reached == ["93.184.215.14"] and asked == ["rebind.example"]
    # The second request looks the name up again, and checks it again.
    with pytest.raises(Forbidden, match="private"):
        get("http://rebind.example/", PUBLIC)
    assert reached == ["93.184.215.14"]


def test_the_next_address_is_tried(monkeypatch):
    with raw_server(ok(b"x")) as server:
        names(monkeypatch, {"two.example": [["127.0.0.2", "127.0.0.1"]]})
        # The server listens on 127.0.0.1 alone.
        assert get(f"http://two.example:{server.port}/") == b"x"


# ---------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_the_body_of_a_redirect_is_not_read(status):
    """A gigabyte, announced or not: what the kernel buffers leaves the server, and no more."""
    sent = []

    def answer(connection, request):
        if b"GET /next" in request:
            connection.sendall(ok(b"x"))
        else:
            head = message(status, "Location: /next", f"Content-Length: {10**9}")
            sent.append(for_ever(connection, head, b"0" * 2**16))

    with raw_server(answer) as server:
        assert get(server.url) == b"x"
        wait_until(lambda: sent)
    assert sent[0] * 2**16 < 2**25


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_redirects_end():
    with raw_server(redirect("/again")) as server, pytest.raises(Refused, match="more than 5 redirects"):
        get(server.url)
    assert len(server.received) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://a/b", "http://[::", "http://u:p@a/"])
def test_redirects_that_are_no_http_urls(location):
    with raw_server(redirect(location)) as server, pytest.raises(Forbidden, match="it redirects to"):
        get(server.url)


def test_no_redirect_leaves_https():
    with pytest.raises(Forbidden, match="from https to http://example"):
        web.next_url("https://example.org/a", "http://example.org/b")
    assert web.next_url("https://example.org/a/b", "c?d") == "https://example.org/a/c?d"
    # Bytes of UTF-8, which http.client takes for Latin-1.
    location = "/ü".encode().decode("latin-1")
    assert web.parse_url(web.next_url("https://example.org", location)).path == "/%C3%BC"


# ---------------------------------------------------------------- time and size


def drip(start):
    """Send one byte every 50 ms, for at least ten seconds."""
    return lambda connection, _: for_ever(connection, start, b"a", pause=0.05, limit=200)


@pytest.mark.parametrize(
    "answer",
    [
        lambda *_: time.sleep(3),
        drip(b""),
        drip(b"HTTP/1.1 200 OK\r\nX: "),
        drip(b"HTTP/1.1 200 OK\r\n\r\n"),
        drip(message("200 OK", "Transfer-Encoding: chunked")),
        drip(message("302 Found", "Location: /")[:-2]),
        lambda connection, _: for_ever(connection, b"", b"HTTP/1.1 100 Continue\r\n\r\n", limit=10**8),
    ],
)
def test_time_is_limited(answer):
    started = time.monotonic()
    with raw_server(answer) as server, pytest.raises((Transient, Refused)):
        get(server.url, timeout=0.4)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_time_is_limited_before_any_answer(scheme):
    """A server that accepts the connection, and neither reads nor sends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(Transient, match="timed out"):
            web.post_json(url, "x" * 10**7, "", LOCAL, max_bytes=9, timeout=0.3)
        assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "head",
    [
        message("200 OK"),
        message("200 OK", f"Content-Length: {10**12}"),
        message("200 OK", "Transfer-Encoding: chunked"),
        message("200 OK", "Content-Length: -1"),
    ],
)
def test_size_is_limited(head):
    sent = []

    def answer(connection, _):
        block = b"10000\r\n" + b"0" * 2**16 + b"\r\n" if b"chunked" in head else b"0" * 2**16
        sent.append(for_ever(connection, head, block))

    with raw_server(answer) as server, pytest.raises(Refused, match="longer than 100000 bytes"):
        get(server.url, max_bytes=10**5)
    wait_until(lambda: sent)
    assert sent[0] * 2**16 < 2**25


@pytest.mark.parametrize(
    "answer, error",
    [
        (message("200 OK", "Content-Length: 9", body=b"short"), "broke off after 5 of 9"),
        (message("200 OK", "Transfer-Encoding: chunked", body=b"9\r\nshort"), "IncompleteRead"),
        (b"SSH-2.0-hello\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n", "more than 100 headers"),
        (b"HTTP/1.1 200 " + b"x" * 10**5, "LineTooLong"),
        (b"", "RemoteDisconnected"),
    ],
)
def test_broken_answers_may_be_tried_again(answer, error):
    with raw_server(answer) as server, pytest.raises(Transient, match=error):
        get(server.url)


def test_more_than_announced_is_not_read():
    with raw_server(message("200 OK", "Content-Length: 2", body=b"hello")) as server:
        assert get(server.url) == b"he"


def test_reasons_cannot_control_the_terminal():
    answer = message("404 \x1b[2Jgone\x9b", "Content-Length: 0")
    with raw_server(answer) as server, pytest.raises(Refused) as error:
        get(server.url)
    assert str(error.value) == "status 404 ?[2Jgone?"


STATUS = st.sampled_from(["200 OK", "206", "302 x", "503", "\xff", "999999"])
FIELDS = [
    "Content-Length: 3",
    "Content-Length: x",
    "Transfer-Encoding: chunked",
    "Location: /",
    "Location: :",
]
ODD_FIELDS = ["Content-Encoding: gzip", "Retry-After: Wed", ": ", "no colon", " folded", "\xe9: \xff"]


def test_any_answer_is_a_body_or_one_of_two_errors():
    content = [b""]
    with raw_server(lambda connection, _: connection.sendall(content[0])) as server:

        @given(STATUS, st.lists(st.sampled_from(FIELDS + ODD_FIELDS), max_size=4), st.binary(max_size=40))
        @settings(max_examples=150, deadline=None)
        def check(status, fields, body):
            content[0] = message(status, *fields, body=body)
            with contextlib.suppress(Transient, Refused):
                assert body.startswith(get(server.url, timeout=2)) or "Transfer-Encoding: chunked" in fields

        check()


# ---------------------------------------------------------------- TLS


@pytest.fixture
def tls_server(tmp_path):
    """URL of an https server for the name localhost, with a certificate that it signed itself."""
    if not shutil.which("openssl"):
        pytest.skip("needs the command openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=x", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    plain = listener.accept()[0]
                    with plain, context.wrap_socket(plain, server_side=True) as connection:
                        request = connection.recv(65536)
                        if b"/drip" in request:
                            for_ever(connection, message("200 OK"), b"a", pause=0.05, limit=100)
                        connection.sendall(ok(b"secure"))
                # A client that refuses the certificate.
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], certificate
        listener.shutdown(socket.SHUT_RDWR)


def test_certificates_are_checked(tls_server, monkeypatch):
    port, certificate = tls_server
    web.tls_context.cache_clear()
    with pytest.raises(Forbidden, match="certificate is not valid"):
        get(f"https://localhost:{port}/")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    web.tls_context.cache_clear()
    try:
        assert get(f"https://localhost:{port}/") == b"secure"
        started = time.monotonic()
        with pytest.raises(Transient, match="timed out"):
            get(f"https://localhost:{port}/drip", timeout=0.5)
        assert time.monotonic() - started < 8
        # The certificate is for another name.
        with pytest.raises(Forbidden, match="certificate is not valid"):
            get(f"https://127.0.0.1:{port}/")
    finally:
        web.tls_context.cache_clear()


# ---------------------------------------------------------------- a proxy

ELSEWHERE = "93.184.215.14"


def resolver(monkeypatch, **known):
    """Let host names have these addresses; other names are unknown to this machine."""

    def getaddrinfo(host, port, *_, **__):
        if host not in known and not host[0].isdigit():
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known.get(host, host), port))]

    monkeypatch.setattr(web.socket, "getaddrinfo", getaddrinfo)


def forward(port):
    """Answer of a proxy that connects every tunnel to a port of this machine."""

    def answer(connection, _):
        with socket.create_connection(("127.0.0.1", port)) as other:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            pairs = {connection: other, other: connection}
            while True:
                for source in select.select(list(pairs), [], [], 5)[0]:
                    if not (part := source.recv(65536)):
                        return
                    pairs[source].sendall(part)

    return answer


@pytest.mark.parametrize("known", [{"shop.example": ELSEWHERE}, {}], ids=["known", "unknown here"])
def test_what_a_proxy_gets_for_http(monkeypatch, known):
    resolver(monkeypatch, **known)
    with raw_server(ok(b"picture")) as proxy:
        access = Access(proxy=proxy.url)
        assert get("http://shop.example:81/a?q=1", access, headers={"Range": "bytes=1-"}) == b"picture"
        expected = (
            "GET http://shop.example:81/a?q=1 HTTP/1.1\r\nHost: shop.example:81\r\n"
            "User-Agent: RecGOAT\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n"
            "Range: bytes=1-\r\n\r\n"
        )
        assert proxy.received == [expected.encode()]


def test_a_proxy_gets_the_name_of_an_https_host_and_nothing_that_is_sent_to_it(tls_server, monkeypatch):
    port, certificate = tls_server
    resolver(monkeypatch, localhost=ELSEWHERE)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    web.tls_context.cache_clear()
    key = {"Authorization": "Bearer key-123"}
    try:
        with raw_server(forward(port)) as proxy:
            assert get("https://localhost/v1", Access(proxy=proxy.url), headers=key) == b"secure"
            assert proxy.received == [b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n"]
            resolver(monkeypatch, other=ELSEWHERE)
            with pytest.raises(Forbidden, match="certificate is not valid"):
                get("https://other/", Access(proxy=proxy.url))
    finally:
        web.tls_context.cache_clear()


def test_a_key_never_goes_through_a_proxy_unencrypted(monkeypatch):
    resolver(monkeypatch, **{"shop.example": ELSEWHERE})
    with raw_server(ok(b"")) as proxy:
        for host in ("shop.example", "unknown.example"):
            url = f"http://{host}/v1"
            with pytest.raises(Forbidden, match="would send the API key unencrypted"):
                get(url, Access(named=url, proxy=proxy.url), headers={"Authorization": "Bearer key-123"})
        assert proxy.received == []


def test_this_machine_is_reached_without_the_proxy():
    key = {"Authorization": "Bearer key-123"}
    with raw_server(ok(b"here")) as server, raw_server(ok(b"there")) as proxy:
        access = Access(named=server.url, proxy=proxy.url)
        assert get(server.url, access, headers=key) == b"here" and proxy.received == []


def test_a_proxy_is_not_asked_for_private_addresses(monkeypatch):
    resolver(monkeypatch, inside="10.0.0.8")
    with raw_server(redirect("http://169.254.169.254/key")) as proxy:
        for url in ("http://inside/", "https://inside/", "http://192.168.0.1/", "http://localhost.example/"):
            with pytest.raises(Forbidden, match="private address"):
                get(url, Access(proxy=proxy.url))
        # Only the last one reached it, and its redirect did not.
        assert len(proxy.received) == 1


@pytest.mark.parametrize(
    "status, error, words",
    [
        ("407 Proxy Authentication Required", Forbidden, "the proxy answers with status 407 Proxy Auth"),
        ("403 \x1b[31mno", Forbidden, r"the proxy answers with status 403 \?\[31mno"),
        ("502 Bad Gateway", Transient, "the proxy answers with status 502"),
    ],
)
def test_a_proxy_that_refuses(monkeypatch, status, error, words):
    resolver(monkeypatch, **{"shop.example": ELSEWHERE})
    with raw_server(message(status)) as proxy, pytest.raises(error, match=words):
        get("https://shop.example/", Access(proxy=proxy.url))


def test_a_proxy_that_asks_for_a_password_says_nothing_about_the_server(monkeypatch):
    """Forbidden, so that the refusal is not kept with the URL."""
    resolver(monkeypatch, **{"shop.example": ELSEWHERE})
    asks, words = message("407 x", "Content-Length: 0"), "the proxy asks for a password"
    with raw_server(asks) as proxy, pytest.raises(Forbidden, match=words):
        get("http://shop.example/", Access(proxy=proxy.url))


def test_a_proxy_that_sends_for_ever_or_nothing(monkeypatch):
    resolver(monkeypatch, **{"shop.example": ELSEWHERE})
    for answer in (
        lambda connection, _: for_ever(connection, b"HTTP/1.1 200 x\r\n", b"A: " + b"b" * 997),
        lambda connection, _: for_ever(connection, b"HTTP/1.1 200 x\r\n\r\n", b"b" * 1000),
        b"",
    ):
        with raw_server(answer) as proxy, pytest.raises(Transient):
            get("https://shop.example/", Access(proxy=proxy.url), timeout=2)


@pytest.mark.parametrize(
    "url", ["proxy:3128", "https://proxy", "http://me:pw@proxy:1", "http://proxy/path", "x"]
)
def test_what_is_no_proxy(url):
    with pytest.raises(UserError, match="--proxy") as error:
        proxy_url(url)
    assert "pw" not in str(error.value)


def test_urls_of_proxies():
    for url in ("", "http://proxy:3128", "http://10.0.0.1:8080/"):
        assert proxy_url(url) == url
