"""The controller of ipbackend: reads what is wanted, keeps the XDP data plane at it, shows what is."""

__version__ = "0.1.0"
