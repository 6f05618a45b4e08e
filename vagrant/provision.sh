#!/bin/sh
# Make this machine (or the network namespace that this runs in) what its role in the lab is: routes, the VPN, the
# servers, the gateway. Its addresses are there already. Run again after each boot; what is there already stays.
#
#     provision.sh ROLE SOURCE
set -eu

role=$1 source=$2
namespace=$(ip netns identify $$)

need() { # PACKAGE...
	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed' || {
			apt-get update -qq
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
			return
		}
	done
}

interface_of() { # ADDRESS
	ip -4 -o address show | awk -v address="$1/" 'index($4, address) == 1 { print $2; exit }'
}

route() { # CIDR ROUTER
	ip route replace "$1" via "$2"
}

forward() {
	echo 1 >/proc/sys/net/ipv4/ip_forward
}

member() { # ADDRESS
	systemctl -q is-active "member@$role" 2>/dev/null || systemd-run -q --unit "member@$role" --property Restart=always \
		--working-directory "$source" ${namespace:+--property NetworkNamespacePath=/run/netns/$namespace} \
		/usr/bin/python3 -m tests.netns.members "$role" "$1" 8080 5353
}

# Keys of a lab, 32 bytes each: whoever knows a machine's name knows its key.
key_of() { # ROLE
	printf 'ipbackend lab %s' "$1" | sha256sum | head -c 32 | base64
}

tunnel() { # PEER PEER-ADDRESS CIDR...
	need wireguard-tools
	peer=$1 at=$2
	shift 2
	ip link show wg0 >/dev/null 2>&1 || ip link add wg0 type wireguard
	file=$(mktemp)
	key_of "$role" >"$file"
	wg set wg0 listen-port 51820 private-key "$file" \
		peer "$(key_of "$peer" | wg pubkey)" endpoint "$at:51820" allowed-ips "$(echo "$*" | tr ' ' ',')"
	rm "$file"
	ip link set wg0 up
	for cidr in "$@"; do ip route replace "$cidr" dev wg0; done
}

case $role in
client)
	need curl
	route 10.0.0.0/24 203.0.113.1
	install -m 755 "$source/vagrant/demo.sh" /usr/local/bin/demo
	;;
gateway)
	[ -e /usr/bin/ipbackend ] || make -C "$source" install
	sed "s/\"eth0\", \"eth1\"/\"$(interface_of 203.0.113.1)\", \"$(interface_of 10.0.0.1)\"/" \
		"$source/tests/netns/lab.toml" >/etc/ipbackend/gateway.toml
	ipbackend apply -f /etc/ipbackend/gateway.toml
	;;
member-1) member 10.0.0.11 ;;
member-2) member 10.0.0.12 ;;
member-peered)
	route 10.0.0.0/24 172.16.10.1
	member 172.16.10.10
	;;
member-onprem)
	route 10.0.0.0/24 192.168.50.1
	member 192.168.50.10
	;;
router-peering) forward ;;
router-onprem)
	forward
	tunnel router-site 198.51.100.50 192.168.50.0/24
	;;
router-site)
	forward
	tunnel router-onprem 198.51.100.3 10.0.0.0/24
	;;
*)
	echo "provision: no role $role in the lab" >&2
	exit 2
	;;
esac
