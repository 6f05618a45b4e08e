"""What is compiled, and a compiler that cannot do it: refused in our words, before it ends the process."""

import struct
from pathlib import Path

import pytest

from ipbackend.datapath import syscall
from ipbackend.datapath.rehearsal import rehearse
from ipbackend.errors import DatapathError
from tests.packet.conftest import Dataplane

pytestmark = pytest.mark.root


def test_a_bcc_that_is_too_old_is_not_asked_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("BPF, __version__ = object, '0.18.0'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(DatapathError, match=r"BCC 0\.18\.0 is too old.*ipbackend doctor"):
        rehearse()


def test_no_map_has_btf(dataplane: Dataplane) -> None:
    """Before Linux 6.3 the pattern of a map of maps that has it refuses every inner map that has none."""
    for one in dataplane.maps:
        (btf,) = struct.unpack_from("I", syscall._info(one.fd, 80), 64)  # linux/bpf.h, struct bpf_map_info
        assert btf == 0, one.name
