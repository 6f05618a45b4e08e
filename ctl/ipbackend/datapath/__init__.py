"""The XDP program and its maps. Of it only compiling.py, a process of its own, works with BCC."""
