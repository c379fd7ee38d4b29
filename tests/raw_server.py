"""A TCP server on this machine that keeps every byte that it receives, and answers with any bytes at all."""

import contextlib
import socket
import threading
import time


class RawServer:
    """answer(connection, request) runs for every connection, after the request has been read.

    received: the requests so far, byte for byte; "" for a connection that sent nothing.
    """

    def __init__(self, answer):
        self.answer, self.received, self.open = answer, [], True
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while self.open:
                threading.Thread(target=self.serve, args=(self.socket.accept()[0],), daemon=True).start()

    def serve(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            request = read_request(connection)
            self.received.append(request)
            self.answer(connection, request)

    def close(self):
        self.open = False
        # Wakes up accept().
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def read_request(connection):
    """All bytes of a request: its head, and the body that Content-Length announces."""
    request = b""
    while b"\r\n\r\n" not in request:
        part = connection.recv(65536)
        if not part:
            return request
        request += part
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields.get(b"content-length", 0)):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def raw_server(answer):
    """A RawServer for the duration of a block. answer: see RawServer, or the bytes of every answer."""
    if isinstance(answer, bytes):
        content = answer
        answer = lambda connection, _: connection.sendall(content)  # noqa: E731
    server = RawServer(answer)
    try:
        yield server
    finally:
        server.close()


def ok(body, *fields):
    """An answer of status 200."""
    return message("200 OK", f"Content-Length: {len(body)}", *fields, body=body)


def redirect(location, *fields, status="302 Found"):
    """A redirect without a body."""
    return message(status, f"Location: {location}", "Content-Length: 0", *fields)


def message(status, *fields, body=b""):
    """An answer of any status."""
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode("latin-1") + body


def for_ever(connection, start, block, pause=0.0, limit=10**9):
    """Send `start`, then `block` until the connection is lost. Returns the number of blocks."""
    count = 0
    with contextlib.suppress(OSError):
        connection.sendall(start)
        while count * len(block) < limit:
            connection.sendall(block)
            count += 1
            time.sleep(pause)
    return count
