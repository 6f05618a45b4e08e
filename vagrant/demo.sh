#!/bin/sh
# Runs on the lab's client: requests go to members in three networks by weight, and none of them sees the client.
set -eu

requests=${1:-80} vip=${2:-10.0.0.100}
answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
for _ in $(seq "$requests"); do
	curl -sS --max-time 10 "http://$vip/" >>"$answers"
	echo >>"$answers"
done
echo "$requests requests to $vip went to"
sed -n 's/.*"member": "\([^"]*\)".*/\1/p' "$answers" | sort | uniq -c
echo "and came, as they saw it, from"
sed -n 's/.*"peer": "\([^:]*\):.*/\1/p' "$answers" | sort | uniq -c
