"""Asks one question over a socket and tells the answer: TCP, HTTP, HTTPS, or echo and then a datagram.

Each asking is a few callbacks of the loop and leaves no socket behind: connections end by a RST, so that neither
end keeps them. An answer that is there counts, however late the loop comes to look at it: in one turn of the loop
what is ready goes before the timers, and the time that the loop was away is added to theirs.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Concatenate, ParamSpec, TypeVar

import h11

from ipbackend.health.answers import Exchange
from ipbackend.health.attention import Attention
from ipbackend.health.echo import Echo
from ipbackend.health.questions import Question
from ipbackend.health.states import Code, Reason
from ipbackend.model import Check

log = logging.getLogger(__name__)

IP_BIND_ADDRESS_NO_PORT = 24  # the port is chosen by connect, for this destination: linux/in.h
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by a RST
CHUNK = 1 << 16
PATIENCE_MIN = 0.01  # seconds that the loop was away and that are worth to be added
# What is the gateway's own trouble, and says nothing of a member.
OURS = frozenset(
    (
        *(errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM),
        *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.EAGAIN),
    )
)
# Said at once, by our own kernel: a route was taken away, or an interface is down. The member has no part in it.
NO_WAY_OUT = frozenset((errno.ENETUNREACH, errno.ENETDOWN))


@dataclass(frozen=True)
class Unasked:
    """It could not be asked, and why: nothing is known of the member."""

    why: str


Answer = Reason | Unasked | None  # None is a good one
Self = TypeVar("Self", bound="Asking")
More = ParamSpec("More")


def _ending(step: Callable[Concatenate[Self, More], None]) -> Callable[Concatenate[Self, More], None]:
    """A step that the loop calls: a bug in it is told with its traceback, once, and ends this one asking."""

    def stepped(asking: Self, /, *args: More.args, **kwargs: More.kwargs) -> None:
        try:
            step(asking, *args, **kwargs)
        except Exception as error:
            asking.give_up(error)

    return stepped


class Prober:
    """Whoever asks; one for a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.attention = Attention(loop)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname = False  # a member is asked whether it serves, not who it is
        self.tls.verify_mode = ssl.CERT_NONE
        self._echoes: dict[IPv4Address | None, Echo] = {}
        self.bugs: set[str] = set()  # that have been told of

    def ask(self, question: Question, done: Callable[[Answer], None]) -> "Asking":
        """Begin to ask; `done` is called once, with the answer, unless it is cancelled before."""
        asking = _KINDS[question.type](self, question, done)
        self.loop.call_soon(asking.begin)
        return asking

    def echo(self, source: IPv4Address | None) -> Echo:
        """Echo requests from this address. OSError: they cannot be sent."""
        if source not in self._echoes:
            self._echoes[source] = Echo(self.loop, source)
        return self._echoes[source]

    def keep_sources(self, sources: Collection[IPv4Address | None]) -> None:
        """Let go of what was for other source addresses than these."""
        for source in self._echoes.keys() - set(sources):
            self._echoes.pop(source).close()

    def close(self) -> None:
        """Let go of everything."""
        self.keep_sources(())
        self.attention.close()


