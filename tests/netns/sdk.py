"""The cloud's own SDK as a client of the gateway. It speaks TCP: a bridge leads from there to the daemon's socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huaweicloudsdkelb.v3 as elb
import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from .lab import MEMBER_TCP_PORT, MEMBERS, THIRD_VIP
from .namespace import Namespace

PROJECT = "p" * 32
LOCALHOST = "127.0.0.1"
PORT = 8000  # of a listener that is made here


class Bridge(socketserver.ThreadingTCPServer):
    """A port of 127.0.0.1 of a namespace that leads to a Unix socket."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__((LOCALHOST, 0), Crossing)


class Crossing(socketserver.BaseRequestHandler):
    """One connection across."""

    server: Bridge

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far:
            far.connect(str(self.server.path))
            ways = {self.request: far, far: self.request}
            with contextlib.suppress(OSError):  # either side may go first
                while True:
                    for near in select.select(list(ways), [], [])[0]:
                        data = near.recv(65_536)
                        if not data:
                            return
                        ways[near].sendall(data)


class Sdk:
    """Calls any operation by the SDK's own name, with the request's fields: `sdk.show_pool(pool_id=…)`."""

    def __init__(self, client: Any, namespace: Namespace) -> None:
        self._client = client
        self._namespace = namespace

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        request = getattr(elb, "".join(map(str.title, operation.split("_"))) + "Request")

        def call(**fields: Any) -> Any:
            with self._namespace:
                return getattr(self._client, operation)(request(**fields))

        return call

    def refused(self, operation: str, **fields: Any) -> tuple[int, str, str]:
        """Status, code and text of a refusal, as the SDK reads them."""
        with pytest.raises(ClientRequestException) as refusal:
            getattr(self, operation)(**fields)
        assert len(refusal.value.request_id) == 36
        return refusal.value.status_code, refusal.value.error_code, refusal.value.error_msg


@contextlib.contextmanager
def bridged(namespace: Namespace, path: Path) -> Iterator[str]:
    """The URL by which the daemon behind the socket at `path` is reached inside a namespace."""
    with namespace:
        bridge = Bridge(path)
    os.environ["no_proxy"] = LOCALHOST
    with bridge:
        thread = threading.Thread(target=bridge.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://{LOCALHOST}:{bridge.server_address[1]}"
        bridge.shutdown()
        thread.join()


@contextlib.contextmanager
def sdk(namespace: Namespace, path: Path) -> Iterator[Sdk]:
    """The SDK in a namespace, asking the daemon behind the socket at `path`."""
    with bridged(namespace, path) as endpoint:
        # A project that is given saves the SDK from asking an identity service for it.
        credentials = BasicCredentials("ak", "sk", PROJECT)
        client = elb.ElbClient.new_builder().with_credentials(credentials).with_endpoint(endpoint).build()
        yield Sdk(client, namespace)
        client.close()


def balancer(sdk: Sdk, **fields: Any) -> Any:
    """A load balancer, made with what every client of the cloud has to say."""
    cloud = {"vpc_id": "vpc", "vip_subnet_cidr_id": "subnet", "availability_zone_list": ["az1"], "guaranteed": True}
    given = {"vip_address": THIRD_VIP, "name": "third", "ip_target_enable": True}
    option = elb.CreateLoadBalancerOption(**{**cloud, **given, **fields})
    return sdk.create_load_balancer(body=elb.CreateLoadBalancerRequestBody(option)).loadbalancer


def listener(sdk: Sdk, owner: Any, port: int = PORT, **fields: Any) -> Any:
    option = elb.CreateListenerOption(loadbalancer_id=owner.id, protocol="TCP", protocol_port=port, **fields)
    return sdk.create_listener(body=elb.CreateListenerRequestBody(option)).listener


def pool(sdk: Sdk, *members: str, **fields: Any) -> Any:
    """A pool with these members of the lab."""
    option = elb.CreatePoolOption(**{"protocol": "TCP", "lb_algorithm": "ROUND_ROBIN", **fields})
    made = sdk.create_pool(body=elb.CreatePoolRequestBody(option)).pool
    for name in members:
        member(sdk, made, name)
    return made


def member(sdk: Sdk, owner: Any, where: str, **fields: Any) -> Any:
    option = elb.CreateMemberOption(address=MEMBERS[where], protocol_port=MEMBER_TCP_PORT, **fields)
    return sdk.create_member(pool_id=owner.id, body=elb.CreateMemberRequestBody(option)).member


def ids(rows: list[Any]) -> list[str]:
    return [row.id for row in rows]
