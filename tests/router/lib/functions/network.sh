#!/bin/sh
# A stand-in: /etc/devices has a line NETWORK DEVICE for each network that is up.
# shellcheck shell=dash disable=SC2034

network_get_device() {
	local found
	found="$(sed -n "s/^$2 //p" /etc/devices 2>/dev/null)"
	eval "$1=\"\$found\""
	[ -n "$found" ]
}
