"""The rendezvous server: ranks of a job meet here, learn of each other, share a counter, and are relayed if need be.

One process, one event loop. A client that floods, stalls or talks nonsense costs its own connection and nothing else:
nothing is kept for it beyond one message of at most MAX_BODY bytes, and what it does not take is not waited for.
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
from .clients import Client, allow_files, listener
from .errors import Refused
from .messages import ROUTES, ProtocolError
from .monitor import Figures, answer_http, note
from .registry import Group, Jobs, Limits, Member, Pair
from .relay import relay

LOOK_EVERY = 1.0  # seconds, at groups that may have expired
UNREAD = 2**18  # bytes that a rank may leave unread; START from 2,000 peers at once are less
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class Settings:
    """Where a server listens, `secret` from which the jobs' tokens are made, and what it allows."""

    host: str = "127.0.0.1"
    port: int = 10000
    health_port: int | None = None
    secret: bytes = b""
    limits: Limits = field(default_factory=Limits)


@dataclass
class _Meeting:
    """The first end of a relay, which does the work once there is a second."""

    first: Client
    second: asyncio.Future[Client]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Server:
    """A rendezvous server; `async with running(settings)` starts and stops one."""

    def __init__(self, settings: Settings) -> None:
        self._secret, self._limits = settings.secret, settings.limits
        self._jobs, self.figures = Jobs(settings.limits), Figures(self.state)
        self._clients: set[Client] = set()
        self._strangers: dict[Client, None] = {}  # who have not proved anything yet, the oldest first
        self._meetings: dict[int, _Meeting] = {}  # by the pair's number
        self.port, self.health_port = settings.port, settings.health_port

    def state(self) -> dict[str, Any]:
        """What /health says."""
        groups = self._jobs.groups
        ranks = sum(len(group.members) for group in groups)
        return {"status": "ok", "jobs": len(groups), "ranks": ranks, "connections": len(self._clients)}

    async def accept(self, listening: socket.socket) -> None:
        """Serves whoever comes, until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    own, address = await loop.sock_accept(listening)
                except OSError as error:
                    if error.errno in OUT_OF_FILES:
                        note("out of files", logging.ERROR, error=str(error))
                        await asyncio.sleep(LOOK_EVERY)
                    continue  # else that client is gone already
                client = Client(own, address[:2])
                if self._has_room():
                    self._clients.add(client)
                    self._strangers[client] = None
                    client.task = loop.create_task(self._serve(client))
                    client.task.add_done_callback(partial(self._forget, client))
                else:
                    self._send_away(client, Refused("busy", "this server has all the connections that it may have"))
                    own.close()
                await asyncio.sleep(0)  # the others' turn
        finally:
            self._jobs.forget()
            tasks = [client.task for client in self._clients if client.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _has_room(self) -> bool:
        """Whether one more may come, for which the oldest goes who has not said who it is."""
        if len(self._clients) < self._limits.connections:
            return True
        if not self._strangers:
            return False
        oldest = next(iter(self._strangers))
        del self._strangers[oldest]
        self._send_away(oldest, Refused("busy", "others want the connection of one who does not say who it is"))
        oldest.close()
        return True

    def _forget(self, client: Client, _: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        self._strangers.pop(client, None)
        client.socket.close()

    async def watch(self) -> None:
        """Ends what has expired, until it is cancelled."""
        while True:
            for group in self._jobs.expire(time.monotonic()):
                note("expired", logging.WARNING, job=group.job, group=group.number, size=group.size)
            await asyncio.sleep(LOOK_EVERY)

    async def _serve(self, client: Client) -> None:
        try:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.send(messages.Hello(client.nonce, bool(self._secret), client.address, time.time()))
            message = await client.receive(self._limits.first, self._limits.first)
            if isinstance(message, messages.Join):
                await self._attend(client, message)
            elif isinstance(message, messages.Attach):
                await self._relay(client, message)
            else:
                raise Refused("order", "the first message must be JOIN or ATTACH")
        except Refused as error:
            self._send_away(client, error)
        except ProtocolError as error:
            self._send_away(client, Refused("protocol", str(error)))
        except TimeoutError:
            self._send_away(client, Refused("slow", "nothing came in the time that is allowed"))
        except OSError:
            pass  # the client is gone
        except Exception:
            logging.getLogger("fmi").exception("a fault of this server")

    def _send_away(self, client: Client, error: Refused) -> None:
        self.figures.refused.labels(error.code).inc()
        note("refused", logging.WARNING, address=client.address[0], code=error.code, why=str(error))
        client.send(messages.Refused(error.code, str(error)))

    def _know(self, client: Client, rank: int, job: str, proof: bytes, expected: bytes) -> None:
        """Raises Refused if a rank does not prove what it must."""
        if not tokens.same(proof, expected):
            raise Refused("token", f"rank {rank} does not know the secret of job {job}")
        self._strangers.pop(client, None)

    async def _attend(self, client: Client, join: messages.Join) -> None:
        """A rank, from its coming to its going."""
        token = tokens.job_token(self._secret, join.job)
        proof = tokens.join_proof(token, client.nonce, join.job, join.rank, join.size, join.private, join.nonce)
        self._know(client, join.rank, join.job, join.proof, proof)
        member = Member(join.rank, client, client.address, join.private, client.round_trip())
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
        group = self._jobs.join(join.job, join.size, member, time.monotonic())
        fields: dict[str, Any] = {"job": join.job, "group": group.number, "rank": join.rank}
        note("joined", size=join.size, address=client.address[0], **fields)
        self.figures.joins.inc()
        why = "lost"
        try:
            client.send(messages.Welcome(group.number, tokens.welcome_proof(token, join.nonce, client.nonce)))
            if self._jobs.complete(group, time.monotonic()):
                note("complete", job=group.job, group=group.number, size=group.size)
            patience, rest = self._limits.silence, self._limits.first
            while not isinstance(message := await client.receive(patience, rest), messages.Leave):
                self._answer(group, member, message)
            why = "left"
        finally:
            if self._jobs.leave(group, member, why):
                note(why, logging.INFO if why == "left" else logging.WARNING, **fields)
                if why == "lost":
                    self.figures.lost.inc()

    def _answer(self, group: Group, member: Member, message: messages.Message) -> None:
        match message:
            case messages.Ping(echo):
                member.connection.send(messages.Pong(echo))
            case messages.Next(request):
                member.connection.send(messages.Number(request, self._jobs.next_item(group, member)))
                self.figures.items.inc()
            case messages.Connect(peer):
                self._jobs.connect(group, member, peer)
            case messages.Connected(pair, how) if how in ROUTES:
                self._jobs.led(group, member, pair)
                self.figures.pairs.labels(how).inc()
            case messages.Unreached(pair):
                self._jobs.relay(group, member, pair)
            case _:
                raise Refused("order", f"{type(message).__name__} was not to come from a rank that is there")

    async def _relay(self, client: Client, attach: messages.Attach) -> None:
        """One end of a pair: it waits for the other, which then has it relayed."""
        token = tokens.job_token(self._secret, attach.job)
        proof = tokens.attach_proof(token, client.nonce, attach.job, attach.rank, attach.pair, attach.ticket)
        self._know(client, attach.rank, attach.job, attach.proof, proof)
        group, pair = self._jobs.attach(attach.job, attach.rank, attach.pair, attach.ticket, client)
        if len(pair.ends) == 1:
            await self._await_second(client, group, pair)
            return
        meeting = self._meetings.get(pair.number)
        if meeting is None or meeting.second.done():
            raise Refused("expired", "the other end of the relay is gone")
        meeting.second.set_result(client)
        try:
            await meeting.ended.wait()
        except asyncio.CancelledError:
            meeting.first.close()
            await meeting.ended.wait()  # until then this end's socket is in use
            raise

    async def _await_second(self, client: Client, group: Group, pair: Pair) -> None:
        meeting = self._meetings[pair.number] = _Meeting(client, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(self._limits.meeting):
                other = await meeting.second
            await self._relayed(group, pair, client, other)
        except TimeoutError:
            why = f"the other end of a relay did not come within {self._limits.meeting:g} s"
            pair.send(messages.Failed(pair.number, why))
            raise Refused("expired", why) from None
        finally:
            del self._meetings[pair.number]
            meeting.ended.set()

    async def _relayed(self, group: Group, pair: Pair, one: Client, other: Client) -> None:
        def count(size: int) -> bool:
            group.relayed_bytes += size
            self.figures.relayed_bytes.inc(size)
            return group.relayed_bytes <= self._limits.relayed_bytes

        fields: dict[str, Any] = {"job": group.job, "group": group.number, "ranks": [pair.low.rank, pair.high.rank]}
        note("relaying", **fields)
        one.send(messages.Attached())
        other.send(messages.Attached())
        with self.figures.relays.track_inprogress():
            why = await relay(one.socket, other.socket, count, self._limits.silence)
        if why:
            pair.send(messages.Failed(pair.number, f"the relay has ended: {why}"))
        note("relayed", why=why, **fields)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Server]:
    """A server that accepts clients as long as the block lasts. Raises OSError if it cannot listen.

    Raises ValueError if it would listen for the world without a secret: whoever can connect could join any job.
    """
    allow_files(settings.limits.connections)
    server = Server(settings)
    with listener(settings.host, settings.port, is_open=not settings.secret) as listening:
        host, server.port = listening.getsockname()[:2]
        health = None
        if settings.health_port is not None:
            health = await answer_http(host, settings.health_port, server.figures, server.state)
            server.health_port = health.sockets[0].getsockname()[1]
        tasks = [asyncio.create_task(server.accept(listening)), asyncio.create_task(server.watch())]
        note("serving", host=host, port=server.port, health_port=server.health_port)
        try:
            yield server
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if health:
                health.close()
            note("stopped", **server.state())
