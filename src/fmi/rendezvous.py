"""The rendezvous server: ranks of a job join here, are announced to each other, share a counter, and are relayed.

It is one process with one event loop. A client that floods, stalls or sends invalid data costs its own connection and
nothing else: the server keeps at most one message of MAX_BODY bytes for it, and never waits for it to read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import messages, tokens
from .clients import Client, create_listener, open_file_limit, raise_open_file_limit
from .errors import RequestRefused
from .limits import Limits
from .messages import ROUTES, ProtocolError
from .monitor import MAX_REQUESTS, ServerMetrics, log_event, serve_http
from .registry import Member, Pair, RegisteredGroup, Registry
from .relay import relay

CHECK_INTERVAL = 1.0  # seconds between two checks for expired groups
SEND_BUFFER = 2**18  # bytes that a rank may leave unread; START from 2,000 peers at once needs less
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class Settings:
    """Where a server listens, the secret from which the tokens of jobs are computed, and its limits."""

    host: str = "127.0.0.1"
    port: int = 10000
    health_port: int | None = None
    secret: bytes = b""
    limits: Limits = field(default_factory=Limits)


@dataclass
class _PendingRelay:
    """The first end of a relay, whose task relays once the second end has attached."""

    first: Client
    second: asyncio.Future[Client]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Server:
    """A rendezvous server; `async with run_server(settings)` starts and stops one."""

    def __init__(self, settings: Settings) -> None:
        self._secret, self._limits = settings.secret, settings.limits
        self._registry, self.metrics = Registry(settings.limits), ServerMetrics(self.state)
        self._clients: set[Client] = set()
        self._unauthenticated: dict[Client, None] = {}  # the oldest first
        # Clients that hang leave files for ranks and monitoring where this process may open few.
        self._unauthenticated_limit = open_file_limit() // 2
        self._pending_relays: dict[int, _PendingRelay] = {}  # by pair number
        self.port, self.health_port = settings.port, settings.health_port

    def state(self) -> dict[str, Any]:
        """Return the content of /health."""
        groups = self._registry.groups
        ranks = sum(len(group.members) for group in groups)
        return {"status": "ok", "jobs": len(groups), "ranks": ranks, "connections": len(self._clients)}

    async def accept(self, listener: socket.socket) -> None:
        """Accept and serve clients until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, address = await loop.sock_accept(listener)
                except OSError as error:
                    if error.errno in OUT_OF_FILES:
                        log_event("out of files", logging.ERROR, error=str(error))
                        await asyncio.sleep(CHECK_INTERVAL)
                    continue  # otherwise that client has disconnected already
                client = Client(connection, address[:2])
                if self._has_room():
                    self._clients.add(client)
                    self._unauthenticated[client] = None
                    client.task = loop.create_task(self._serve(client))
                    client.task.add_done_callback(partial(self._remove, client))
                else:
                    self._refuse(client, RequestRefused("busy", "this server has reached its limit of connections"))
                    connection.close()
                await asyncio.sleep(0)  # lets other clients run
        finally:
            self._registry.clear()
            tasks = [client.task for client in self._clients if client.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _has_room(self) -> bool:
        """Return whether another client can be served, after closing the oldest unauthenticated one if necessary."""
        has_files = len(self._unauthenticated) < self._unauthenticated_limit
        if has_files and len(self._clients) < self._limits.connections:
            return True
        if not self._unauthenticated:
            return False
        oldest = next(iter(self._unauthenticated))
        del self._unauthenticated[oldest]
        problem = "this connection gives way to a new one because it has not authenticated itself"
        self._refuse(oldest, RequestRefused("busy", problem))
        oldest.close()
        return True

    def _remove(self, client: Client, _: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        self._unauthenticated.pop(client, None)
        client.socket.close()

    async def expire_groups(self) -> None:
        """End the groups that have expired, until cancelled."""
        while True:
            for group in self._registry.expire(time.monotonic()):
                log_event("expired", logging.WARNING, job=group.job, group=group.number, size=group.size)
            await asyncio.sleep(CHECK_INTERVAL)

    async def _serve(self, client: Client) -> None:
        try:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.send(messages.Hello(client.nonce, bool(self._secret), client.address, time.time()))
            message = await client.receive(self._limits.first, self._limits.first)
            if isinstance(message, messages.Join):
                await self._serve_rank(client, message)
            elif isinstance(message, messages.Attach):
                await self._serve_relay_end(client, message)
            else:
                raise RequestRefused("order", "the first message must be JOIN or ATTACH")
        except RequestRefused as refusal:
            self._refuse(client, refusal)
        except ProtocolError as error:
            self._refuse(client, RequestRefused("protocol", str(error)))
        except TimeoutError:
            self._refuse(client, RequestRefused("slow", "no message arrived in the time allowed"))
        except OSError:
            pass  # the client has disconnected
        except Exception:
            logging.getLogger("fmi").exception("a fault of this server")

    def _refuse(self, client: Client, refusal: RequestRefused) -> None:
        self.metrics.refused.labels(refusal.code).inc()
        log_event("refused", logging.WARNING, address=client.address[0], code=refusal.code, why=str(refusal))
        client.send(messages.Refused(refusal.code, str(refusal)))

    def _authenticate(self, client: Client, rank: int, job: str, proof: bytes, expected: bytes) -> None:
        """Mark a client as authenticated. Raises RequestRefused if its proof is not the expected one."""
        if not tokens.is_equal(proof, expected):
            raise RequestRefused("token", f"rank {rank} does not know the secret of job {job}")
        self._unauthenticated.pop(client, None)

    async def _serve_rank(self, client: Client, join: messages.Join) -> None:
        """Serve a rank until it leaves or is lost."""
        token = tokens.job_token(self._secret, join.job)
        proof = tokens.join_proof(token, client.nonce, join.job, join.rank, join.size, join.private, join.nonce)
        self._authenticate(client, join.rank, join.job, join.proof, proof)
        member = Member(join.rank, client, client.address, join.private, client.round_trip())
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        group = self._registry.join(join.job, join.size, member, time.monotonic())
        fields: dict[str, Any] = {"job": join.job, "group": group.number, "rank": join.rank}
        log_event("joined", size=join.size, address=client.address[0], **fields)
        self.metrics.joins.inc()
        reason = "lost"
        try:
            client.send(messages.Welcome(group.number, tokens.welcome_proof(token, join.nonce, client.nonce)))
            if self._registry.complete(group, time.monotonic()):
                log_event("complete", job=group.job, group=group.number, size=group.size)
            timeouts = self._limits.silence, self._limits.first
            while not isinstance(message := await client.receive(*timeouts), messages.Leave):
                self._handle_message(group, member, message)
            reason = "left"
        finally:
            if self._registry.leave(group, member, reason):
                log_event(reason, logging.INFO if reason == "left" else logging.WARNING, **fields)
                if reason == "lost":
                    self.metrics.lost.inc()

    def _handle_message(self, group: RegisteredGroup, member: Member, message: messages.Message) -> None:
        match message:
            case messages.Ping(echo):
                member.connection.send(messages.Pong(echo))
            case messages.Next(request):
                member.connection.send(messages.Number(request, self._registry.next_item(group, member)))
                self.metrics.items.inc()
            case messages.Connect(peer):
                self._registry.connect(group, member, peer)
            case messages.Connected(pair, route) if route in ROUTES:
                self._registry.find_led_pair(group, member, pair)
                self.metrics.pairs.labels(route).inc()
            case messages.Unreached(pair):
                self._registry.start_relay(group, member, pair)
            case _:
                raise RequestRefused("order", f"a rank that has joined must not send this {type(message).__name__}")

    async def _serve_relay_end(self, client: Client, attach: messages.Attach) -> None:
        """Serve one end of a relay: the first one waits for the second, and its task relays."""
        token = tokens.job_token(self._secret, attach.job)
        proof = tokens.attach_proof(token, client.nonce, attach.job, attach.rank, attach.pair, attach.ticket)
        self._authenticate(client, attach.rank, attach.job, attach.proof, proof)
        group, pair = self._registry.attach(attach.job, attach.rank, attach.pair, attach.ticket, client)
        if len(pair.ends) == 1:
            await self._serve_first_end(client, group, pair)
            return
        pending = self._pending_relays.get(pair.number)
        if pending is None or pending.second.done():
            raise RequestRefused("expired", "the other end of the relay has disconnected")
        pending.second.set_result(client)
        try:
            await pending.ended.wait()
        except asyncio.CancelledError:
            pending.first.close()
            await pending.ended.wait()  # until then this end's socket is in use
            raise

    async def _serve_first_end(self, client: Client, group: RegisteredGroup, pair: Pair) -> None:
        second = asyncio.get_running_loop().create_future()
        pending = self._pending_relays[pair.number] = _PendingRelay(client, second)
        try:
            async with asyncio.timeout(self._limits.meeting):
                other = await second
            await self._relay(group, pair, client, other)
        except TimeoutError:
            problem = f"the other end of the relay did not connect within {self._limits.meeting:g} s"
            pair.send(messages.Failed(pair.number, problem))
            raise RequestRefused("expired", problem) from None
        finally:
            del self._pending_relays[pair.number]
            pending.ended.set()

    async def _relay(self, group: RegisteredGroup, pair: Pair, one: Client, other: Client) -> None:
        def count(size: int) -> bool:
            group.relayed_bytes += size
            self.metrics.relayed_bytes.inc(size)
            return group.relayed_bytes <= self._limits.relayed_bytes

        fields: dict[str, Any] = {"job": group.job, "group": group.number, "ranks": [pair.low.rank, pair.high.rank]}
        log_event("relaying", **fields)
        one.send(messages.Attached())
        other.send(messages.Attached())
        with self.metrics.relays.track_inprogress():
            reason = await relay(one.socket, other.socket, count, self._limits.silence)
        if reason:
            pair.send(messages.Failed(pair.number, f"the relay has ended: {reason}"))
        log_event("relayed", why=reason, **fields)


@asynccontextmanager
async def run_server(settings: Settings) -> AsyncIterator[Server]:
    """Run a server for the duration of the block.

    Raises OSError if it cannot listen, and ValueError if it would listen on other than loopback without a secret.
    """
    raise_open_file_limit(settings.limits.connections, MAX_REQUESTS)
    server = Server(settings)
    with create_listener(settings.host, settings.port, has_secret=bool(settings.secret)) as listener:
        host, server.port = listener.getsockname()[:2]
        health = None
        if settings.health_port is not None:
            health = await serve_http(host, settings.health_port, server.metrics, server.state)
            server.health_port = health.sockets[0].getsockname()[1]
        tasks = [asyncio.create_task(server.accept(listener)), asyncio.create_task(server.expire_groups())]
        log_event("serving", host=host, port=server.port, health_port=server.health_port)
        try:
            yield server
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if health:
                health.close()
            log_event("stopped", **server.state())
