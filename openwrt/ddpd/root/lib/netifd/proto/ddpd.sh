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

proto_ddpd_init_config() {
	renew_handler=1

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

# Time cures none of these: netifd tries again when the interface is configured or brought up anew.
ddpd_hopeless() {
	local interface="$1"
	shift
	proto_notify_error "$interface" "$@"
	proto_block_restart "$interface"
}

# Time cures these, and netifd tries again at once.
ddpd_later() {
	proto_notify_error "$@"
	sleep 4
}

# CODE INTERFACE ERROR...: what has failed, or was killed for want of memory.
ddpd_failed() {
	local code="$1"
	shift
	if [ "$code" -gt 127 ]; then
		ddpd_later "$@"
	else
		ddpd_hopeless "$@"
	fi
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

# Another interface, or the daemon of /etc/config/ddpd, that asks this grantor with this key: they would be two
# machines to it, or take each other's slots.
ddpd_twin() {
	local conf
	for conf in "$DDPD_RUN"/*.conf; do
		if [ "$conf" != "$1" ] && [ -S "${conf%.conf}.sock" ] && grep -qxF "key = $key" "$conf" &&
				grep -qxF "key = ${keyfile:-$DDPD_ETC/key}" "$conf" &&
				"$DDPD_BIN" -c "$conf" status > /dev/null 2>&1; then
			conf="${conf##*/}"
			echo "${conf%.conf}"
			return
		fi
	done
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

# The grantor of this interface: ddpd decides nothing about the kernel, netifd does.
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
	ddpd_line key "${keyfile:-$DDPD_ETC/key}"
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

proto_ddpd_setup() {
	local interface="$1" device="$2" slot='' twin
	local grantor key ask accept gateway mtu hostname keepalive keyfile norelease
	local conf="$DDPD_RUN/if-$interface.conf"
	json_get_vars key gateway mtu hostname keepalive keyfile norelease
	json_for_each_item ddpd_collect grantor grantor
	json_for_each_item ddpd_collect_ask ask
	json_for_each_item ddpd_collect accept accept

	[ -n "$grantor" ] || { ddpd_hopeless "$interface" MISSING_GRANTOR; return 1; }
	[ -n "$key" ] || { ddpd_hopeless "$interface" MISSING_KEY; return 1; }
	if [ ! -e "$conf" ]; then
		"$DDPD_BIN" --version > /dev/null 2>&1 || { ddpd_failed $? "$interface" NO_PYTHON; return 1; }
	fi
	ddpd_key "${keyfile:-$DDPD_ETC/key}" || {
		ddpd_failed $? "$interface" INVALID_CONFIG "no key in ${keyfile:-$DDPD_ETC/key}"
		return 1
	}
	twin="$(ddpd_twin "$conf")"
	[ -z "$twin" ] || {
		ddpd_later "$interface" CLONE "$twin asks this grantor with the same key: this one wants a keyfile"
		return 1
	}
	if ! ddpd_conf "$interface" "$device" | ddpd_write "$conf"; then
		ddpd_later "$interface" INVALID_CONFIG "cannot write $conf"
		return 1
	fi
	ddpd_fit || { ddpd_hopeless "$interface" INVALID_CONFIG "$DDPD_WRONG"; return 1; }
	ddpd_take "$conf" || { ddpd_failed $? "$interface" INVALID_CONFIG "$DDPD_WRONG"; return 1; }
	/lib/netifd/ddpd.script begin "$interface"

	proto_export "INTERFACE=$interface"
	proto_export "DEVICE=$device"
	proto_export "GATEWAY=$gateway"
	proto_export "MTU=$mtu"
	proto_export "KEY=${keyfile:-$DDPD_ETC/key}"
	proto_run_command "$interface" "$DDPD_BIN" -c "$conf"
}

proto_ddpd_renew() {
	proto_kill_command "$1" "$(kill -l USR1)"
}

# ERROR: with what code the daemon has ended by itself.  netifd starts it again at once, and kills us after 5 s.
proto_ddpd_teardown() {
	proto_kill_command "$1"
	/lib/netifd/ddpd.script down "$1"
	[ -z "$ERROR" ] || sleep 4
}

[ -n "$INCLUDE_ONLY" ] || add_protocol ddpd
