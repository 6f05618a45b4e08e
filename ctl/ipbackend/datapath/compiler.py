"""BCC, as the distribution has it, or the reason why it is not here. It knows no program."""

from ipbackend.errors import DatapathError

try:
    from bcc import BPF, lib
except (ImportError, OSError) as lacking:  # OSError: the module is there, its library is not
    raise DatapathError(
        f"bcc: {lacking} (it is the distribution's: `apt install python3-bpfcc`, for /usr/bin/python3; not PyPI's bcc)"
    ) from lacking

__all__ = ["BPF", "lib"]
