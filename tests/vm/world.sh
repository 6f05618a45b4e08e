#!/bin/sh
# Runs in the machine that is everything around the gateway: one namespace for each role, bridges between them, and
# the two interfaces that lead to the gateway; then each role is made what it is as Vagrant makes it.
#
#     world.sh SOURCE MAC-OF-CLIENTS MAC-OF-VPC
set -eu

source=$1
bridge() { ip link add "$1" type bridge && ip link set "$1" up; }
for network in clients vpc peered internet onprem; do bridge "$network"; done

join() { # MAC NETWORK
	name=$(ip -o link | awk -v mac="$1" '$0 ~ mac { sub(":", "", $2); print $2 }')
	ip link set "$name" up master "$2"
}
join "$2" clients
join "$3" vpc

end=0
plug() { # ROLE NETWORK ADDRESS
	[ -e "/run/netns/$1" ] || { ip netns add "$1" && ip -n "$1" link set lo up; }
	end=$((end + 1))
	ip link add "end$end" type veth peer name "$2" netns "$1"
	ip link set "end$end" up master "$2"
	ip -n "$1" address add "$3/24" dev "$2"
	ip -n "$1" link set "$2" up
}
plug client clients 203.0.113.7
plug member-1 vpc 10.0.0.11
plug member-2 vpc 10.0.0.12
plug router-peering vpc 10.0.0.2
plug router-peering peered 172.16.10.1
plug member-peered peered 172.16.10.10
plug router-onprem vpc 10.0.0.3
plug router-onprem internet 198.51.100.3
plug router-site internet 198.51.100.50
plug router-site onprem 192.168.50.1
plug member-onprem onprem 192.168.50.10

for role in $(ls /run/netns); do
	ip netns exec "$role" sh "$source/vagrant/provision.sh" "$role" "$source"
done
