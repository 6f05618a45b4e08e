#!/bin/sh
# Install ipbackend: a Python environment of its own in /opt/ipbackend, the command, man pages, completion, units.
#
# Run as root. With DESTDIR everything goes below that folder and nothing of the machine is touched: that is how the
# package is built. pip's own variables (PIP_NO_INDEX, PIP_FIND_LINKS) work as ever.
set -eu

source=$(cd "$(dirname "$0")/../.." && pwd)
files=$source/ctl/packaging
root=${DESTDIR:-}
home=/opt/ipbackend
packages="python3-bpfcc python3-venv linux-libc-dev"

missing() {
	for package in $packages; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed' || echo "$package"
	done
}

put() { # FILE PLACE [MODE]
	install -D -m "${3:-644}" "$1" "$root$2"
}

if [ -z "$root" ]; then
	[ "$(id -u)" -eq 0 ] || { echo "install: run as root (sudo make install)" >&2; exit 1; }
	wanted=$(missing)
	if [ -n "$wanted" ]; then
		echo "install: packages" $wanted
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted >/dev/null
	fi
fi

work=$(mktemp -d)
made=$root$home.making # in place of what is there only when it is whole
trap 'rm -rf "$work" "$made"' EXIT
echo "install: $root$home"
# BCC is the distribution's, built for its own Python: hence /usr/bin/python3 and the system's packages.
rm -rf "$made"
/usr/bin/python3 -m venv --system-site-packages --prompt ipbackend "$made"
cp -r "$source/pyproject.toml" "$source/README.md" "$source/LICENSE" "$source/bpf" "$source/ctl" "$work/"
"$made/bin/python" -m pip install -q --disable-pip-version-check "$work"
"$made/bin/python" -m pip install -q --disable-pip-version-check --target "$work/tools" click-man
PYTHONPATH=$work/tools "$made/bin/python" "$files/manpages.py" "$work/man"
"$made/bin/python" "$made/bin/ipbackend" completion bash >"$work/completion"

# What pip wrote knows the folder it was made in.
grep -rlI "$made" "$made/bin" "$made/pyvenv.cfg" | xargs sed -i "s|$made|$home|g"
rm -rf "$root$home"
mv "$made" "$root$home"

for page in "$work"/man/*.1; do
	gzip -9n "$page"
	put "$page.gz" "/usr/share/man/man1/$(basename "$page").gz"
done
put "$work/completion" /usr/share/bash-completion/completions/ipbackend
put "$files/gateway.toml" /etc/ipbackend/gateway.toml.example
put "$files/ipbackend.sysusers" /usr/lib/sysusers.d/ipbackend.conf
put "$files/ipbackend.service" /usr/lib/systemd/system/ipbackend.service
put "$files/run-ipbackend-bpf.mount" /usr/lib/systemd/system/run-ipbackend-bpf.mount
mkdir -p "$root/usr/bin"
ln -sf "$home/bin/ipbackend" "$root/usr/bin/ipbackend"

if [ -z "$root" ]; then
	systemd-sysusers /usr/lib/sysusers.d/ipbackend.conf
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		systemctl enable -q ipbackend
		systemctl restart ipbackend
		echo "install: ipbackend runs; tell it what is wanted: \`ipbackend apply -f /etc/ipbackend/gateway.toml\`"
	fi
fi
