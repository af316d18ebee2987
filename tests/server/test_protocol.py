"""Heads of requests, against a real server with a trivial application."""

import asyncio
import contextlib
import socket

import uvicorn

from martlet.server.protocol import bounded_protocol

MAX_HEADER_BYTES = 4096
HEADER_SECONDS = 0.3


async def application(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * HEADER_SECONDS)
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-body", length)]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def connections(header_seconds=30, **options):
    """Yields what opens a connection: (reader, writer)."""
    config = uvicorn.Config(
        application,
        http=bounded_protocol(MAX_HEADER_BYTES, header_seconds),
        lifespan="off",
        log_config=None,
        ws="none",
        **options,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    task = asyncio.create_task(server.serve(sockets=[listener]))
    writers = []

    async def connect():
        reader, writer = await asyncio.open_connection(*address)
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in writers:
            writer.close()
        server.should_exit = True
        await task


def run(work):
    asyncio.run(asyncio.wait_for(work, 30))


def request(path="/", headers="", body=b""):
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def test_several_requests_on_a_connection_are_answered_and_bodies_are_no_heads():
    async def check():
        async with connections() as connect:
            reader, writer = await connect()
            for size in (0, 10, 100_000):
                writer.write(request(body=b"x" * size))
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert f"x-body: {size}\r\n".encode() in head
                while b"ok" not in (await reader.read(100)):
                    pass

    run(check())


def test_a_head_that_is_too_long_is_refused_however_it_comes():
    async def check():
        async with connections() as connect:
            for headers in ("x-long: " + "a" * 5000 + "\r\n", "a: b\r\n" * 1500):
                whole = request(headers=headers, body=b"body")
                # Bytes that come after the refusal would make it a reset.
                beginning = whole[: MAX_HEADER_BYTES + 100]
                pieces = [beginning[i : i + 100] for i in range(0, len(beginning), 100)]
                for sent in ([whole], pieces):
                    reader, writer = await connect()
                    for piece in sent:
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                    reply = await reader.read()
                    assert reply.startswith(b"HTTP/1.1 431")
                    assert b'"code":"header_too_large"' in reply
            reader, writer = await connect()
            writer.write(request(path="/" + "a" * 5000))
            assert (await reader.read()).startswith(b"HTTP/1.1 431")

    run(check())


def test_headers_that_never_end_are_not_collected():
    async def check():
        async with connections() as connect:
            reader, writer = await connect()
            writer.write(b"GET / HTTP/1.1\r\nx: ")
            sent = 0
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof() and sent < 64 * MAX_HEADER_BYTES:
                    writer.write(b"a" * 1024)
                    sent += 1024
                    await writer.drain()
                    await asyncio.sleep(0.001)
            assert sent < 64 * MAX_HEADER_BYTES

    run(check())


def test_slow_heads_are_dropped_and_others_are_served_meanwhile():
    async def check():
        async with connections(HEADER_SECONDS, limit_concurrency=200) as connect:
            slow = [await connect() for _ in range(100)]
            for number, (_, writer) in enumerate(slow):
                if number % 2:
                    writer.write(b"GET / HTTP/1.1\r\nhost:")
            reader, writer = await connect()
            writer.write(request())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            for slow_reader, _ in slow:
                assert await slow_reader.read() == b""  # closed, without an answer
            reader, writer = await connect()
            writer.write(request())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    run(check())


def test_connections_beyond_the_limit_are_told_so():
    async def check():
        async with connections(limit_concurrency=5) as connect:
            held = [await connect() for _ in range(5)]
            reader, writer = await connect()
            writer.write(request())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503")
            assert len(held) == 5

    run(check())


def test_an_answer_that_takes_longer_than_a_head_may_is_not_cut():
    async def check():
        async with connections(HEADER_SECONDS) as connect:
            reader, writer = await connect()
            writer.write(request("/slow") + b"POST / HTTP/1.1\r\nhost:")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")

    run(check())
