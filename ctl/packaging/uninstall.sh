#!/bin/sh
# Take away what install.sh installed. The data plane is unloaded: its connections end. What is wanted stays in
# /var/lib/ipbackend unless --purge is said.
set -eu

[ "$(id -u)" -eq 0 ] || { echo "uninstall: run as root (sudo make uninstall)" >&2; exit 1; }
if [ -d /run/systemd/system ]; then
	systemctl disable -q --now ipbackend || true
fi
[ ! -x /opt/ipbackend/bin/ipbackend ] || /opt/ipbackend/bin/ipbackend unload
if [ -d /run/systemd/system ]; then
	systemctl stop run-ipbackend-bpf.mount || true
fi
rm -rf /opt/ipbackend /run/ipbackend
rm -f /usr/bin/ipbackend /usr/share/man/man1/ipbackend.1.gz /usr/share/man/man1/ipbackend-*.1.gz \
	/usr/share/bash-completion/completions/ipbackend /usr/lib/sysusers.d/ipbackend.conf \
	/usr/lib/systemd/system/ipbackend.service /usr/lib/systemd/system/run-ipbackend-bpf.mount \
	/etc/ipbackend/gateway.toml.example
rmdir /etc/ipbackend 2>/dev/null || true
if [ "${1:-}" = --purge ]; then
	rm -rf /var/lib/ipbackend /etc/ipbackend
fi
[ ! -d /run/systemd/system ] || systemctl daemon-reload
echo "uninstall: done"
