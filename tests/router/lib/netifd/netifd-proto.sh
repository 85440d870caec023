#!/bin/sh
# A stand-in for netifd-proto.sh and jshn.sh: what a handler says is recorded; the test is netifd.
# shellcheck shell=dash disable=SC1091,SC2154  # JSON_* come from /bin/to-shell

. /lib/functions.sh

for each in proto_config_add_int proto_config_add_string proto_config_add_boolean proto_config_add_array \
		proto_config_add_defaults proto_add_dns_server proto_add_dns_search \
		proto_add_ipv4_address proto_add_ipv6_address proto_add_ipv4_route proto_add_ipv6_route proto_add_ipv6_prefix \
		proto_add_data proto_close_data proto_set_keep proto_notify_error proto_block_restart proto_setup_failed \
		proto_export proto_run_command proto_add_host_dependency; do
	eval "$each() { record $each \"\$@\"; }"
done

proto_kill_command() {
	record proto_kill_command "$@"
	[ ! -e "/task.$1" ] || kill "-${2:-TERM}" "$(cat "/task.$1")"
}

# An update is one JSON from its beginning until it is sent.
proto_init_update() {
	record proto_init_update "$@"
	JSON="action=0 link-up=$2 "
}
proto_send_update() { record proto_send_update "$@" "$JSON"; }

json_load() { eval "$(/bin/to-shell "$1")"; }
json_get_vars() {
	local each
	for each; do
		eval "$each=\"\$JSON_$each\""
	done
}
json_for_each_item() {
	local function="$1" name="$2" number=0 count
	shift 2
	eval "count=\"\${JSON_COUNT_$name:-}\""
	if [ -z "$count" ]; then
		eval "$function \"\$JSON_$name\" '' \"\$@\""
		return
	fi
	while [ "$number" -lt "$count" ]; do
		number=$((number + 1))
		eval "$function \"\$JSON_${name}_$number\" \"$number\" \"\$@\""
	done
}
json_init() { JSON=''; }
json_add_string() {
	record json_add_string "$@"
	JSON="$JSON${1:+$1=}$2 "
}
json_add_boolean() {
	record json_add_boolean "$@"
	JSON="$JSON$1=$2 "
}
json_add_array() { JSON="$JSON$1=[ "; }
json_close_array() { JSON="$JSON] "; }
json_dump() { echo "$JSON"; }

init_proto() {
	PROTO="$1" ACTION="$2" INTERFACE_="$3" DATA="$4" DEVICE_="$5"
}
add_protocol() {
	if [ "$ACTION" = dump ]; then
		"proto_$1_init_config"
		record dump "$1" "renew-handler=$renew_handler" "no-device=${no_device:-0}" "lasterror=${lasterror:-0}"
	elif [ "$PROTO" = "$1" ]; then
		json_load "$DATA"
		"proto_$1_$ACTION" "$INTERFACE_" "$DEVICE_"
	fi
}
