#!/bin/sh
# A stand-in for OpenWrt's /lib/functions.sh: as much of it as a package needs, and a record of what is called.
# shellcheck shell=dash disable=SC1090,SC2034  # a stand-in sources what it is told to

# NAME ARGUMENT..., a line, with 0x1f between them.
record() {
	local word line=''
	for word; do
		line="$line$word$(printf '\037')"
	done
	line="$(printf '%s' "$line" | tr '\n' '\036')"
	printf '%s\n' "$line" >> /record          # at once: the test reads while others write
}

append() {
	eval "$1=\"\${$1:+\$$1 }\$2\""
}

get_bool() {
	case "$1" in
		1|on|true|yes|enabled) echo 1 ;;
		0|off|false|no|disabled) echo 0 ;;
		*) echo "$2" ;;
	esac
}

reset_cb() {
	config_cb() { :; }
	option_cb() { :; }
	list_cb() { :; }
}
reset_cb

# What UCI writes is shell, if these are functions.
config() { config_cb "$1" "${2:-cfg$((ANONYMOUS += 1))}"; }
option() { option_cb "$@"; }
list() { list_cb "$@"; }

config_load() {
	ANONYMOUS=0
	[ ! -e "/etc/config/$1" ] || . "/etc/config/$1"
	config_cb
}

default_postinst() { :; }
default_prerm() { :; }
