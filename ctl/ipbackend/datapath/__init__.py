"""The XDP program and its maps, through BCC: the only place that imports bcc."""
