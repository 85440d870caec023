#!/bin/sh
# The protocol `ddpd` of netifd: `option proto 'ddpd'`.  What is granted comes by /lib/netifd/ddpd.script.
# shellcheck shell=dash disable=SC1091,SC2034,SC2086,SC2154  # ash is like dash; netifd's files share variables

[ -n "$INCLUDE_ONLY" ] || {
	. /lib/functions.sh
	. /lib/functions/network.sh
	. ../netifd-proto.sh
	init_proto "$@"
}
. /lib/functions/ddpd.sh
DDPD_ALOUD=''           # netifd logs what we and the daemon write, and knows no levels

proto_ddpd_init_config() {
	renew_handler=1
	lasterror=1             # an error takes the place of the one before

	proto_config_add_array 'grantor:list(string)'
	proto_config_add_string key
	proto_config_add_array 'ask:list(string)'
	proto_config_add_array 'accept:list(cidr)'
	proto_config_add_string gateway
	proto_config_add_int mtu
	proto_config_add_string hostname
	proto_config_add_string keepalive
	proto_config_add_string keyfile
	proto_config_add_boolean norelease
}

# INTERFACE ERROR...: only another configuration cures this.  netifd ends us when it comes, or at `ifup`, and sets up
# anew; if we ended ourselves, it would do so at once, and proto_block_restart would outlive the cure.
ddpd_rest() {
	proto_notify_error "$@"
	exec sleep 2147483647
}

# CHECK INTERFACE: waits until CHECK is content; what it says is $DDPD_ERROR, and how $DDPD_WRONG.  Time may cure this,
# so we look again and again: that is less than being set up again and again.
ddpd_await() {
	local check="$1" interface="$2" told='' pause=5
	until "$check"; do
		if [ "$told" != "$DDPD_ERROR $DDPD_WRONG" ]; then
			told="$DDPD_ERROR $DDPD_WRONG"
			proto_notify_error "$interface" "$DDPD_ERROR" ${DDPD_WRONG:+"$DDPD_WRONG"}
		fi
		sleep "$pause"
		[ "$pause" -gt 30 ] || pause=$((pause * 2))
	done
}

# Called by json_for_each_item with VALUE, KEY and what it was told: the variable that gets a line a value.
ddpd_collect() {
	[ -z "$1" ] || eval "$3=\"\${$3}\${$3:+\$DDPD_BREAK}\$1\""
}

# An `option` comes here as its words: those until the next prefix, or `N:`, are of one line.
ddpd_collect_ask() {
	case "$1" in
		'') ;;
		[0-9]:|[0-9][0-9]:|[0-9][0-9][0-9]:) slot="$1 " ;;
		*/*)
			ask="$ask${ask:+$DDPD_BREAK}$slot$1"
			slot='' ;;
		*) ask="$ask $1" ;;
	esac
}

# Does Python start ddpd?  It is asked once, and where the daemon has ended by itself.
ddpd_starts() {
	DDPD_ERROR=NO_PYTHON DDPD_WRONG=''
	if [ ! -e "$conf" ] || [ -e "$DDPD_RUN/if-$interface.failed" ]; then
		"$DDPD_BIN" --version > /dev/null 2>&1
	fi
}

ddpd_has_key() {
	DDPD_ERROR=INVALID_CONFIG DDPD_WRONG="no key in $keyfile"
	ddpd_key "$keyfile"
}

# Another interface, or the daemon of /etc/config/ddpd, that asks this grantor with this key: they would be two
# machines to it, or take each other's slots.
ddpd_alone() {
	local other
	for other in "$DDPD_RUN"/*.conf; do
		if [ "$other" != "$conf" ] && grep -sqxF "key = $key" "$other" && grep -qxF "key = $keyfile" "$other" &&
				ddpd_runs "$(sed -n 's/^control *= *//p' "$other")"; then
			other="${other##*/}"
			DDPD_ERROR=CLONE
			DDPD_WRONG="${other%.conf} asks this grantor with the same key: this one wants a keyfile"
			return 1
		fi
	done
}

# There is a configuration, or it is $DDPD_MISTAKE.
ddpd_made() {
	local code=0
	DDPD_ERROR=INVALID_CONFIG DDPD_WRONG="cannot write $conf" DDPD_MISTAKE=''
	ddpd_conf "$interface" "$device" | ddpd_write "$conf" && ddpd_take "$conf" || code=$?
	[ "$code" != 2 ] || DDPD_MISTAKE="$DDPD_WRONG"
	[ "$code" = 0 ] || [ "$code" = 2 ]
}

# Nothing in a value may be taken for something else in the file.
ddpd_fit() {
	local value
	DDPD_WRONG="no line break, ';' or '#' can be in a value"
	for value in "$key" "$hostname" "$keepalive" "$keyfile"; do
		ddpd_fits "$value" || return 1
	done
	case "$grantor$ask$accept" in
		*';'*|*'#'*) return 1 ;;
	esac
}

