"""A compiler that cannot do it: refused in our words, before it ends the process."""

from pathlib import Path

import pytest

from ipbackend.datapath.rehearsal import rehearse
from ipbackend.errors import DatapathError

pytestmark = pytest.mark.root


def test_a_bcc_that_is_too_old_is_not_asked_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("BPF, __version__ = object, '0.18.0'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(DatapathError, match=r"BCC 0\.18\.0 is too old.*ipbackend doctor"):
        rehearse()
