"""The gateway on other kernels and as a machine of its own, in small virtual machines; `make vm-test` runs them."""
