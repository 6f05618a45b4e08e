"""What would become of a packet, and why: the program's steps, walked with nothing moved."""
