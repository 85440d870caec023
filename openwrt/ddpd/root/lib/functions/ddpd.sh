#!/bin/sh
# What the init script and the netifd protocol of ddpd have in common.  Wants /lib/functions.sh.
# shellcheck shell=dash disable=SC2034  # ash is like it; who sources this reads the capitals

DDPD_BIN=/usr/sbin/ddpd
DDPD_RUN=/var/run/ddpd
DDPD_ETC=/etc/ddpd
DDPD_BREAK='
'

DDPD_ALOUD=-s           # on standard error too

# The same once, however often it is looked for.
ddpd_say() {
	[ "$DDPD_SAID" != "$*" ] || return 0
	DDPD_SAID="$*"
	logger ${DDPD_ALOUD:+"$DDPD_ALOUD"} -t ddpd -p daemon.err "$*"
}

# The private key, made at the first start (two starts at once make one), and beside it the public one, for the others.
ddpd_key() {
	local key="$1" sum public code=0
	mkdir -p "$DDPD_RUN" "$DDPD_ETC" && chmod 700 "$DDPD_RUN" "$DDPD_ETC" || return 1
	sum="$DDPD_RUN/$(echo "$key" | tr / _).sum"
	if [ ! -s "$key" ]; then
		(umask 077 && "$DDPD_BIN" genkey > "$key.$$" && sync && ln "$key.$$" "$key") 2>/dev/null
		rm -f "$key.$$"
	fi
	if [ -s "$key.pub" ] && md5sum -c "$sum" > /dev/null 2>&1; then
		return 0
	fi
	public="$("$DDPD_BIN" pubkey 2>/dev/null < "$key")" || code=$?
	if [ "$code" != 0 ]; then
		ddpd_say "no key can be made, or read, in $key"
		return "$code"
	fi
	if [ "$public" != "$(cat "$key.pub" 2>/dev/null)" ]; then
		(echo "$public" > "$key.pub.$$" && mv "$key.pub.$$" "$key.pub") 2>/dev/null || ddpd_say "cannot write $key.pub"
		rm -f "$key.pub.$$"
	fi
	(umask 077 && md5sum "$key" "$key.pub" > "$sum") 2>/dev/null
	return 0
}

# The device of a network; where netifd knows of none, what it will be as far as that can be said.
ddpd_device() {
	local name="$1" device='' proto depth=0
	while [ "$depth" -lt 5 ]; do
		depth=$((depth + 1))
		network_get_device device "$name" && break
		proto="$(uci -q get "network.$name.proto")"
		device="$(uci -q get "network.$name.device")"
		case "$proto.$device" in
			ppp*.*|pptp.*|l2tp.*|3g.*) device="$proto-$name"; break ;;
			*.@*) name="${device#*@}" ;;
			*) break ;;
		esac
	done
	echo "${device:-$name}"
}

# A value with each @NETWORK as its device.
ddpd_devices() {
	local IFS=" ,	" word name value=''
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
				case "$name" in
					''|*[!A-Za-z0-9_]*) ;;
					*) word="$(ddpd_device "$name")${word#"@$name"}" ;;
				esac ;;
		esac
		value="$value${value:+ }$word"
	done
	set +f
	echo "$value"
}

# Could a value be taken for something else?
ddpd_fits() {
	case "$1" in
		*"$DDPD_BREAK"*|*';'*|*'#'*) return 1 ;;
	esac
}

# `KEY = VALUE` of ddpd.conf on standard output; where there are several, a line each.
ddpd_line() {
	local start="$1 =" value
	shift
	for value; do
		echo "$start $(ddpd_devices "$value")"
		start="   "
	done
}

# Standard input to FILE.new, whole or not at all: it has a last line, so that one sees what a full disk has cut off.
ddpd_write() {
	(umask 077 && { cat && echo '# end'; } > "$1.new") 2>/dev/null && return
	rm -f "$1.new"
	DDPD_WRONG="cannot write $1"
	ddpd_say "$DDPD_WRONG"
	return 1
}

# Puts FILE.new in its place, if ddpd finds nothing wrong with it; else says what is.  0: it is in its place.
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

# Does a daemon listen on this control socket?  (The file alone may be a dead one's.)
ddpd_runs() {
	[ -n "$1" ] && grep -q " $1\$" /proc/net/unix
}

# The interfaces of UCI, a line each: nothing, where that cannot be said, or where it is being changed just now.
ddpd_networks() {
	[ -z "$(uci -q changes network)" ] || return 0
	uci -q -X show network | sed -n 's/^network\.\([A-Za-z0-9_]*\)=interface$/\1/p'
}

# What this network has left behind.  A key stays: the grantor knows it, and others may use its file.  So does the note
# that it is down, until the router restarts: a hook may come late.
ddpd_forget() {
	local file
	/lib/netifd/ddpd.script down "$1"
	for file in "$DDPD_ETC/if-$1.json" "$DDPD_ETC/if-$1.json".* "$DDPD_RUN/if-$1".*; do
		[ "$file" = "$DDPD_RUN/if-$1.gone" ] || rm -f "$file"
	done
}

# Leases and all else of networks that neither UCI nor netifd knows any longer, and on which no daemon runs.
ddpd_sweep() {
	local networks file name
	networks="$(ddpd_networks)"
	[ -n "$networks" ] || return 0
	for file in "$DDPD_ETC"/if-*.json "$DDPD_RUN"/if-*; do
		name="${file##*/if-}"
		name="${name%%.*}"
		[ -e "$file" ] || continue
		[ "$file" != "$DDPD_RUN/if-$name.gone" ] || continue
		! echo "$networks" | grep -qxF "$name" || continue
		! ddpd_runs "$DDPD_RUN/if-$name.sock" || continue
		! ubus list "network.interface.$name" > /dev/null 2>&1 || continue
		ddpd_forget "$name"
	done
}
