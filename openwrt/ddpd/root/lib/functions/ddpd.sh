#!/bin/sh
# What the init script and the netifd protocol of ddpd have in common.  Wants /lib/functions.sh.
# shellcheck shell=dash  # ash is like it

DDPD_BIN="${DDPD_BIN:-/usr/sbin/ddpd}"
DDPD_LIB="${DDPD_LIB:-/usr/lib/ddpd}"
DDPD_RUN="${DDPD_RUN:-/var/run/ddpd}"
DDPD_ETC="${DDPD_ETC:-/etc/ddpd}"
DDPD_BREAK='
'

ddpd_say() {
	logger -s -t ddpd -p daemon.err "$*"
}

# Byte code is made by the package's installation.  In an image that was built elsewhere it is made here, once.
ddpd_compile() {
	local code
	for code in "$DDPD_LIB"/*.code; do
		[ -e "$code" ] && return
	done
	"$DDPD_LIB/compile" 2>/dev/null || ddpd_say "no byte code could be made: each start will take long"
}

# The private key, at the first start, and beside it the public one, for the other side.
ddpd_key() {
	local key="$1"
	mkdir -p "$DDPD_RUN" "$DDPD_ETC" && chmod 700 "$DDPD_RUN" "$DDPD_ETC" || return 1
	[ -s "$key" ] || (umask 077 && "$DDPD_BIN" genkey > "$key.new" && mv "$key.new" "$key") || {
		rm -f "$key.new"
		ddpd_say "cannot make the key $key"
		return 1
	}
	[ "$key.pub" -nt "$key" ] || ("$DDPD_BIN" pubkey < "$key" > "$key.new" && mv "$key.new" "$key.pub") || {
		rm -f "$key.new"
		ddpd_say "cannot read the key $key"
		return 1
	}
}

# A value with each @NETWORK as its device.  Where netifd knows of none, it is configured or called so.
ddpd_devices() {
	local IFS=' ' word name device value=
	case "$1" in
		*@*) ;;
		*) echo "$1"; return ;;
	esac
	set -f
	for word in $1; do
		case "$word" in
			@*)
				name="${word%%=*}"
				name="${name#@}"
				device=
				network_get_device device "$name" || device="$(uci -q get "network.$name.device")" || device="$name"
				word="$device${word#"@$name"}" ;;
		esac
		value="$value${value:+ }$word"
	done
	set +f
	echo "$value"
}

# `KEY = VALUE` of ddpd.conf on standard output; where there are several, a line each.
ddpd_line() {
	local key="$1" value start
	start="$key ="
	shift
	for value; do
		case "$value" in
			*"$DDPD_BREAK"*|*';'*|*'#'*)
				ddpd_say "$key: no line break, ';' or '#' can be in a value"
				return 1 ;;
		esac
		echo "$start $(ddpd_devices "$value")"
		start="   "
	done
}

# Puts the file FILE.new in its place, if ddpd finds nothing wrong with it; else says what is.  0: it is in its place.
ddpd_take() {
	local file="$1" said code=0
	if [ ! -L "$file.new" ] && cmp -s "$file.new" "$file"; then
		rm -f "$file.new"
		return 0
	fi
	said="$("$DDPD_BIN" -c "$file.new" check 2>&1)" || code=$?
	if [ "$code" = 0 ]; then
		mv "$file.new" "$file"
		return 0
	fi
	DDPD_WRONG="$(echo "$said" | tail -n 1 | sed "s#^ddpd: ##; s#$file.new:[0-9]*: ##; s#$file.new: ##")"
	rm -f "$file.new"
	ddpd_say "$DDPD_WRONG"
	return "$code"
}