# The configuration of this interface: ddpd decides nothing about the kernel, netifd does.
ddpd_conf() {
	local interface="$1" device="$2" IFS="$DDPD_BREAK" line asks=
	set -f
	for line in ${ask:-::/56}; do
		# What netifd cannot share out goes on an interface: IPv4, and IPv6 longer than /64.
		case "$line" in
			*' on '*) ;;
			*.*|*/6[5-9]|*/[7-9][0-9]|*/1[0-9][0-9]) line="$line on $device" ;;
		esac
		asks="$asks$line$DDPD_BREAK"
	done
	echo '[ddpd]'
	ddpd_line key "$keyfile"
	ddpd_line leases "$DDPD_ETC/if-$interface.json"
	ddpd_line control "$DDPD_RUN/if-$interface.sock"
	ddpd_line status "$DDPD_RUN/if-$interface.json"
	ddpd_line mark 222
	echo "[grantor $interface]"
	ddpd_line key "$key"
	ddpd_line address $grantor
	ddpd_line ask $asks
	ddpd_line install no
	ddpd_line hook /lib/netifd/ddpd.script
	[ "$norelease" = 1 ] || ddpd_line release yes
	[ -z "$hostname" ] || ddpd_line hostname "$hostname"
	[ -z "$keepalive" ] || ddpd_line keepalive "$keepalive"
	[ -z "$accept" ] || ddpd_line accept $accept
}

# A netifd that was killed leaves its daemons, and the new one knows nothing of them; each of its own would find the lease
# file in use.  One that is killed gives nothing back: the next has the same leases at once.
ddpd_end_orphan() {
	local file
	ddpd_runs "$DDPD_RUN/if-$interface.sock" || return 0
	rm -f "$DDPD_RUN/if-$interface.failed"
	for file in /proc/[0-9]*; do
		if [ "$(readlink "$file/ns/net")" = "$(readlink /proc/self/ns/net)" ] &&
				[ "$(tr '\0' '\n' 2>/dev/null < "$file/cmdline" | tail -n 1)" = "$conf" ]; then
			kill -KILL "${file#/proc/}"
		fi
	done
}

# A daemon that has ended by itself is started at once; one that did so twice within a minute after 4 s, then 8 s,
# and so on.
ddpd_back_off() {
	local failed
	failed="$(cat "$DDPD_RUN/if-$1.failed" 2>/dev/null)"
	case "$failed" in
		'' | 0)  ;;
		[1-4])   sleep $((2 << failed)) ;;
		*)       sleep 60 ;;
	esac
	cut -d . -f 1 /proc/uptime > "$DDPD_RUN/if-$1.started"
}

ddpd_has_failed() {
	local failed="$DDPD_RUN/if-$1.failed" now began
	now="$(cut -d . -f 1 /proc/uptime)"
	began="$(cat "$DDPD_RUN/if-$1.started" 2>/dev/null)"
	[ "$((now - ${began:-0}))" -lt 60 ] || rm -f "$failed"
	if [ -e "$failed" ]; then
		echo "$(($(cat "$failed") + 1))" > "$failed"
	else
		echo 0 > "$failed"
	fi
}

proto_ddpd_setup() {
	local interface="$1" device="$2" slot=''
	local grantor key ask accept gateway mtu hostname keepalive keyfile norelease
	local conf="$DDPD_RUN/if-$interface.conf"
	json_get_vars key gateway mtu hostname keepalive keyfile norelease
	json_for_each_item ddpd_collect grantor grantor
	json_for_each_item ddpd_collect_ask ask
	json_for_each_item ddpd_collect accept accept
	keyfile="${keyfile:-$DDPD_ETC/key}"

	[ -n "$grantor" ] || ddpd_rest "$interface" MISSING_GRANTOR
	[ -n "$key" ] || ddpd_rest "$interface" MISSING_KEY
	ddpd_fit || ddpd_rest "$interface" INVALID_CONFIG "$DDPD_WRONG"
	ddpd_await ddpd_starts "$interface"
	ddpd_await ddpd_has_key "$interface"
	ddpd_await ddpd_alone "$interface"
	ddpd_await ddpd_made "$interface"
	[ -z "$DDPD_MISTAKE" ] || ddpd_rest "$interface" INVALID_CONFIG "$DDPD_MISTAKE"
	ddpd_end_orphan
	ddpd_back_off "$interface"
	ddpd_sweep
	/lib/netifd/ddpd.script begin "$interface"

	proto_export "INTERFACE=$interface"
	proto_export "DEVICE=$device"
	proto_export "GATEWAY=$gateway"
	proto_export "MTU=$mtu"
	proto_export "KEY=$keyfile"
	proto_export "GRANTOR=${grantor%%"$DDPD_BREAK"*}"
	proto_run_command "$interface" "$DDPD_BIN" -c "$conf"
}

proto_ddpd_renew() {
	proto_kill_command "$1" "$(kill -l USR1)"
}

# ERROR: with what code the daemon has ended by itself.  netifd kills us after 5 s.
proto_ddpd_teardown() {
	local left=3 networks
	proto_kill_command "$1"
	/lib/netifd/ddpd.script down "$1"
	if [ -n "$ERROR" ]; then
		ddpd_has_failed "$1"
	else
		rm -f "$DDPD_RUN/if-$1.failed"
	fi
	networks="$(ddpd_networks)"
	if [ -n "$networks" ] && ! echo "$networks" | grep -qxF "$1"; then       # it was deleted
		while [ "$left" -gt 0 ] && ddpd_runs "$DDPD_RUN/if-$1.sock"; do
			left=$((left - 1))
			sleep 1             # of BusyBox, which knows no fractions
		done
		[ "$left" = 0 ] || ddpd_forget "$1"
	fi
}

[ -n "$INCLUDE_ONLY" ] || add_protocol ddpd