class Asking:
    """One question under way: ends by an answer, or when its time is over and the loop was there to see it."""

    kind = socket.SOCK_STREAM

    def __init__(self, prober: Prober, question: Question, done: Callable[[Answer], None]) -> None:
        self._prober = prober
        self._loop = prober.loop
        self._question = question
        self._done: Callable[[Answer], None] | None = done
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._away = prober.attention.away()

    @_ending
    def begin(self) -> None:
        """Send the first packet."""
        if self._done is None:
            return
        self._timer = self._loop.call_at(self._loop.time() + self._question.timeout, self._over)
        try:
            self._begin()
        except OSError as error:
            if error.errno in NO_WAY_OUT:
                self._end(Unasked(f"at {self._question.address}: {os.strerror(error.errno)}"))
            else:
                self._failed(error)

    def cancel(self) -> None:
        """Ask no more; nothing is told."""
        self._done = None
        self._release()

    def give_up(self, error: Exception) -> None:
        """Nothing is known of the member: what it was asked by has a bug."""
        what = f"{type(error).__name__}: {error}"
        if what not in self._prober.bugs:
            self._prober.bugs.add(what)
            where = self._question.address, self._question.port
            log.error("a bug in a health check, of %s:%d", *where, exc_info=error)
        self._end(Unasked(f"for a bug of the gateway's own ({what})"))

    def _begin(self) -> None:
        raise NotImplementedError

    def _timed_out(self) -> Answer:
        """What it means that nothing more came."""
        raise NotImplementedError

    def _end(self, answer: Answer) -> None:
        done, self._done = self._done, None
        self._release()
        if done:
            done(answer)

    def _release(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._socket:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _failed(self, error: OSError) -> None:
        """Connecting or sending did not work."""
        text = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in OURS:
            self._end(Unasked(f"from {self._question.source or 'the address that the kernel chooses'}: {text}"))
            return
        code = Code.CONNECT_REFUSED if error.errno == errno.ECONNREFUSED else Code.CONNECT_FAILED
        self._end(Reason(code, "", text))

    def _connect(self) -> int:
        """A socket that is connected, or will be; returns an error number."""
        sock = self._socket = socket.socket(socket.AF_INET, self.kind | socket.SOCK_NONBLOCK)
        if self._question.source:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((str(self._question.source), 0))
        return sock.connect_ex((str(self._question.address), self._question.port))

    @_ending
    def _over(self) -> None:
        """The time is over, unless the loop was away meanwhile."""
        away = self._prober.attention.away()
        missed, self._away = away - self._away, away
        if missed > PATIENCE_MIN:
            self._timer = self._loop.call_later(missed, self._over)
        else:
            self._end(self._timed_out())


class AskingTcp(Asking):
    """SYN, SYN-ACK, ACK, RST: a member that completes the handshake serves."""

    def _begin(self) -> None:
        error = self._connect()
        if self._socket is None or error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._loop.add_writer(self._socket.fileno(), self._ready)

    @_ending
    def _ready(self) -> None:
        if self._socket is None:
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error:
            self._connected()
        elif error in (errno.ECONNRESET, errno.EPIPE):
            self._end(Reason(Code.CONNECT_INTERRUPT, "", os.strerror(error)))
        elif error == errno.ETIMEDOUT:
            self._end(self._timed_out())
        else:
            self._failed(OSError(error, os.strerror(error)))

    def _connected(self) -> None:
        self._end(None)

    def _timed_out(self) -> Answer:
        return Reason(Code.CONNECT_TIMEOUT, "", f"no answer in {self._question.timeout} s")


class AskingHttp(AskingTcp):
    """A request, and the head of its response; by TLS if that is asked for."""

    def __init__(self, prober: Prober, question: Question, done: Callable[[Answer], None]) -> None:
        super().__init__(prober, question, done)
        self._unsent = b""
        self._exchange: Exchange | None = None  # from the moment when the request may go
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._is_connected = False

    def _connected(self) -> None:
        assert self._socket is not None
        self._is_connected = True
        self._loop.remove_writer(self._socket.fileno())
        self._loop.add_reader(self._socket.fileno(), self._readable)
        if self._question.type is Check.HTTPS:
            name = self._question.name or None
            try:
                self._tls = self._prober.tls.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
            except ValueError as error:
                self._end(Unasked(f"{name} cannot be asked for by TLS: {error}"))
            else:
                self._shake_hands()
        else:
            self._request()

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send(self._outgoing.read())
        except ssl.SSLError as error:
            self._send(self._outgoing.read())  # the alert that says so
            self._end(Reason(Code.SSL_HANDSHAKE_ERROR, "a TLS handshake", error.reason or "the end"))
        else:
            self._request()

    def _request(self) -> None:
        try:
            self._exchange = Exchange(self._question)
        except h11.LocalProtocolError as error:
            self._end(Unasked(f"the request cannot be written: {error}"))
            return
        if self._tls:
            self._tls.write(self._exchange.request)
            self._send(self._outgoing.read())
        else:
            self._send(self._exchange.request)

    @_ending
    def _send(self, data: bytes) -> None:
        """As much as goes; the rest when there is room."""
        if self._socket is None:
            return
        self._unsent += data
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._send, b"")
        except OSError as error:
            code = Code.SEND_REQUEST_FAILED if self._exchange else Code.CONNECT_INTERRUPT
            self._end(Reason(code, "", os.strerror(error.errno or 0)))
        else:
            self._loop.remove_writer(self._socket.fileno())

    @_ending
    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(os.strerror(error.errno or 0))
            return
        if self._tls is None:
            self._received(data)
            return
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if self._exchange is None:
            self._shake_hands()
        if self._exchange is not None:
            self._received_sealed(self._tls)

    def _received_sealed(self, tls: ssl.SSLObject) -> None:
        try:
            while self._done:
                self._received(tls.read(CHUNK))
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._received(b"")
        except ssl.SSLError as error:
            self._broken(error.reason or "an error of TLS")

    def _received(self, data: bytes) -> None:
        if self._done is None or self._exchange is None:
            return
        verdict = self._exchange.receive(data)
        if verdict is True:
            self._end(None)
        elif isinstance(verdict, Reason):
            self._end(verdict)

    def _broken(self, text: str) -> None:
        code = Code.RECV_RESPONSE_FAILED if self._exchange else Code.SSL_HANDSHAKE_ERROR
        self._end(Reason(code, self._question.codes, text))

    def _timed_out(self) -> Answer:
        if not self._is_connected:
            return super()._timed_out()
        silence = f"no answer in {self._question.timeout} s"
        if self._exchange is None:
            return Reason(Code.SSL_HANDSHAKE_ERROR, "a TLS handshake", silence)
        code = Code.SEND_REQUEST_TIMEOUT if self._unsent else Code.RECV_RESPONSE_TIMEOUT
        return Reason(code, self._question.codes, silence)


class AskingUdp(Asking):
    """An echo, and then a datagram: port unreachable says that nothing is there, silence that something is."""

    kind = socket.SOCK_DGRAM
    _echo: Echo | None = None  # while its answer is waited for
    _token = ("", 0)

    def _begin(self) -> None:
        self._echo = self._prober.echo(self._question.source)
        self._token = self._echo.send(self._question.address, self._echoed)

    @_ending
    def _echoed(self) -> None:
        self._echo = None
        try:
            error = self._connect()
            if self._socket is None or error:
                raise OSError(error, os.strerror(error))
            self._loop.add_reader(self._socket.fileno(), self._readable)
            self._socket.send(b"")
        except OSError as error:
            self._failed(error)

    @_ending
    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)
        else:
            self._end(None)

    def _release(self) -> None:
        if self._echo:
            self._echo.forget(self._token)
        super()._release()

    def _timed_out(self) -> Answer:
        if self._socket:
            return None
        return Reason(Code.CONNECT_TIMEOUT, "an ICMP echo reply", f"no answer in {self._question.timeout} s")


_KINDS: dict[Check, type[Asking]] = {
    Check.TCP: AskingTcp,
    Check.HTTP: AskingHttp,
    Check.HTTPS: AskingHttp,
    Check.UDP_CONNECT: AskingUdp,
}
