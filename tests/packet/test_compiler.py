"""A compiler that cannot do it: refused in our words, before it ends the process."""

import pytest

from ipbackend.datapath.rehearsal import rehearse
from ipbackend.errors import DatapathError

pytestmark = pytest.mark.root


def test_a_bcc_that_is_too_old_is_not_asked_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcc.__version__", "0.18.0")

    with pytest.raises(DatapathError, match=r"BCC 0\.18\.0 is too old.*ipbackend doctor"):
        rehearse()
