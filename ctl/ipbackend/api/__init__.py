"""HTTP: the resources of ELB v3, L4 part, and our extensions. One file per family; what they share is in `base`."""
