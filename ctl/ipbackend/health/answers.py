"""An answer by HTTP, from bytes as they come to what they mean. Pure: it knows no sockets (RFC 9112, by h11)."""

import h11

from ipbackend.health.questions import Question, expects
from ipbackend.health.states import Code, Reason

AGENT = "ipbackend-health"
_HTTP = "a response in HTTP/1"
_BEGINS = b"HTTP/1."  # whatever begins otherwise need not be waited for


class Exchange:
    """One request and the head of its response; what follows the head is of no interest."""

    def __init__(self, question: Question) -> None:
        """h11.LocalProtocolError: what is asked for cannot be written in HTTP."""
        self._codes = question.codes
        self._http = h11.Connection(h11.CLIENT)
        self._received = 0
        self._first = b""
        headers = [("Host", question.host), ("User-Agent", AGENT), ("Accept", "*/*"), ("Connection", "close")]
        request = h11.Request(method=question.method, target=question.path, headers=headers)
        self.request: bytes = self._http.send(request) or b""

    def receive(self, data: bytes) -> Reason | bool:
        """After more bytes, none of them at the end: a reason against it, True for a good answer, False for not yet."""
        self._received += len(data)
        self._first = (self._first + data)[: len(_BEGINS)]
        if not _BEGINS.startswith(self._first):
            return Reason(Code.RESPONSE_FORMAT_ERROR, _HTTP, f"{self._first!r} …")
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return False
                if not isinstance(event, h11.InformationalResponse):
                    break
        except h11.RemoteProtocolError as error:
            if not data:
                return Reason(Code.RECV_RESPONSE_FAILED, self._codes, f"the end after {self._received} bytes")
            return Reason(Code.RESPONSE_FORMAT_ERROR, _HTTP, str(error))
        if not isinstance(event, h11.Response):
            return Reason(Code.RESPONSE_FORMAT_ERROR, _HTTP, type(event).__name__)
        if not expects(self._codes, event.status_code):
            return Reason(Code.RESPONSE_MISMATCH, self._codes, str(event.status_code))
        return True
